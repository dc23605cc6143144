"""changefeed conformance -- CMD…: grades a subscriber written in any language against a scripted server."""

from __future__ import annotations

import shutil
from dataclasses import asdict

from changefeed.cli.command import Command, Positional, Values
from changefeed.cli.output import Output
from changefeed.conformance.scenarios import SCENARIOS, grade
from changefeed.config import Option
from changefeed.errors import BadConfig


async def run(values: Values, output: Output) -> int:
    known = {scenario.__name__.replace("_", "-"): scenario for scenario in SCENARIOS}
    unknown = [name for name in values.only if name not in known]
    if unknown:
        raise BadConfig(f"there is no scenario {unknown[0]!r}; there are {', '.join(known)}")
    if shutil.which(values.client[0]) is None:
        raise BadConfig(f"{values.client[0]!r} is no program that could be found: write it after --")
    failed = 0
    chosen = [known[name] for name in values.only] or list(SCENARIOS)
    for scenario in chosen:
        found = await grade(scenario, values.client)
        failed += bool(found.problem)
        verdict = "FAIL" if found.problem else "pass"
        text = f"{verdict}  {found.name:<16} {found.problem or found.title}"
        await output.line({**asdict(found), "passed": not found.problem}, text)
    await output.line(
        {"scenarios": len(chosen), "failed": failed}, f"{len(chosen) - failed} of {len(chosen)} scenarios passed"
    )
    return 1 if failed else 0


COMMAND = Command(
    name="conformance",
    run=run,
    positionals=(Positional("client", "the program to grade and its arguments, after --", nargs="+"),),
    options=(Option("only", "play only this scenario", kind="list", metavar="NAME"),),
    about="Starts the program once per scenario with $CHANGEFEED_URL, $CHANGEFEED_FEED and $CHANGEFEED_CURSOR set, plays "
    "a server, and looks at what the program sends and prints: docs/reference/conformance.md says what it must do.",
)
