"""Run a module's changes: each in a forked child that imports the changed text and runs the tests until one fails.

The parent imports what the tests need of others (pytest, trio, hypothesis) and nothing of ours, so that a child starts
at once and everything of ours is imported as changed. Nothing on disk changes.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simulations.mutants.code.points import Point, points
from simulations.mutants.code.targets import Target
from simulations.mutants.patching import ROOT, Patch

#: A change that makes the tests take so much longer has been seen: they hang.
SLOWER: Final = 4
SPARE_S: Final = 15.0
#: The exit code of a child that could not even run pytest.
CHILD_FAILED: Final = 70
#: Imported once, before the children are forked.
SHARED: Final = (
    "pytest", "pytest_trio.plugin", "hypothesis", "hypothesis.stateful", "hypothesis.extra.pytestplugin", "trio",
    "trio.testing", "trio_websocket", "msgpack", "sqlite3", "jsonschema", "_hypothesis_pytestplugin", "json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tried:
    """One change and what became of it: "killed", "slow" (killed by the time limit), "survived", or "error" (the tests
    could not run)."""

    point: Point
    shown: str
    text: str
    outcome: str
    seconds: float


class BaselineFails(Exception):
    """The tests fail, or do not run, without any change."""


def source_of(module: str) -> bytes:
    return Patch(module, "", "").path.read_bytes()


def chosen(target: Target, source: bytes, seed: int) -> tuple[int, list[Point]]:
    """How many places there are, and those that are tried, in the order of the text."""
    every = list(points(source))
    if len(every) <= target.most:
        return len(every), every
    drawn = random.Random(f"{seed}-{target.module}").sample(range(len(every)), target.most)
    return len(every), [every[index] for index in sorted(drawn)]


def prepare() -> None:
    """What all children share. Raises RuntimeError if something of ours is imported already."""
    ours = [name for name in sys.modules if name.split(".")[0] == "changefeed"]
    if ours:
        raise RuntimeError(f"{ours[0]} is imported already: children would not see changes of it")
    for name in SHARED:
        importlib.import_module(name)
    from hypothesis import settings

    settings()  # what hypothesis loads when it is first used
    os.chdir(ROOT)


def _child(module: str, changed: bytes | None, tests: Sequence[str], log: Path) -> None:
    """In the child: run the tests and end with pytest's exit code."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with its parent
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(log.parent / "hypothesis")
    sys.dont_write_bytecode = True
    import pytest

    from simulations.mutants.patching import install

    if changed is not None:
        source = source_of(module).decode()
        # The whole text is one patch: it was cut out of the same bytes.
        install([Patch(module, source, changed.decode())])
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "--tb=short"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*arguments, f"--basetemp={log.parent / 'tmp'}", *tests]))
    sys.stdout.flush()
    os._exit(code)


def _run(
    module: str, changed: bytes | None, tests: Sequence[str], limit_s: float, log: Path
) -> tuple[int | None, float]:
    """(pytest's exit code, or None after the limit; seconds)."""
    begun = time.monotonic()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _child(module, changed, tests, log)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(CHILD_FAILED)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        took_s = time.monotonic() - begun
        if done:
            return os.waitstatus_to_exitcode(status), took_s
        if took_s > limit_s:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, took_s
        time.sleep(0.01)


def try_module(
    target: Target, *, seed: int, tell: Callable[[Tried], None] = lambda tried: None, only: Sequence[Point] = ()
) -> tuple[int, list[Tried]]:
    """How many places the module has, and what became of those that were tried. Raises BaselineFails."""
    source = source_of(target.module)
    total, some = chosen(target, source, seed)
    lines = source.decode().splitlines()
    tried = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "out.txt"
        code, base_s = _run(target.module, None, target.tests, 600.0, log)
        if code != 0:
            raise BaselineFails(f"{target.module}: its tests fail unchanged ({code}): {log.read_text()[-1500:]}")
        for point in only or some:
            limit_s = SPARE_S + SLOWER * base_s
            code, took_s = _run(target.module, point.apply(source), target.tests, limit_s, log)
            outcome = {0: "survived", None: "slow", 1: "killed", 2: "killed"}.get(code, "killed" if code else "error")
            if code in (3, 4, 5, CHILD_FAILED):
                # An import that fails ends pytest before any test: also a way to be seen, but say when it is ours.
                outcome = "killed" if "Error" in log.read_text() else "error"
            text = lines[point.line - 1].strip()
            tried.append(Tried(point, point.shown(source), text, outcome, took_s))
            tell(tried[-1])
    return total, tried
