"""changefeed feed set FEED --retention-…: how much of a feed is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from changefeed.cli.command import LOG, Command, Positional, Values
from changefeed.cli.feeds import open_known
from changefeed.cli.output import Output, duration_text, size_text
from changefeed.config import Option, parse_count
from changefeed.errors import BadConfig
from changefeed.log.urls import open_log
from changefeed.settings import parse_duration, parse_size


async def run(values: Values, output: Output) -> int:
    changed = {
        field: getattr(values, key)
        for key, field in (
            ("retention_age", "retention_age_s"),
            ("retention_bytes", "retention_bytes"),
            ("retention_count", "retention_count"),
        )
        if key in values.given
    }
    if not changed:
        raise BadConfig("nothing to set: give --retention-age, --retention-bytes or --retention-count")
    store = open_log(values.log, values.settings)
    try:
        log = await open_known(store, values.feed)
        try:
            stored = await log.set_settings(replace(await log.settings(), **changed))
        finally:
            await log.aclose()
    finally:
        await store.aclose()
    bounds = []
    if stored.retention_age_s is not None:
        bounds.append(duration_text(stored.retention_age_s))
    if stored.retention_bytes is not None:
        bounds.append(size_text(stored.retention_bytes))
    if stored.retention_count is not None:
        bounds.append(f"{stored.retention_count:,} events")
    kept = ", ".join(bounds) + (", whichever is reached first" if len(bounds) > 1 else "") if bounds else "everything"
    await output.line({"feed": values.feed, **asdict(stored)}, f"{values.feed} keeps {kept}")
    return 0


def or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same parser, where "none" means that there is no such bound."""
    return lambda text: None if text == "none" else parse(text)


COMMAND = Command(
    name="feed set",
    run=run,
    positionals=(Positional("feed", "the feed"),),
    options=(
        Option(
            "retention-age", "keep events so long; none: no such bound", or_none(parse_duration), metavar="DURATION"
        ),
        Option("retention-bytes", "keep so much; none: no such bound", or_none(parse_size), metavar="SIZE"),
        Option("retention-count", "keep so many events; none: no such bound", or_none(parse_count), metavar="N"),
        LOG,
    ),
    about="Whichever bound is reached first trims. Kept in the log: all instances notice within seconds.",
)
