"""Runs a command: signals, errors, exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import trio

from changefeed import errors
from changefeed.cli.command import Command, Values
from changefeed.cli.output import Output, say_error
from changefeed.cli.parser import Help, parse

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
CANNOT_RESUME: Final = 3
UNREACHABLE: Final = 4
NOT_ALLOWED: Final = 5
INTERRUPTED: Final = 130
TERMINATED: Final = 143


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """The `changefeed` command; returns its exit status."""
    open_standard_streams()
    argv = sys.argv[1:] if argv is None else argv
    environ = os.environ if environ is None else environ
    json = "--json" in argv or environ.get("CHANGEFEED_JSON", "") in ("1", "true", "yes", "on")
    try:
        command, values = parse(argv, environ)
        return trio.run(supervise, command, values, Output(json=values.json))
    except Help as help:
        return _print(str(help), argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        return failed(error, json=json)


def open_standard_streams() -> None:
    """A program that was started without standard input, output or error gets /dev/null for it: the next file or socket
    that it opens would take that number, and be written to as if it were a terminal."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  # as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _print(text: str, argv: Sequence[str]) -> int:
    """Help that was asked for goes to stdout; without any argument it is a usage mistake and goes to stderr."""
    stream = sys.stdout if argv else sys.stderr
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return DONE if argv else USAGE


async def supervise(command: Command, values: Values, output: Output) -> int:
    """Run a command until it ends, a signal comes, or nobody reads its output any more."""
    configure_logging("DEBUG" if values.verbose else command.level)
    if command.own_signals:
        return await command.run(values, output)
    status = FAILED
    async with trio.open_nursery() as nursery:
        caught: list[int] = []

        async def watch_signals() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                nursery_started.set()
                async for number in signals:
                    caught.append(number)
                    nursery.cancel_scope.cancel()

        nursery_started = trio.Event()
        nursery.start_soon(watch_signals)
        await nursery_started.wait()
        status = await command.run(values, output)
        nursery.cancel_scope.cancel()
    if caught:
        return INTERRUPTED if caught[0] == signal.SIGINT else 128 + caught[0]
    return status


def configure_logging(level: str) -> None:
    """The library only logs; a program decides where that goes: to stderr. level: of our own loggers."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("changefeed").setLevel(level)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside (nested) groups."""
    if isinstance(error, BaseExceptionGroup):
        for child in error.exceptions:
            yield from leaves(child)
    else:
        yield error


def chief(error: BaseException) -> BaseException:
    """The one error of a group that says most: a bug before an interruption before a typed error before the rest."""

    def weight(item: BaseException) -> int:
        if isinstance(item, KeyboardInterrupt):
            return 1
        if isinstance(item, errors.ChangefeedError):
            return 2
        if isinstance(item, BrokenPipeError):
            return 4
        if isinstance(item, OSError | trio.TooSlowError):
            return 3
        return 5 if isinstance(item, trio.Cancelled) else 0

    return min(leaves(error), key=weight)


def failed(error: BaseException, *, json: bool) -> int:
    """Say what went wrong; the exit status for it."""
    error = chief(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, BrokenPipeError):
        return DONE  # whoever read has seen enough
    if not isinstance(error, errors.ChangefeedError | OSError | trio.TooSlowError):
        traceback.print_exception(error)
    say_error(error, json=json)
    return status_of(error)


def status_of(error: BaseException) -> int:
    """The exit status that tells a script what kind of failure this was."""
    match error:
        case errors.InsecureListen() | PermissionError():
            return NOT_ALLOWED
        case errors.UsageError():
            return USAGE
        case errors.CannotResume() | errors.CursorDamaged() | errors.CursorOfOtherFeed():
            return CANNOT_RESUME
        case errors.PortInUse() | errors.NameTaken() | errors.TwoCoordinators():
            return FAILED
        case errors.Unavailable() | errors.LogUnavailable() | errors.OutcomeUnknown() | trio.TooSlowError():
            return UNREACHABLE
        case _:
            return FAILED
