"""changefeed log upgrade: brings the tables of a log in PostgreSQL to this release's layout."""

from __future__ import annotations

import trio.to_thread

from changefeed.cli.command import LOG, Command, Values
from changefeed.cli.output import Output
from changefeed.log.urls import open_log


async def run(values: Values, output: Output) -> int:
    return await lay_out(values, output)


async def lay_out(values: Values, output: Output) -> int:
    """Make or upgrade the tables, and say what was done."""
    store = open_log(values.log, values.settings)
    if getattr(store, "kind", "") != "postgresql":
        await output.line(
            {"log": store.url, "changed": False}, f"{store.url} needs no tables of its own: nothing to do"
        )
        return 0
    from changefeed.log.postgresql import PostgresqlLogStore
    from changefeed.log.postgresql import layout as tables

    assert isinstance(store, PostgresqlLogStore)
    found, now = await trio.to_thread.run_sync(tables.lay_out, store.server)
    record = {"log": store.url, "changed": found != now, "found": found, "layout": now}
    done = (
        f"layout {now} stands already" if found == now else f"layout {now} is made" + (f" of {found}" if found else "")
    )
    await output.line(record, f"{store.url}: {done}")
    return 0


COMMAND = Command(
    name="log upgrade",
    run=run,
    options=(LOG,),
    about="Upgrades the schema changefeed in the database that --log names, in one transaction. Instances of the "
    "release before go on with it; those of this release need it.",
)
