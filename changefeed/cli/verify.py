"""changefeed verify FEED: proves that a feed's log is whole, or names the first fault."""

from __future__ import annotations

from dataclasses import asdict

from changefeed.cli.command import LOG, Command, Positional, Values
from changefeed.cli.feeds import open_known
from changefeed.cli.output import Output
from changefeed.log.urls import open_log


async def run(values: Values, output: Output) -> int:
    from changefeed.log.verify import verify_log

    store = open_log(values.log, values.settings)
    try:
        log = await open_known(store, values.feed, check=False)
        try:
            found = await verify_log(log)
        finally:
            await log.aclose()
    finally:
        await store.aclose()
    walked = (
        f"{found.feed}: seq {found.floor + 1} to {found.tail}: {found.events:,} events in {found.groups:,} groups, "
        f"{found.entries:,} entries, {found.epochs} epochs, {found.publishers:,} publishers"
    )
    verdict = "whole" if found.fault is None else f"FAULT at seq {found.fault.seq}: {found.fault.what}"
    await output.line({**asdict(found), "whole": found.fault is None}, f"{walked}\n{verdict}")
    return 0 if found.fault is None else 1


COMMAND = Command(
    name="verify",
    run=run,
    positionals=(Positional("feed", "the feed"),),
    options=(LOG,),
    about="Walks the log from its oldest entry to its newest: digests, gaps, epochs, publishers' numbers. Exit status "
    "1 with the first fault. Instances may go on writing meanwhile.",
)
