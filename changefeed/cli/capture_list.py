"""changefeed capture list: the tables that are captured into the feeds of a log."""

from __future__ import annotations

import trio.to_thread

from changefeed.cli.capture_add import line, record, server_of
from changefeed.cli.command import LOG, Command, Values
from changefeed.cli.output import Output


async def run(values: Values, output: Output) -> int:
    server = server_of(values)
    from changefeed.log.postgresql import capture

    for found in await trio.to_thread.run_sync(capture.captures, server):
        await output.line(record(found), line(found))
    return 0


COMMAND = Command(name="capture list", run=run, options=(LOG,))
