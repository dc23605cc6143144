"""A ZooKeeper client that cannot come back is replaced, also where the one made in its place cannot either."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from changefeed.coordination.zookeeper import _ours
from changefeed.coordination.zookeeper_recipe import ZookeeperCoordinator
from changefeed.errors import CoordinatorUnavailable
from changefeed.ports import World
from changefeed.settings import Settings


class FakeClient:
    """A client that is connected when it is told so."""

    def __init__(self, newest_seen: int = 0) -> None:
        self.connected = self.ended = self.closed = False
        self.newest_seen = newest_seen
        self.changed_at = trio.current_time()
        self.session = f"session {id(self)}"

    def check(self) -> None:
        pass

    def sync(self, path: str) -> FakeClient:
        return self

    async def get(self) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True


def test_a_spare_client_that_cannot_connect_either_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were connected before the servers' data was wiped, and both are refused for ever since (chaos, round 1 of
    seed 1): the instance had no coordinator any more."""

    async def main() -> None:
        coordinator: Any = ZookeeperCoordinator("zk://127.0.0.1:1/feeds", Settings(), world=World())
        made: list[FakeClient] = []

        def make() -> FakeClient:
            made.append(FakeClient())
            return made[-1]

        monkeypatch.setattr(coordinator, "_new_client", make)
        first = coordinator._client = FakeClient(newest_seen=9)
        for _ in range(100):
            if coordinator._spare is not None:
                # The first spare saw the old data for a moment; a later one is let in by the wiped servers.
                coordinator._spare.newest_seen = 9 if len(made) == 1 else 1
                coordinator._spare.connected = len(made) > 1
            await coordinator._keep_once()
            await trio.sleep(0.2)
            if coordinator._client is not first:
                break
        assert len(made) == 2 and coordinator._client is made[1]
        assert first.closed and made[0].closed and not made[1].closed

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_client_that_cannot_match_an_answer_is_an_unavailable_coordinator() -> None:
    """A ZooKeeper server without quorum left an answer out; kazoo's error must not look like a fault of our own, with a
    traceback (chaos round 13 of 2a443f1)."""
    error = _ours(RuntimeError("xids do not match, expected %r received %r", 13, 14))
    assert isinstance(error, CoordinatorUnavailable)
    assert "gave up" in str(error)
