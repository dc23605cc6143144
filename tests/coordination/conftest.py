"""One real ZooKeeper ensemble for all tests of this folder that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble


@pytest.fixture(scope="session")
def servers() -> Iterator[ZookeeperEnsemble]:
    with ZookeeperEnsemble() as started:
        yield started


@pytest.fixture
def ensemble(servers: ZookeeperEnsemble) -> Iterator[ZookeeperEnsemble]:
    """Three servers that serve, whatever the test before did to them."""
    if sorted(servers.mode(index) for index in range(servers.size)) != ["follower", "follower", "leader"]:
        servers.restart_all()
    yield servers
