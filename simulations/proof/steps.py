"""The steps of `make proof-core` that are commands or tests of their own: what they print is judged here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from changefeed.simulation.tiers import tier
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble
from simulations.proof import simulated
from simulations.proof.rows import Row

ROOT = Path(__file__).resolve().parents[2]
#: What a history of the main job must hold at least.
FILE_CHANGES = 20_000
SEEDS = 200


def run(
    command: Sequence[str], *, cwd: Path = ROOT, env: dict[str, str] | None = None, limit_s: float
) -> tuple[int, str]:
    """Exit status and everything printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        timeout=limit_s,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout.decode(errors="replace")


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "printed nothing"


def clean_clone() -> Iterator[Row]:
    """`make demo` and `make test` in a fresh clone, with an empty environment but for who and where one is."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp")}
    for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE"):
        if name in os.environ:
            env[name] = os.environ[name]
    with tempfile.TemporaryDirectory(prefix="changefeed-clone-") as folder:
        clone = Path(folder) / "changefeed"
        code, text = run(["git", "clone", "-q", str(ROOT), str(clone)], limit_s=60)
        if code:
            raise RuntimeError(text)
        begun = time.monotonic()
        code, text = run(["make", "demo"], cwd=clone, env=env, limit_s=900)
        verdict = next((line for line in text.splitlines() if line.startswith("verdict")), last_line(text))
        yield Row(
            "env -i, clean clone: make demo",
            f"exit {code}; {' '.join(verdict.split())}; {time.monotonic() - begun:.0f} s with set-up",
            "exit 0",
            code == 0,
        )
        begun = time.monotonic()
        code, text = run(["make", "test"], cwd=clone, env=env, limit_s=1800)
        yield Row(
            "env -i, clean clone: make test",
            f"exit {code}; {last_line(text)}; {time.monotonic() - begun:.0f} s",
            "exit 0",
            code == 0,
        )
        servers = [line for line in text.splitlines() if "ZooKeeper ensembles started" in line and "3 servers" in line]
        yield Row(
            "the tests started a real three-server ensemble",
            servers[0].strip() if servers else "no word of it",
            "started",
            bool(servers),
        )


def demo(git: Path | None, coordinator: str | None) -> Iterator[Row]:
    """The main job on a long history, judged by its verdict."""
    command = [sys.executable, "-m", "changefeed.cli", "demo", "--json", "--at-least", str(FILE_CHANGES)]
    command += ["--git", str(git)] if git is not None else []
    command += ["--coordinator", coordinator] if coordinator else []
    code, text = run(command, limit_s=600)
    verdict = json.loads(last_line(text))
    where = "ZooKeeper" if coordinator else "the file coordinator"
    kinds = ("lost", "skipped", "repeated", "reordered", "torn", "foreign", "unsettled")
    kept = {name: verdict[name] for name in kinds}
    yield Row(
        f"demo --git on {'a named clone' if git else 'a generated history'}, {where}",
        f"exit {code}; {verdict['changes']:,} file changes; {verdict['kills_counted']} counted kills; "
        f"trees {verdict['trees_equal']}; {', '.join(f'{name} {count}' for name, count in kept.items())}; "
        f"no receipts median {verdict['gap_ms_median']} ms, worst {verdict['gap_ms_worst']} ms",
        f"at least {FILE_CHANGES:,} changes and 10 kills, exact trees, 0 lost, 0 repeated",
        code == 0
        and verdict["clean"]
        and verdict["changes"] >= FILE_CHANGES
        and verdict["kills_counted"] >= 10
        and verdict["trees_equal"] == "3 of 3"
        and not any(kept.values()),
    )


def demo_both(git: Path | None) -> Iterator[Row]:
    yield from demo(git, None)
    with ZookeeperEnsemble() as ensemble:
        yield from demo(git, ensemble.url("/demo"))


def fence_race() -> Iterator[Row]:
    from simulations.proof.fence_race import figures

    for race in figures(100):
        yield Row(
            f"fence against a leader that appends without pause ({race.entries} x {race.bytes:,} bytes per append), "
            f"{race.rounds} times",
            f"median {race.median_ms:.1f} ms, worst {race.worst_ms:.1f} ms; {race.appended} appends raced, "
            f"{race.late} late; log {race.fault or 'whole'}",
            "worst 100 ms, 0 late",
            race.worst_ms <= 100 and race.late == 0 and not race.fault,
        )


def seeds() -> Iterator[Row]:
    """The cluster code under virtual time with simulated parts; the same seeds in processes with other hash seeds."""
    cluster = tier("cluster")
    failed: list[int] = []
    met: Counter[str] = Counter()
    for seed in range(SEEDS):
        outcome = cluster.run(seed)
        met.update(set(outcome.sightings))
        if outcome.broken:
            failed.append(seed)
            print(f"seed {seed}: {outcome.broken[0].promise}: {outcome.broken[0].says}", flush=True)
    missing = [name for name in cluster.wanted if not met[name]]
    yield Row(
        f"cluster code under virtual time, {SEEDS} seeds of drawn faults",
        f"{SEEDS} seeds, {len(failed)} failed{': ' + ', '.join(map(str, failed)) if failed else ''}; "
        f"never met: {', '.join(missing) or 'nothing of what must be'}",
        "0 failed",
        not failed,
    )
    yield from simulated.determinism(("cluster",))


def tests(line: str, *selection: str, limit: str = "all pass") -> Iterator[Row]:
    """A promise that tests hold: run exactly these."""
    code, text = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection], limit_s=900)
    yield Row(line, last_line(text), limit, code == 0 and " passed" in text)


def stranger() -> Iterator[Row]:
    """A JavaScript client that imports nothing of ours: graded, and through leader kills."""
    if shutil.which("node") is None:
        raise RuntimeError("Node.js is missing: apt-get install nodejs")
    client = ROOT / "tests" / "strangers" / "subscriber.mjs"
    lines = sum(1 for _ in client.open())
    command = ["node", "--experimental-websocket", str(client)]
    code, text = run([sys.executable, "-m", "changefeed.cli", "conformance", "--", *command], limit_s=300)
    yield Row(
        f"a JavaScript client of {lines} lines passes changefeed conformance",
        f"exit {code}; {last_line(text)}",
        "exit 0, at most 150 lines",
        code == 0 and lines <= 150,
    )
    yield from tests("the same client survives 10 leader kills", "tests/strangers", "-k", "kills")
