"""changefeed log init: makes the tables that a log in PostgreSQL needs; once per database."""

from __future__ import annotations

from changefeed.cli.command import LOG, Command, Values
from changefeed.cli.log_upgrade import lay_out
from changefeed.cli.output import Output


async def run(values: Values, output: Output) -> int:
    return await lay_out(values, output)


COMMAND = Command(
    name="log init",
    run=run,
    options=(LOG,),
    about="Creates the schema changefeed in the database that --log names; the role must be allowed to create one. "
    "Does nothing where it stands already. A log in SQLite needs none: its files are made when a feed is first opened.",
)
