"""Clients that know only the protocol page are graded, and broken ones are caught by the scenario that is meant to."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from mutants import MUTANTS
from nodes import node, node_flags

from changefeed.conformance.grading import Grade, grade
from changefeed.conformance.scenarios import SCENARIOS, name_of

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
JAVASCRIPT, PYTHON = HERE / "subscriber.mjs", HERE / "subscriber.py"
BY_NAME = {name_of(scenario): scenario for scenario in SCENARIOS}
#: Clients at the same time: they mostly wait.
JOBS = 16
#: How long a broken client may take for a step, in seconds: most are caught by what does not come.
MUTANT_PATIENCE_S = 9.0
#: What no client made of a whole websocket library gets wrong by a slip of ours: left to the library.
OF_THE_LIBRARY = {"slow", "half-frame"}


class Case(NamedTuple):
    """client: "javascript", "python" or a mutant's name."""

    client: str
    scenario: str


CASES = [Case(client, name) for name in BY_NAME for client in ("javascript", "python")]
MUTANT_CASES = [Case(mutant.name, mutant.scenario) for mutant in MUTANTS]


@pytest.fixture
def needs(case: Case) -> None:
    """Skips what needs Node.js where there is none."""
    if case.client != "python":
        node(JAVASCRIPT)


@pytest.fixture(scope="module")
def grades(request: pytest.FixtureRequest) -> dict[Case, Grade]:
    """The grades of all cases that were selected: they are played at the same time, since they mostly wait."""
    found: dict[Case, Grade] = {}
    selected = {item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")}
    mutants = {mutant.name: mutant for mutant in MUTANTS}
    source = JAVASCRIPT.read_text()

    async def play(case: Case, command: Sequence[str], patience_s: float, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            found[case] = await grade(BY_NAME[case.scenario], command, patience_s)

    async def main(folder: Path) -> None:
        limiter = trio.CapacityLimiter(JOBS)
        async with trio.open_nursery() as nursery:
            for case in [*CASES, *MUTANT_CASES]:
                if case not in selected or (case.client != "python" and isinstance(node_flags(), str)):
                    continue
                command, patience_s = [sys.executable, str(PYTHON)], 20.0
                if case.client == "javascript":
                    command = node(JAVASCRIPT)
                elif case.client in mutants:
                    program = folder / f"{case.client.replace(' ', '-')}.mjs"
                    program.write_text(mutants[case.client].applied(source))
                    command, patience_s = node(program), MUTANT_PATIENCE_S
                nursery.start_soon(play, case, command, patience_s, limiter)

    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, Path(folder))
    return found


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.usefixtures("needs")
def test_clients_pass_every_scenario(case: Case, grades: dict[Case, Grade]) -> None:
    """The client in JavaScript, and the one that uses our library, do what the scenario asks for."""
    assert grades[case].problem == "", grades[case].stderr


@pytest.mark.parametrize("case", MUTANT_CASES, ids=lambda case: case.client)
@pytest.mark.usefixtures("needs")
def test_broken_clients_are_caught(case: Case, grades: dict[Case, Grade]) -> None:
    """The scenario fails, and says what is wrong rather than something else."""
    expected = next(mutant.problem for mutant in MUTANTS if mutant.name == case.client)

    assert expected in grades[case].problem


def test_each_scenario_has_a_broken_client() -> None:
    """A scenario that nothing could fail would prove nothing."""
    assert {mutant.scenario for mutant in MUTANTS} == set(BY_NAME) - OF_THE_LIBRARY


def test_the_stranger_is_small_and_knows_nothing_of_us() -> None:
    """At most 150 lines, and only modules that Node.js has built in."""
    source = JAVASCRIPT.read_text()
    imported = re.findall(r"""from "([^"]+)";|import\("([^"]+)"\)|require\(""", source)

    assert len(source.splitlines()) <= 150
    assert imported and all(name.startswith("node:") for names in imported for name in names if name)
