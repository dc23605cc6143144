"""`changefeed simulate` as people and programs use it: processes, exit statuses, sentences, JSON lines, Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from changefeed.cli.parser import parse
from changefeed.cli.simulate import choose
from changefeed.errors import BadConfig
from changefeed.simulation.case import Case, read_case
from changefeed.simulation.plan import Plan, Step

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE_S = 60


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}
    return {**kept, "PYTHONPATH": str(HERE)}


def simulate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "changefeed.cli", "simulate", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=cwd,
        env=environment(),
    )


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.processes
def test_seeds_that_hold_end_with_a_table_and_status_0(tmp_path: Path) -> None:
    done = simulate("--tier", "fake_tier:Healthy", "--seeds", "30", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tier fake_tier:Healthy, 30 seeds (0 to 29); " in done.stdout
    assert "seeds run twice, under other hash seeds: 1, all the same" in done.stdout
    assert any(line.split() == ["an", "expiry", "15", "50.00%", "15"] for line in done.stdout.splitlines())
    assert done.stdout.splitlines()[-1] == "30 seeds, 0 failed"
    assert done.stderr == "tier fake_tier:Healthy, 30 seeds from 0, 2 at a time\n"


@pytest.mark.processes
def test_a_failure_says_all_that_it_takes_and_its_command_replays_it(tmp_path: Path) -> None:
    """Seed, plan, promise, diagram, versions; the command that it prints fails in the same way."""
    done = simulate("--tier", "fake_tier:Fake", "--seeds", "5", "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 1
    for part in (
        "SEED 3 of tier fake_tier:Fake broke a promise",
        "trio ",
        "  C1: k2 was acknowledged at 1:3 and is not in the log",
        "plan: 8 steps",
        "3.333 s  kill leader for 1.500 s",
        "time s  nem    a      b      p0     p1     s0     s1",
        "p0 gets its receipt 1:3",
        "a second process with another hash seed saw the same",
        "FAILED: 1 of 5 seeds failed: 3",
    ):
        assert part in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("replay it:")]
    words = shlex.split(command.removeprefix("replay it:"))
    assert words[:2] == ["changefeed", "simulate"]
    again = simulate(*words[2:], cwd=tmp_path)
    assert again.returncode == 1
    assert "SEED 3 of tier fake_tier:Fake broke a promise" in again.stdout


@pytest.mark.processes
def test_json_has_one_object_per_line(tmp_path: Path) -> None:
    done = simulate("--tier", "fake_tier:Fake", "--seeds", "5", "--jobs", "1", "--json", cwd=tmp_path)
    failure, summary = records(done.stdout)
    assert (failure["event"], failure["seed"], failure["broken"][0]["promise"]) == ("failure", 3, "C1")
    assert failure["command"] == "changefeed simulate --tier fake_tier:Fake --seed 3"
    assert len(failure["plan"]["steps"]) == 8
    assert failure["history"][0]["f"] == "elected"
    assert failure["reproduced"] is True
    assert (summary["event"], summary["ok"], summary["seeds"], summary["failed"]) == ("summary", False, 5, [3])
    assert summary["met"]["a kill"]["seeds"] == 5
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.processes
def test_trace_prints_one_seeds_history(tmp_path: Path) -> None:
    """As lines for people, or record by record; then what it came to."""
    done = simulate("--tier", "fake_tier:Fake", "--seed", "4", "--trace", cwd=tmp_path)
    assert done.returncode == 0
    assert "a/1         elected     epoch=1 term=aa why=start" in done.stdout
    assert "seed 4: every promise held; 12.5 virtual s; digest " in done.stdout
    done = simulate("--tier", "fake_tier:Fake", "--seed", "3", "--trace", "--json", cwd=tmp_path)
    told = records(done.stdout)
    assert [record["f"] for record in told[:-1]][-1] == "log"
    assert told[-1]["event"] == "failure"
    assert done.returncode == 1


@pytest.mark.processes
def test_shrink_writes_a_smaller_plan_that_fails_by_itself(tmp_path: Path) -> None:
    """The file names tier, seed and promise; --plan FILE alone runs it."""
    done = simulate("--tier", "fake_tier:Fake", "--seed", "3", "--shrink", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 1
    path = tmp_path / "simulate-fake_tier-Fake-3.json"
    case = read_case(path)
    assert [step.kind for step in case.plan.steps] == ["kill", "expire"]
    assert (case.tier, case.seed, case.rest["promise"]) == ("fake_tier:Fake", 3, "C1")
    assert "steps left out: 8 steps" in done.stdout
    assert f"--seed 3 --plan {path.name}" in done.stdout
    again = simulate("--plan", path.name, cwd=tmp_path)
    assert again.returncode == 1
    assert "plan: 2 steps" in again.stdout


@pytest.mark.processes
def test_ctrl_c_prints_what_was_reached_and_leaves_no_process(tmp_path: Path) -> None:
    """Status 130, the table, and workers that are gone with the program."""
    command = [sys.executable, "-m", "changefeed.cli", "simulate", "--tier", "fake_tier:Fake", "--minutes", "10"]
    process = subprocess.Popen(
        [*command, "--jobs", "2", "--json"], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment()
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())  # a failure: it is at work
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert first["event"] == "failure"
    summary = records(rest)[-1]
    assert summary["event"] == "summary"
    assert summary["seeds"] >= 1
    assert summary["stopped"] in ("Ctrl-C", "10 failures are enough to look at")


@pytest.mark.processes
def test_workers_end_with_the_program_that_started_them(tmp_path: Path) -> None:
    """Also when that is killed and a seed hangs: its standard input closes."""
    pid_file = tmp_path / "pids"
    tier = tmp_path / "hanging_tier.py"
    tier.write_text(
        "import os, time\nfrom fake_tier import Healthy\n"
        "class Hangs(Healthy):\n    def run(self, seed, plan=None):\n"
        f"        open({str(pid_file)!r}, 'a').write(f'{{os.getpid()}}\\n')\n        time.sleep(600)\n"
    )
    env = {**environment(), "PYTHONPATH": f"{HERE}:{tmp_path}"}
    command = [sys.executable, "-m", "changefeed.cli", "simulate", "--tier", "hanging_tier:Hangs", "--seed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, env=env)
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
    worker = int(pid_file.read_text())
    process.kill()
    process.wait()
    wait_until(lambda: not is_running(worker))


def wait_until(true: Any) -> None:
    import time

    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.processes
def test_it_runs_from_what_a_wheel_holds(tmp_path: Path) -> None:
    """The package changefeed alone is enough: no simulations/, no tests, no pytest, no hypothesis."""
    packed = tmp_path / "changefeed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted((ROOT / "changefeed").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(ROOT))
    place = tmp_path / "place"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(place)
    code = (
        "import sys; import changefeed.cli as cli, changefeed; assert sys.argv[1] in changefeed.__file__;"
        "status = cli.main(['simulate', '--seeds', '2', '--first', '7', '--jobs', '1', '--json']);"
        "print([name for name in ('simulations', 'pytest', 'hypothesis') if name in sys.modules]); sys.exit(status)"
    )
    env = {**environment(), "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=env
    )
    *told, modules = done.stdout.splitlines()
    summary = json.loads(told[-1])
    assert summary["seeds"] == 2
    assert not [record for line in told[:-1] if "crash" in str((record := json.loads(line)).get("broken"))]
    assert done.returncode == (0 if summary["ok"] else 1), done.stderr[-2000:]
    assert modules == "[]"


# ---- what is asked for


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tier", "clutser"], "there is no tier 'clutser'; did you mean 'cluster'?"),
        (["--tier", "a b:c"], "there is no tier 'a b:c'"),
        (["--seeds", "0"], "whole number from 1"),
        (["--seed", "-3"], "whole number from 0"),
        (["--seed", "1.5"], "whole number from 0"),
        (["--first", "old"], "whole number from 0"),
        (["--minutes", "0"], "more than 0"),
        (["--minutes", "1e9"], "at most 10,080"),
        (["--jobs", "100000"], "from 1 to 1,024"),
        (["--limit", "0s"], "more than 0"),
        (["--seed", "3", "--seeds", "4"], "--seed and --seeds exclude each other"),
        (["--seed", "3", "--first", "4"], "--seed and --first exclude each other"),
        (["--seed", "3", "--minutes", "4"], "--seed and --minutes exclude each other"),
        (["--trace", "--shrink", "--seed", "3"], "--trace and --shrink exclude each other"),
        (["--trace"], "--trace prints one seed"),
        (["--sede", "3"], "has no flag --sede; did you mean '--seed'?"),
        (["--plan", "/no/such/file.json"], "cannot read the plan /no/such/file.json"),
        (["7"], "one word too many"),
    ],
)
def test_mistakes_get_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(BadConfig) as caught:
        choose(parse(["simulate", *words], {})[1])
    assert sentence in str(caught.value)


@pytest.mark.processes
def test_a_plan_that_the_tier_refuses_is_a_usage_mistake(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    Case(Plan((Step(1, "sneeze", "a"),)), "fake_tier:Fake", 5).write(path)
    done = simulate("--plan", str(path), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "changefeed: the plan cannot be run: there is no fault 'sneeze' (bad-config)\n"


def test_what_the_flags_mean(tmp_path: Path) -> None:
    """A file gives tier and seed where no flag does; --minutes without --seeds is bounded by time only."""
    path = tmp_path / "case.json"
    plan = Plan((Step(1, "kill", "a"),))
    Case(plan, "stack", 9).write(path)

    def order(*words: str) -> tuple[Any, ...]:
        found = choose(parse(["simulate", *words], {})[1])[1]
        return found.tier, found.first, found.seeds, found.seconds, found.plan

    assert order() == ("cluster", 0, 100, None, None)
    assert order("--seed", "4") == ("cluster", 4, 1, None, None)
    assert order("--minutes", "2") == ("cluster", 0, None, 120.0, None)
    assert order("--minutes", "90s", "--seeds", "7", "--first", "3") == ("cluster", 3, 7, 90.0, None)
    assert order("--plan", str(path)) == ("stack", 9, 1, None, plan)
    assert order("--plan", str(path), "--tier", "cluster", "--seed", "2") == ("cluster", 2, 1, None, plan)
    assert order("--plan", str(path), "--seeds", "5") == ("stack", 0, 5, None, plan)
    assert order("--trace", "--seeds", "1", "--first", "6") == ("cluster", 6, 1, None, None)
    assert order("--first", "new")[1] >= 10**6


@pytest.mark.processes
def test_the_script_in_a_checkout_is_the_same_command(tmp_path: Path) -> None:
    """simulations/failover.py takes what `changefeed simulate` takes, from any folder."""
    command = [sys.executable, str(ROOT / "simulations" / "failover.py"), "--tier", "fake_tier:Healthy", "--seeds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 seeds, 0 failed"
