"""Bugs that the simulation, the explorer or the chaos found: each file of simulations/found/ is red in the commit
before, and green in the commit that mended it.

A file is JSON: tier, seed, plan, before, after (commits), title, symptom. Also, where they are needed:

    command    what the commits themselves understand, as words behind `python`; {file} is this file. Without it the
               seed runs with its plan in the tier of that name (changefeed.simulation.tiers), as each commit has it
    lay        {"commit", "paths"}: these paths of that commit are laid over both: where the simulator itself changed
               between them, the seed means the same run only under one of them; never a path that was mended
    tokens     words that the telling line of a command's output holds
    limit_s    seconds after which a run counts as hanging, which is red (default 60)
    promise    the broken promise that must be seen in the commit before (default: any)
    replay     how to see it by hand, in words

Each commit is checked out into a worktree of its own in a temporary folder, and removed behind it; the checkout that
this runs from is not touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.proof.rows import Row

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "simulations" / "found"
LIMIT_S = 60.0
#: What must be proved of at least so many bugs.
BUGS = 3

#: What programs say that are not there, or do not know what they are asked.
_NO_PROGRAM = (
    "No module named",
    "unrecognized arguments",
    "file or directory not found",
    "no tests ran",
    "can't open file",
)

#: Runs in the worktree; says what broke, as JSON, and exits with 1 if something did.
_RUN = """
import json, pathlib, sys
import changefeed
place = pathlib.Path.cwd().resolve()
assert pathlib.Path(changefeed.__file__).resolve().is_relative_to(place), "the code of another checkout would run"
from changefeed.simulation.plan import Plan
from changefeed.simulation.tiers import tier
found = json.loads(pathlib.Path(sys.argv[1]).read_text())
plan = Plan.from_json(json.dumps(found["plan"])) if found.get("plan") else None
outcome = tier(found["tier"]).run(found["seed"], plan)
print(json.dumps([[item.promise, item.says] for item in outcome.broken]))
sys.exit(1 if outcome.broken else 0)
"""


@dataclass(frozen=True)
class Found:
    """One file of simulations/found/."""

    path: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def title(self) -> str:
        return str(self.facts.get("title", self.name))

    def check(self) -> None:
        """Raises ValueError for a file that does not say what it must."""
        for key in ("tier", "before", "after", "title", "symptom"):
            if not isinstance(self.facts.get(key), str) or not self.facts[key]:
                raise ValueError(f"{self.path.name} must name {key}, a text")
        if not isinstance(self.facts.get("seed"), int) and "command" not in self.facts:
            raise ValueError(f"{self.path.name} must name a seed, or a command")


@dataclass(frozen=True)
class Seen:
    """What a commit showed: red, and the last that it said."""

    red: bool
    says: str
    seconds: float
    promises: frozenset[str] = frozenset()
    wrong: bool = False  # neither red nor green: it could not be run


def all_found() -> list[Found]:
    """Every bug that is kept, by name. Raises ValueError for a file that is no record of one."""
    found = []
    for path in sorted(FOUND.glob("*.json")):
        try:
            facts = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path.name} is not JSON: {error}") from error
        each = Found(path, facts)
        each.check()
        found.append(each)
    return found


def git(*words: str) -> str:
    """In this clone. Raises RuntimeError with what git said."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words[:4])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A worktree of that commit in a temporary folder; gone behind the block. Raises RuntimeError where the clone does
    not hold the commit."""
    with tempfile.TemporaryDirectory(prefix="changefeed-seeds-") as folder:
        place = Path(folder) / "tree"
        try:
            git("cat-file", "-e", f"{commit}^{{commit}}")
        except RuntimeError as error:
            raise RuntimeError(f"this clone does not hold commit {commit}: fetch its whole history") from error
        git("worktree", "add", "--detach", "--force", str(place), commit)
        try:
            yield place
        finally:
            git("worktree", "remove", "--force", str(place))


def look(found: Found, commit: str) -> Seen:
    """Run a bug's seed in a commit."""
    facts = found.facts
    words: Sequence[str] = facts.get("command") or ["-c", _RUN, "{file}"]
    limit_s = float(facts.get("limit_s", LIMIT_S))
    begun = time.monotonic()
    with checked_out(commit) as place, tempfile.TemporaryDirectory(prefix="changefeed-seed-") as folder:
        if lay := facts.get("lay"):
            git("-C", str(place), "checkout", "--quiet", lay["commit"], "--", *lay["paths"])
        copy = Path(folder) / found.path.name
        copy.write_text(json.dumps(facts))
        command = [sys.executable, *(word.replace("{file}", str(copy)) for word in words)]
        env = {key: value for key, value in os.environ.items() if not key.startswith(("CHANGEFEED_", "PYTHONPATH"))}
        env["PYTHONPATH"] = str(place)  # before what is installed
        try:
            done = subprocess.run(
                command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return Seen(True, f"no end within {limit_s:g} s", time.monotonic() - begun, frozenset({"hang"}))
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    return judged(facts, done.returncode, lines, time.monotonic() - begun)


def judged(facts: dict[str, Any], code: int, lines: Sequence[str], seconds: float) -> Seen:
    """What a run's exit status and output mean."""
    last = lines[-1].strip() if lines else "it printed nothing"
    if "command" in facts:
        tokens = facts.get("tokens", [])
        return Seen(code != 0, _telling(lines, tokens) or last, seconds, wrong=_no_program(lines))
    try:
        broken = json.loads(last)
        promises = frozenset(promise for promise, _ in broken)
        says = "; ".join(f"{promise}: {says}" for promise, says in broken[:2]) or "every promise held"
    except (ValueError, TypeError):
        return Seen(True, last, seconds, wrong=True)
    return Seen(code != 0, says, seconds, promises)


def _telling(lines: Sequence[str], tokens: Sequence[str]) -> str:
    """The first line that holds one of these words: simulators of old print much else."""
    return next((line.strip() for line in lines if any(token in line for token in tokens)), "")


def _no_program(lines: Sequence[str]) -> bool:
    """The command is none of this commit: that is no bug that was found."""
    return any(sign in line for line in lines for sign in _NO_PROGRAM)


def prove(found: Found) -> Iterator[Row]:
    """Two looks, one row."""
    before, after = found.facts["before"], found.facts["after"]
    try:
        red, green = look(found, before), look(found, after)
    except RuntimeError as error:
        yield Row(f"{found.name}: {found.title}", str(error)[:200], "red, then green", False)
        return
    wanted = found.facts.get("promise")
    ok = red.red and not red.wrong and not green.red and not green.wrong
    if wanted and "command" not in found.facts:
        ok = ok and wanted in red.promises
    yield Row(
        f"{found.name}: {found.title}",
        f"{before} {'RED' if red.red else 'green'} ({red.says[:160]}); "
        f"{after} {'RED' if green.red else 'green'}" + (f" ({green.says[:160]})" if green.red else ""),
        "red before, green after",
        ok,
    )


def rows(count: int | None = None, names: Sequence[str] = ()) -> Iterator[Row]:
    """A row per bug. count: only so many of them (the newest commits first, as their simulator is this one); names:
    only these."""
    found = all_found()
    chosen = [each for each in found if not names or each.name in names]
    if count is not None:
        chosen = sorted(chosen, key=lambda each: "command" in each.facts)[:count]
    for each in chosen:
        yield from prove(each)
    least = BUGS if count is None else min(BUGS, count)
    line = "bugs that were found by simulation, explorer or chaos, kept as files"
    yield Row(line, f"{len(found)}, {len(chosen)} of them run here", f"at least {least}", len(chosen) >= least)
