"""One real ZooKeeper ensemble for all tests of this folder that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble


@pytest.fixture(scope="session")
def ensemble() -> Iterator[ZookeeperEnsemble]:
    """Three servers. Who stops one must start it again: the next test finds them all serving."""
    with ZookeeperEnsemble() as servers:
        yield servers
