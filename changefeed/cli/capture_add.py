"""changefeed capture add: makes a table of a PostgreSQL database a part of a feed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.from_thread
import trio.to_thread

from changefeed.cli.command import LOG, Command, Values
from changefeed.cli.output import Output
from changefeed.config import Option
from changefeed.errors import BadConfig
from changefeed.log.urls import open_log

if TYPE_CHECKING:
    from changefeed.log.postgresql.capture import Captured
    from changefeed.log.postgresql.connections import Server


def words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def server_of(values: Values) -> Server:
    """The database of --log. Raises BadConfig for a log that is elsewhere."""
    store = open_log(values.log, values.settings)
    if getattr(store, "kind", "") != "postgresql":
        raise BadConfig(
            f"--log {values.log!r}: tables are captured in PostgreSQL; write --log postgresql://USER@HOST/DB"
        )
    from changefeed.log.postgresql import PostgresqlLogStore

    assert isinstance(store, PostgresqlLogStore)
    return store.server


async def run(values: Values, output: Output) -> int:
    for name in ("feed", "table", "resource", "id"):
        if not getattr(values, name):
            raise BadConfig(f"--{name} is missing; changefeed capture add --help tells what it takes")
    if len(values.resource) > 1:
        raise BadConfig(f"--resource is given {len(values.resource)} times; a table's rows are one resource")
    columns = tuple(column for text in values.id for column in words(text))
    server = server_of(values)
    from changefeed.log.postgresql import capture

    if values.initial and values.no_initial:
        raise BadConfig("--initial and --no-initial contradict each other")
    initial = True if values.initial else False if values.no_initial else None
    wanted = capture.Capture(
        values.feed,
        values.table,
        values.resource[0],
        columns,
        values.fields,
        values.exclude or (),
        before=values.before,
        split=not values.refuse_large,
        initial=initial,
    )

    def told(rows: int) -> None:
        trio.from_thread.run(output.progress, f"  {rows:,} rows that were there before")

    found = await trio.to_thread.run_sync(capture.add, server, wanted, told)
    await output.progress("")
    await output.line(record(found), line(found))
    return 0


def record(found: Captured) -> dict[str, object]:
    return {
        "feed": found.feed,
        "table": found.table,
        "resource": found.resource,
        "id": list(found.id),
        "fields": None if found.fields is None else list(found.fields),
        "exclude": list(found.exclude),
        "before": found.before,
        "split": found.split,
        "keyless": found.locks,
        "initial_pending": found.pending,
    }


def line(found: Captured) -> str:
    parts = [f"{found.table} -> {found.feed}/{found.resource}  id {','.join(found.id)}"]
    if found.fields is not None:
        parts.append(f"only {','.join(found.fields)}")
    if found.exclude:
        parts.append(f"without {','.join(found.exclude)}")
    parts += [word for word, true in (("before", found.before), ("refuses large", not found.split)) if true]
    parts += ["no key: its changes take a lock"] if found.locks else []
    parts += ["rows that were there before are still being put"] if found.pending else []
    return "  ".join(parts)


COMMAND = Command(
    name="capture add",
    run=run,
    options=(
        LOG,
        Option("feed", "the feed", metavar="FEED"),
        Option("table", "the table: NAME or SCHEMA.NAME", metavar="TABLE"),
        Option("resource", "the resource that its rows are; once", kind="many", metavar="RESOURCE"),
        Option("id", "columns whose values name a row, separated by commas", kind="many", metavar="COLUMN[,…]"),
        Option("fields", "only these columns (default: all)", words, metavar="COLUMN[,…]"),
        Option("exclude", "all but these columns", words, metavar="COLUMN[,…]"),
        Option("before", "also tell the row before: as meta of an update, as body of a delete", kind="flag"),
        Option("initial", "publish the rows that are there as op present (default: where there are any)", kind="flag"),
        Option("no-initial", "do not publish the rows that are there", kind="flag"),
        Option(
            "refuse-large",
            "a transaction above a group's limits is refused in its own statement (default: it goes out in parts)",
            kind="flag",
        ),
    ),
    about="Creates triggers that publish each insert, update, delete and truncate of the table in the transaction "
    "that makes it. Run it again after a kill: it goes on where it was left. The role must own the table and the log's "
    "schema.",
)
