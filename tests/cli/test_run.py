"""Signals, errors and exit statuses: what a script can rely on."""

from __future__ import annotations

import json
import os
import signal

import pytest
import trio

from changefeed import errors
from changefeed.cli.command import Command, Values
from changefeed.cli.output import Output
from changefeed.cli.run import chief, failed, main, status_of, supervise

VALUES = Values(verbose=False, json=False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.BadConfig("x"), 2),
        (errors.InvalidChange("x"), 2),
        (errors.InsecureListen("x"), 5),
        (PermissionError("x"), 5),
        (errors.PositionTooOld("x"), 3),
        (errors.OtherLineage("x"), 3),
        (errors.CursorDamaged("x"), 3),
        (errors.CursorOfOtherFeed("x"), 3),
        (errors.CursorInUse("x"), 1),
        (errors.Unreachable("x"), 4),
        (errors.ConnectionRefused("x"), 4),
        (errors.LogUnavailable("x"), 4),
        (errors.CoordinatorUnavailable("x"), 4),
        (errors.OutcomeUnknown("x"), 4),
        (trio.TooSlowError(), 4),
        (errors.PortInUse("x"), 1),
        (errors.NameTaken("x"), 1),
        (errors.UnknownFeed("x"), 1),
        (errors.LogDamaged("x"), 1),
        (FileNotFoundError("x"), 1),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_exit_statuses(error: BaseException, status: int) -> None:
    """0 done; 1 failed; 2 usage; 3 cannot resume; 4 unreachable or timed out; 5 not allowed."""
    assert status_of(error) == status


def test_every_error_has_a_status() -> None:
    """No error of the tree is without one, and none counts as done."""
    for cls in errors.every_error():
        assert status_of(cls("x")) in (1, 2, 3, 4, 5)


def test_a_group_is_judged_by_its_chief_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A bug is said before an interruption, that before a typed error, that before a closed pipe."""
    group = BaseExceptionGroup("", [BrokenPipeError(), BaseExceptionGroup("", [errors.LogFull("the disk is full")])])
    assert failed(group, json=False) == 1
    assert capsys.readouterr().err == "changefeed: the disk is full (log-full)\n"
    assert isinstance(chief(BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()])), ValueError)
    assert failed(BaseExceptionGroup("", [KeyboardInterrupt(), errors.LogFull("x")]), json=False) == 130
    assert failed(BrokenPipeError(), json=False) == 0


def test_a_bug_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """What is not ours to explain is shown whole, and fails."""
    assert failed(ZeroDivisionError("oops"), json=False) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in told and "(internal)" in told


def test_usage_mistakes_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr in one sentence, or as an object with --json; nothing on stdout."""
    assert main(["srve"], {}) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("changefeed: there is no command 'srve'; did you mean 'serve'?")
    assert main(["status", "--sevrer", "x", "--json"], {}) == 2
    assert json.loads(capsys.readouterr().err)["error"] == "bad-config"


def test_help_is_an_answer_and_no_arguments_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """Help that was asked for goes to stdout with status 0."""
    assert main(["--help"], {}) == 0
    assert "usage: changefeed" in capsys.readouterr().out
    assert main([], {}) == 2
    told = capsys.readouterr()
    assert told.out == "" and "usage: changefeed" in told.err


async def test_ctrl_c_cancels_and_says_so() -> None:
    """A command is cancelled, so that it can tidy up; the status is the signal's."""
    tidied = []

    async def run(values: Values, output: Output) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()
        finally:
            tidied.append(True)
        return 0

    assert await supervise(Command("status", run), VALUES, Output()) == 130
    assert tidied


async def test_a_command_that_ends_is_not_kept_by_the_watch_for_signals() -> None:
    """Its status is the command's own."""

    async def run(values: Values, output: Output) -> int:
        await trio.lowlevel.checkpoint()
        return 7

    assert await supervise(Command("status", run), VALUES, Output()) == 7
