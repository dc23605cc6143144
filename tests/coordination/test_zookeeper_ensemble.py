"""The ensemble that tests and simulations start: it comes up, can be hurt, and never outlives its owner."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from changefeed.testing import zookeeper_ensemble
from changefeed.testing.zookeeper_ensemble import EnsembleError, ZookeeperEnsemble

OWNER = """
import sys
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble
ensemble = ZookeeperEnsemble(1)
ensemble.start()
print(ensemble.pid(0), ensemble.folder, flush=True)
sys.stdin.read()
"""


def test_missing_java_is_said_with_the_packages_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is started."""
    monkeypatch.setattr(zookeeper_ensemble, "JAVA_FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    with pytest.raises(EnsembleError, match=r"lacks zookeeper\.jar.*apt-get install .*zookeeper"):
        ZookeeperEnsemble()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EnsembleError, match=r"no Java.*default-jre-headless"):
        ZookeeperEnsemble()


@pytest.mark.zookeeper
def test_servers_are_killed_frozen_and_started_again(tmp_path: Path) -> None:
    """Three servers on loopback; two are a quorum, one is none; a stopped one is another process afterwards."""
    with ZookeeperEnsemble(folder=tmp_path / "zk") as ensemble:
        assert ensemble.connect_string.count("127.0.0.1:") == 3
        assert ensemble.url("/x") == f"zk://{ensemble.connect_string}/x"
        first, pids = ensemble.leader(), [ensemble.pid(index) for index in range(3)]
        assert sorted(ensemble.mode(index) for index in range(3)) == ["follower", "follower", "leader"]
        ensemble.stop(first)
        assert ensemble.mode(first) == ""
        ensemble.restart(first)
        assert ensemble.pid(first) not in pids and ensemble.mode(first) in ("follower", "leader")
        ensemble.pause(first)
        assert ensemble.mode(first) == ""
        ensemble.resume(first)
        ensemble.restart_all()
        ensemble.leader()
        ensemble.kill_all()
        with pytest.raises(EnsembleError, match="no server leads"):
            ensemble.leader()
    assert (tmp_path / "zk").exists(), "a folder that was given is kept"


@pytest.mark.zookeeper
def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the server itself said."""
    monkeypatch.setattr(ZookeeperEnsemble, "_config", lambda self, server: "nonsense=\n")
    with pytest.raises(EnsembleError, match=r"server 1 ended: .*(dataDir|Invalid)"):
        ZookeeperEnsemble(1, folder=tmp_path).start()


@pytest.mark.zookeeper
def test_servers_do_not_outlive_a_killed_owner() -> None:
    """SIGKILL of the process that started them ends them and removes their folder."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdin is not None
    pid, folder = owner.stdout.readline().split()
    os.kill(int(pid), 0)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    owner.stdin.close()
    deadline = time.monotonic() + 20
    while Path(folder).exists():
        assert time.monotonic() < deadline, "the watchdog did not remove the folder"
        time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int(pid), 0)
            time.sleep(0.02)
