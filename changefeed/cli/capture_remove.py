"""changefeed capture remove TABLE: a table's changes are published no longer."""

from __future__ import annotations

import trio.to_thread

from changefeed.cli.capture_add import server_of
from changefeed.cli.command import LOG, Command, Positional, Values
from changefeed.cli.output import Output


async def run(values: Values, output: Output) -> int:
    server = server_of(values)
    from changefeed.log.postgresql import capture

    await trio.to_thread.run_sync(capture.remove, server, values.table)
    await output.line({"table": values.table, "removed": True}, f"{values.table} is captured no longer")
    return 0


COMMAND = Command(
    name="capture remove",
    run=run,
    positionals=(Positional("table", "the table"),),
    options=(LOG,),
    about="Drops its triggers. What it has published already is still moved into the feed.",
)
