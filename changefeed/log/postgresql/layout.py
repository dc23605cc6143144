"""The tables in the database: whether they are there, in which version, and how they are made.

A layout is a number; its scripts make it from the layout before, the first one's from nothing. `changefeed log init`
and `log upgrade` run them, each in one transaction: they need a role that may create a schema. Instances need less:
see docs/how-to/postgresql.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from changefeed.errors import LogFormatUnknown, LogNotLaidOut
from changefeed.log.postgresql.connections import INIT_HINT, Link, Server

LAYOUT: Final = 1
#: What makes each layout of the one before (of nothing, for the first).
_SCRIPTS: Final = {1: ("layout_1.sql", "outbox_1.sql", "capture_1.sql")}
#: pg_advisory_xact_lock: two that lay out at once do it one after the other.
_LOCK: Final = 0x63686664


@dataclass(frozen=True, slots=True)
class Info:
    """What a database holds. layout: 0 if nothing. feeds: name, lineage, head seq, floor seq, bytes of each."""

    server: str
    layout: int
    feeds: tuple[tuple[str, str, int, int, int], ...]
    synchronous_commit: str
    synchronous_standbys: str
    table_bytes: int


def read_layout(link: Link) -> int | None:
    """The version of the tables; None if there are none."""
    ((there,),) = link.read("layout", "SELECT to_regclass('changefeed.layout') IS NOT NULL", ())
    if not there:
        return None
    found = link.read("layout", "SELECT version FROM changefeed.layout", ())
    return int(found[0][0]) if found else None


def check_layout(link: Link) -> None:
    """Raise LogNotLaidOut for none or an older one, LogFormatUnknown for a newer one."""
    found = read_layout(link)
    if found is None:
        raise LogNotLaidOut(f"the database of {link.shown} holds no log yet: {INIT_HINT}")
    if found < LAYOUT:
        raise LogNotLaidOut(
            f"the log in {link.shown} has tables of layout {found}; this release needs {LAYOUT}: stop no instance, run"
            " changefeed log upgrade --log URL"
        )
    if found > LAYOUT:
        raise LogFormatUnknown(
            f"the log in {link.shown} has tables of layout {found}; this release knows layouts up to {LAYOUT}"
        )


def lay_out(server: Server) -> tuple[int, int]:
    """Bring the tables to this release's layout; returns the one found and the one that stands now. Raises
    LogFormatUnknown if the one found is newer, LogAccessDenied."""
    link = Link(server)
    try:
        with link.transaction("layout") as execute:
            execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            found = read_layout(link)
            if found is not None and found > LAYOUT:
                check_layout(link)
            if found is None:
                execute("CREATE SCHEMA IF NOT EXISTS changefeed", ())
            for version in range((found or 0) + 1, LAYOUT + 1):
                for script in _SCRIPTS[version]:
                    execute(files(__package__).joinpath(script).read_text("utf-8"), None)
            if found is None:
                execute("INSERT INTO changefeed.layout (version) VALUES (%s)", (LAYOUT,))
            else:
                execute("UPDATE changefeed.layout SET version = %s", (LAYOUT,))
        return found or 0, LAYOUT
    finally:
        link.close()


def info(server: Server) -> Info:
    """What stands in the database. Raises LogUnavailable, LogAccessDenied, LogUnsafe."""
    link = Link(server)
    try:
        layout = read_layout(link) or 0
        ((commit, standbys),) = link.read(
            "info", "SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names')", ()
        )
        feeds: list[tuple[str, str, int, int, int]] = []
        size = 0
        if layout:
            rows = link.read(
                "info",
                "SELECT f.feed, f.lineage, h.tail_seq, h.floor_seq, h.bytes FROM changefeed.feeds f"
                " JOIN changefeed.heads h ON h.feed_id = f.id ORDER BY f.feed",
                (),
            )
            feeds = [(str(a), str(b), int(c), int(d), int(e)) for a, b, c, d, e in rows]
            ((size,),) = link.read("info", "SELECT pg_total_relation_size('changefeed.entries')", ())
        return Info(link.shown, layout, tuple(feeds), commit, standbys, int(size))
    finally:
        link.close()
