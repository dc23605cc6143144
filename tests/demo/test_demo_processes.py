"""The demo and the sandbox, run as people run them, small."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.processes

CHANGEFEED = [sys.executable, "-m", "changefeed.cli"]
PATIENCE_S = 120


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}


def demo(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**clean_environment(), **more}
    return subprocess.run(
        [*CHANGEFEED, "demo", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, env=env
    )


def test_a_small_demo_is_clean_and_can_be_judged_again(tmp_path: Path) -> None:
    """The leader is killed while changes are in flight; the records alone give the same verdict afterwards."""
    keep = tmp_path / "kept"
    done = demo("--at-least", "400", "--kills", "2", "--kill-every", "800ms", "--keep", str(keep), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    verdict = told[-1]
    assert verdict["clean"] and verdict["trees_equal"] == "3 of 3"
    assert verdict["kills_counted"] >= 1 and verdict["epochs"] >= 2
    assert {record.get("event") for record in told} >= {"history", "started", "kill", "late", "published"}
    judge = Path(sys.modules["changefeed"].__file__ or "").parent / "demo" / "verdict.py"
    # On its own: nothing of ours can be imported, and the verdict is the same.
    again = subprocess.run(
        [sys.executable, "-I", "-S", str(judge), str(keep)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == verdict
    lines = (keep / "subscriber-late.jsonl").read_text().splitlines(keepends=True)
    del lines[7]
    (keep / "subscriber-late.jsonl").write_text("".join(lines))
    again = subprocess.run([sys.executable, str(judge), str(keep)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert again.returncode == 1 and json.loads(again.stdout)["lost"] == 1


def test_a_demo_tells_people_what_happens(tmp_path: Path) -> None:
    """A git repository that is too short is replaced, which is said; the verdict is the last line; nothing is left."""
    few = ("--at-least", "100", "--kills", "1", "--kill-every", "500ms")
    done = demo("--git", str(tmp_path), *few, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a made-up history stands in" in done.stderr
    assert re.search(r"kill 1: leader \w \(pid \d+\), \d+ changes in flight; receipts again after \d+ ms", done.stdout)
    assert done.stdout.rstrip().splitlines()[-1].startswith("verdict      CLEAN")
    assert not list(tmp_path.iterdir())


def test_a_demo_of_nothing_is_refused(tmp_path: Path) -> None:
    """No repository, and a folder that is in use, are usage mistakes."""
    done = demo("--git", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and "git cannot read" in done.stderr
    (tmp_path / "file").write_text("mine")
    done = demo("--keep", str(tmp_path))
    assert done.returncode == 2 and "is not empty" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def next_event(process: subprocess.Popen[str], wanted: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        record: dict[str, Any] = json.loads(line)
        if record["event"] == wanted:
            return record
    raise AssertionError(f"it ended before {wanted}")


def test_the_sandbox_runs_until_ctrl_c(tmp_path: Path) -> None:
    """Lines that can be pasted; a killed leader is replaced and started again; Ctrl-C leaves nothing behind."""
    env = {**clean_environment(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*CHANGEFEED, "dev", "--json"], stdout=subprocess.PIPE, text=True, env=env)
    try:
        ready = next_event(process, "ready")
        assert len(ready["instances"]) == 3
        tail = [*CHANGEFEED, "tail", "demo", "--start", ready["position"], "--count", "2", "-s", ready["servers"]]
        done = subprocess.run(tail, capture_output=True, text=True, timeout=PATIENCE_S, env=env)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr
        os.kill(ready["pid"], signal.SIGKILL)
        started = next_event(process, "started")
        assert started["instance"] == ready["leader"]
        pids = [instance["pid"] for instance in ready["instances"].values()] + [started["pid"]]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert not list(tmp_path.glob("changefeed-*"))
    wait_gone(pids)


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a process of the sandbox is left"
        time.sleep(0.05)


def test_a_sandbox_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """It cannot clean up; its instances notice that it is gone."""
    env = {**clean_environment(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*CHANGEFEED, "dev", "--json"], stdout=subprocess.PIPE, text=True, env=env)
    try:
        ready = next_event(process, "ready")
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    wait_gone([instance["pid"] for instance in ready["instances"].values()])


def test_the_lines_that_the_sandbox_prints_work_when_pasted(tmp_path: Path) -> None:
    """In a shell of its own, one after the other, as they stand there."""
    env = {**clean_environment(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*CHANGEFEED, "dev"], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while len(lines) < 6:
            line = process.stdout.readline()
            assert line, "it ended"
            if line.startswith("  "):
                lines.append(line.strip())
        server, tail, publish, status, kill, resume = lines
        script = [
            "set -eu",
            server,
            f"{tail} --count 1 > followed &",
            "sleep 1",  # so that it follows before the next line; the sample publisher would do too
            publish,
            status,
            "wait",
            kill,
            resume.replace("#", "--count 2 #"),
            publish,
        ]
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)], capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, env=env
        )
        assert done.returncode == 0, done.stderr
        assert len((tmp_path / "followed").read_text().splitlines()) == 1
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert [sorted(record)[0] for record in told] == ["position", "feeds", "body", "body", "position"], done.stdout
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
