"""A slice of the long run: real processes, real faults, one history, all checkers silent; nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulations.chaos import sandbox

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "simulations" / "chaos.py"


def processes_with(text: str) -> list[int]:
    """Process ids whose command line holds that."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


@pytest.mark.processes
def test_a_round_with_the_file_coordinator_is_clean(tmp_path: Path) -> None:
    """Leader kills, freezes, errors of the disk, cut networks where they can be made, killed clients, garbage."""
    wanted = {
        "kill-leader": 3, "freeze-leader": 1, "sync-error-after": 1, "kill-after-sync": 1, "kill-subscriber": 1,
        "kill-publisher": 1, "garbage": 1, "partition": 1,
    }  # fmt: skip
    kept, said = tmp_path / "kept", tmp_path / "said.json"
    command = [
        sys.executable, str(SCRIPT), "--coordinator", "file", "--rounds", "3", "--round-seconds", "18", "--rate", "400",
        "--only", ",".join(wanted), "--want", ",".join(f"{name}={count}" for name, count in wanted.items()),
        "--keep", str(kept), "--json", str(said), "--seed", "42",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    report = json.loads(said.read_text())
    assert report["ok"] and not report["missing"]
    assert report["totals"]["acked-events"] > 1000 and report["totals"]["leader-changes"] >= 4
    for name, count in wanted.items():
        if name in report["unavailable"]:
            assert name == "partition" and sandbox.missing(), "only this needs more than any machine has"
        else:
            assert report["kinds"][name]["effects"]["hit"] >= count
    assert report["kinds"]["flip-byte"]["effects"]["damage-detected"] == len(report["rounds"])
    assert not kept.exists(), "a clean round leaves nothing"
    assert not processes_with(str(kept))


@pytest.mark.processes
def test_a_terminated_run_takes_everything_with_it(tmp_path: Path) -> None:
    """SIGINT in the middle: a report of what there is, exit status 130, no process left."""
    kept = tmp_path / "kept"
    command = [sys.executable, str(SCRIPT), "--coordinator", "file", "--rounds", "1", "--round-seconds", "60",
               "--only", "kill-subscriber", "--keep", str(kept)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        history = kept / "round-1" / "history" / "nemesis.jsonl"
        while process.poll() is None and not (history.exists() and '"fault"' in history.read_text()):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out[-2000:]
    assert "interrupted; what there is" in out
    assert not processes_with(str(kept))
