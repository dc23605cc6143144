"""Three hosts with their own addresses, in network namespaces: a slice of the step "hosts" of `make proof-postgres`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulations import postgres_hosts as hosts
from simulations.postgres_hosts_report import longest

pytestmark = [pytest.mark.postgresql, pytest.mark.processes]

SCRIPT = Path(hosts.__file__).resolve()
SECOND = 10**9


def test_a_leader_that_alone_cannot_reach_a_part(tmp_path: Path) -> None:
    """Without ZooKeeper it leads on, since it holds the log's fence; without PostgreSQL another leads, in time. All
    that was acknowledged is in the log once, and reached each subscriber once and in order."""
    lacking = hosts.missing()
    if lacking:
        pytest.skip(lacking)
    said = tmp_path / "said.json"
    command = [sys.executable, str(SCRIPT), "--cuts", "zookeeper,postgresql", "--hold", "7"]
    done = subprocess.run(
        [*command, "--json", str(said)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    report = json.loads(said.read_text())
    zookeeper, postgresql = report["cuts"]
    assert report["clean"] and report["acked"] > 100 and report["delivered"] >= 3 * report["acked"]
    assert zookeeper["epochs"] == 0 and zookeeper["packets"] > 0
    assert postgresql["epochs"] >= 1 and postgresql["after"] != postgresql["before"] and postgresql["packets"] > 0


def test_the_longest_time_without_receipts() -> None:
    """Of those that touch the span; to its end behind the last receipt, and all of it without any."""
    assert longest([0, 1 * SECOND, 4 * SECOND, 5 * SECOND, 20 * SECOND], 2 * SECOND, 6 * SECOND) == 3.0
    assert longest([0, 1 * SECOND], 2 * SECOND, 6 * SECOND) == 5.0
    assert longest([], 2 * SECOND, 6 * SECOND) == 4.0
    assert longest([9 * SECOND], 2 * SECOND, 6 * SECOND) == 4.0
