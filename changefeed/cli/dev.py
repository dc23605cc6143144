"""changefeed dev: a cluster on this machine to try things on, with a slow sample publisher; gone with Ctrl-C."""

from __future__ import annotations

from typing import Final

from changefeed.cli.command import Command, Values
from changefeed.cli.demo import folder
from changefeed.cli.output import Output
from changefeed.config import Option

#: More than anybody needs to try things on.
INSTANCES_MAX: Final = 26


async def run(values: Values, output: Output) -> int:
    from changefeed.demo.sandbox import Sandbox

    output = output.for_people()
    with folder(values.keep) as place:
        sandbox = Sandbox(place, instances=values.instances, say=output.line)
        await sandbox.run()
    return 0


def parse_instances(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:4]) <= INSTANCES_MAX:
        raise ValueError(f"write a whole number from 1 to {INSTANCES_MAX}")
    return int(text)


COMMAND = Command(
    name="dev",
    run=run,
    options=(
        Option("instances", "how many (default 3)", parse_instances, default=3, metavar="N"),
        Option("keep", "keep the data in this new folder", metavar="DIR"),
    ),
    level="ERROR",
    about="Prints lines to paste into another terminal. An instance that you kill is started again.",
)
