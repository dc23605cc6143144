"""changefeed feed set FEED: how much of a feed is kept, and whether with a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from changefeed.change import FeedSettings
from changefeed.cli.command import LOG, Command, Positional, Values
from changefeed.cli.feeds import open_known
from changefeed.cli.output import Output, duration_text, size_text
from changefeed.config import Option, parse_count
from changefeed.errors import BadConfig
from changefeed.log import Look
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
    if values.snapshot and values.no_snapshot:
        raise BadConfig("--snapshot and --no-snapshot contradict each other")
    if values.snapshot or values.no_snapshot:
        changed["snapshot"] = bool(values.snapshot)
    if not changed:
        raise BadConfig(
            "nothing to set: give --retention-age, --retention-bytes, --retention-count, --snapshot or --no-snapshot"
        )
    store = open_log(values.log, values.settings)
    try:
        log = await open_known(store, values.feed)
        try:
            stored = await log.set_settings(replace(await log.settings(), **changed))
            look = await log.look()
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
    kept += ", and a snapshot: the latest event of each object" if stored.snapshot else ""
    missing = not_in_snapshot(stored, look)
    record = {"feed": values.feed, **asdict(stored), "snapshot_lacks": missing}
    await output.line(record, f"{values.feed} keeps {kept}")
    if missing:
        await output.note(
            f"up to seq {missing} events are trimmed already: an object that has not changed since is not in the "
            "snapshot until it changes again (publish each object once, and it is complete)"
        )
    return 0


def not_in_snapshot(stored: FeedSettings, look: Look) -> int:
    """The seq up to which events were trimmed before a snapshot is begun, or begun anew; 0: nothing is missing."""
    begins = stored.snapshot and (look.folded is None or look.folded < look.floor.seq)
    return look.floor.seq if begins else 0


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
        Option(
            "snapshot",
            "also keep the latest event of each object, so that subscriptions can start with a list of them; then "
            "creates and updates need a body",
            kind="flag",
        ),
        Option("no-snapshot", "keep no snapshot (the default): starts at the snapshot are refused", kind="flag"),
        LOG,
    ),
    about="Whichever bound of retention is reached first trims. Kept in the log: all instances notice within seconds.",
)
