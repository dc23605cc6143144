"""changefeed conformance -- CMD…: grades a subscriber written in any language against a scripted server."""

from __future__ import annotations

import shutil
from dataclasses import asdict

from changefeed.cli.command import Command, Positional, Values
from changefeed.cli.output import Output, printable
from changefeed.config import Option, hint, parse_count
from changefeed.errors import BadConfig

#: Lines of a client's stderr that are shown with what it did wrong.
STDERR_LINES = 5


async def run(values: Values, output: Output) -> int:
    from changefeed.conformance.grading import Grade, grade_all
    from changefeed.conformance.scenarios import SCENARIOS, name_of

    output = output.for_people()
    known = {name_of(scenario): scenario for scenario in SCENARIOS}
    for name in values.only:
        if name not in known:
            raise BadConfig(f"there is no scenario {name!r}{hint(name, known)}; there are {', '.join(known)}")
    if shutil.which(values.client[0]) is None:
        raise BadConfig(f"{values.client[0]!r} is no program that could be found")
    chosen = [known[name] for name in dict.fromkeys(values.only)] or list(SCENARIOS)

    async def tell(grade: Grade) -> None:
        verdict = "pass" if grade.passed else "FAIL"
        lines = [f"{verdict}  {grade.name:<16}  {printable(grade.problem) or grade.title}"]
        if not grade.passed:
            lines.append(f"      expected: {grade.title}")
            lines += [f"      stderr: {printable(line)}" for line in grade.stderr.splitlines()[-STDERR_LINES:]]
        await output.line({**asdict(grade), "passed": grade.passed}, "\n".join(lines))

    grades = await grade_all(chosen, values.client, values.jobs, tell)
    passed = sum(grade.passed for grade in grades)
    await output.line(
        {"scenarios": len(grades), "failed": len(grades) - passed}, f"{passed} of {len(grades)} scenarios passed"
    )
    return 0 if passed == len(grades) else 1


COMMAND = Command(
    name="conformance",
    run=run,
    positionals=(Positional("client", "the program to grade and its arguments, after --", nargs="+"),),
    options=(
        Option("only", "play only this scenario; may be repeated", kind="many", metavar="NAME"),
        Option("jobs", "play so many scenarios at a time (default 4)", parse_count, default=4, metavar="N"),
    ),
    about="Starts the program once or more per scenario with $CHANGEFEED_URL, $CHANGEFEED_FEED and $CHANGEFEED_CURSOR "
    "set, plays a server, and looks at what the program sends and prints: docs/reference/conformance.md says what it "
    "must do. Exit status 1 if it did something else.",
)
