"""How programs are graded that are no subscribers at all: each gets a sentence that says what it did."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import trio

from changefeed.cli.run import main
from changefeed.conformance import events
from changefeed.conformance.grading import Grade, grade, grade_all
from changefeed.conformance.scenarios import SCENARIOS, name_of, title_of
from changefeed.errors import BadConfig

pytestmark = pytest.mark.processes

#: A client that speaks the websocket, says `WORDS`, prints what it hears, and waits.
SPEAKER = """
import json, os, sys, trio
from changefeed.transport.websocket import WebsocketNetwork

async def main():
    connection = await WebsocketNetwork().connect(
        os.environ["CHANGEFEED_URL"], subprotocols=("changefeed.v1.json",), message_bytes_max=2**20, timeout_s=10
    )
    for word in sys.argv[1:]:
        await connection.send(word)
    await trio.sleep_forever()

trio.run(main)
"""
SUBSCRIBE = json.dumps({"type": "subscribe", "feed": "conformance", "start": {"at": "beginning"}, "name": "x"})


def problem(*command: str, patience_s: float = 20.0) -> str:
    return trio.run(grade, events.in_order, command, patience_s).problem


def speaker(*words: str) -> str:
    return problem(sys.executable, "-c", SPEAKER, *words)


def test_a_program_that_ends_is_told_how_it_ended() -> None:
    """With its exit status, and the end of what it said on stderr."""
    found = trio.run(grade, events.in_order, ["sh", "-c", "echo my last words >&2; exit 7"])

    assert found.problem == "it should have connected; no connection came; it had ended with exit status 7"
    assert found.stderr == "my last words\n"
    assert (found.name, found.passed) == ("in-order", False)


@pytest.mark.parametrize("line", ["hello", "5", "[]", '{"seq": 1}', '{"seq": 1, "id": "id-2"}'])
def test_a_line_that_is_no_event_is_named(line: str) -> None:
    """Not JSON, no object, without an id, with the id of another event."""
    found = problem("echo", line)

    assert f"it printed {line!r}; each line must be the JSON of an event" in found or "event's id is 'id-1'" in found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hello"], "its first message is no subscribe that could be served"),
        ([json.dumps({"type": "beat"})], "its first message is no subscribe that could be served"),
        ([SUBSCRIBE.replace("conformance", "another")], "it asked for feed 'another'"),
        ([SUBSCRIBE.replace("beginning", "now")], "it started at 'now'"),
        ([SUBSCRIBE, "hello"], "it sent what no subscriber may send"),
        ([SUBSCRIBE, SUBSCRIBE], "a message of type subscribe cannot come now"),
        (
            [SUBSCRIBE, json.dumps({"type": "handled", "position": "5e1d3c7a90b24f68.7.c0ffee42.900"})],
            "it said that it handled 5e1d3c7a90b24f68.7.c0ffee42.900; it was told of nothing beyond",
        ),
    ],
)
def test_a_client_that_says_something_wrong_is_told_what(words: list[str], sentence: str) -> None:
    """Whatever the scenario waits for at that moment."""
    assert sentence in speaker(*words)


def test_what_does_not_come_is_named_with_what_came() -> None:
    """It listens and prints nothing."""
    found = trio.run(grade, events.in_order, [sys.executable, "-c", SPEAKER, SUBSCRIBE], 2.0)

    assert found.problem == "it printed nothing; expected 1, 2, 3, 4, 5"


def test_nothing_is_left_of_a_program(tmp_path: Path) -> None:
    """Its children are killed with it."""
    note = tmp_path / "pid"
    problem("sh", "-c", f"sleep 1000 & echo $! > {note}; wait", patience_s=1.0)
    state = Path(f"/proc/{int(note.read_text())}/stat")
    deadline = time.monotonic() + 20
    # A child that nobody waits for is a zombie until its new parent has noticed.
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.02)


def test_a_program_that_cannot_be_started_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    """BadConfig, not a failed scenario."""
    program = tmp_path / "program"
    program.write_text("no program")
    program.chmod(0o755)

    with pytest.raises(BadConfig, match=r"cannot start '.*program': Exec format error"):
        problem(str(program))


def test_grades_come_in_the_order_of_the_scenarios() -> None:
    """However many are played at a time."""
    told: list[Grade] = []

    async def tell(found: Grade) -> None:
        told.append(found)

    found = trio.run(grade_all, SCENARIOS[:6], ["false"], 4, tell)

    assert [each.name for each in told] == [name_of(scenario) for scenario in SCENARIOS[:6]]
    assert found == told


def test_every_scenario_says_what_is_right() -> None:
    """Names are unique and titles are sentences."""
    assert len({name_of(scenario) for scenario in SCENARIOS}) == len(SCENARIOS)
    for scenario in SCENARIOS:
        assert title_of(scenario).endswith(".")


# ---- the command


def command(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}
    status = main(["conformance", *argv], environ)
    said = capfd.readouterr()
    return status, said.out, said.err


def test_json_has_a_record_per_scenario_and_one_for_all(capfd: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 when one failed."""
    status, out, _ = command(
        capfd, "--only", "resume", "--only", "silence", "--only", "resume", "--json", "--", "false"
    )
    records = [json.loads(line) for line in out.splitlines()]

    assert status == 1
    assert [(record["name"], record["passed"]) for record in records[:-1]] == [("resume", False), ("silence", False)]
    assert all(record["problem"] and record["title"] for record in records[:-1])
    assert records[-1] == {"scenarios": 2, "failed": 2}


def test_text_says_what_was_expected_and_what_came(capfd: pytest.CaptureFixture[str]) -> None:
    """For people, also into a pipe; what programs say is made printable."""
    status, out, _ = command(capfd, "--only", "resume", "--", "sh", "-c", "printf 'a\\033b' >&2; exit 1")
    lines = out.splitlines()

    assert status == 1
    assert lines[0].startswith("FAIL  resume") and "it had ended with exit status 1" in lines[0]
    assert lines[1:] == [
        "      expected: After a lost connection it resumes after its position.",
        "      stderr: a\\x1bb",
        "0 of 1 scenarios passed",
    ]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--only", "resum", "--", "true"], "there is no scenario 'resum'; did you mean 'resume'?"),
        (["--", "no-such-program-anywhere"], "'no-such-program-anywhere' is no program that could be found"),
        ([], "CLIENT is missing"),
        (["--jobs", "0", "--", "true"], "'0' is not a value for it"),
    ],
)
def test_a_mistake_gets_a_sentence(capfd: pytest.CaptureFixture[str], argv: list[str], sentence: str) -> None:
    """Exit status 2, and nothing is played."""
    status, out, err = command(capfd, *argv)

    assert (status, out) == (2, "")
    assert sentence in err
