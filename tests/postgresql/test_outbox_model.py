"""The outbox beside a model: transactions that write, commit and roll back in any order, two leaders that race."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from outbox_hand import FEED, groups, take

from changefeed.errors import Fenced
from changefeed.log import FeedLog
from changefeed.log.urls import open_log
from changefeed.testing.log_scribe import Scribe, everything
from changefeed.testing.postgresql_server import PostgresqlServer

pytestmark = pytest.mark.postgresql

WRITERS = 4
KEYS = ("a", "b", "c")
_numbers = itertools.count(1)


class Outbox(RuleBasedStateMachine):
    """held: which writer has published a key in its open transaction: whoever else wants it would wait for it."""

    server: PostgresqlServer

    def __init__(self) -> None:
        super().__init__()
        name = f"model_{next(_numbers)}"
        self.server.execute(f"CREATE DATABASE {name} TEMPLATE laid_out")
        self.url = self.server.url(name)
        self.writers = [psycopg.connect(self.url) for _ in range(WRITERS)]
        self.open: list[list[str]] = [[] for _ in range(WRITERS)]
        self.held: dict[str, int] = {}
        self.committed: list[list[str]] = []
        self.epoch = 0
        self.count = 0

    def run(self, what: Any) -> Any:
        """One leader's step, with a log of its own: whatever a process remembers does not matter here."""

        async def main() -> Any:
            store = open_log(self.url)
            log = await store.open(FEED)
            try:
                return await what(log)
            finally:
                await log.aclose()
                await store.aclose()

        return trio.run(main)

    @initialize()
    def elect_first(self) -> None:
        self.elect()

    @rule()
    def elect(self) -> None:
        """Another leader; the one before does not know."""
        self.epoch += 1

        async def fence(log: FeedLog) -> None:
            await Scribe.fencing(log, self.epoch, opens=False)

        self.run(fence)

    @rule(writer=st.integers(0, WRITERS - 1), key=st.sampled_from(KEYS))
    def publish(self, writer: int, key: str) -> None:
        if self.held.get(key, writer) != writer:
            return
        self.held[key] = writer
        self.count += 1
        mark = f"{key}{self.count}"
        self.open[writer].append(mark)
        self.writers[writer].execute(
            "SELECT changefeed.publish(%s, 'vm', %s, 'update', NULL, %s::jsonb)", (FEED, key, f'"{mark}"')
        )

    @rule(writer=st.integers(0, WRITERS - 1), commits=st.sampled_from((True, True, True, False)))
    def end(self, writer: int, commits: bool) -> None:
        if commits:
            self.writers[writer].commit()
            if self.open[writer]:
                self.committed.append(self.open[writer])
        else:
            self.writers[writer].rollback()
        self.open[writer] = []
        self.held = {key: holder for key, holder in self.held.items() if holder != writer}

    @rule(rows=st.integers(1, 6))
    def move(self, rows: int) -> None:
        """The leader moves what it finds among the lowest so many rows."""
        self.run(lambda log: self._move(log, self.epoch, rows))

    @precondition(lambda self: self.epoch > 1)
    @rule()
    def move_deposed(self) -> None:
        """The leader before has found something too, and cannot take it."""

        async def moved(log: FeedLog) -> None:
            assert log.outbox is not None
            if await log.outbox.waiting(2**20) is not None:
                with pytest.raises(Fenced):
                    await self._move(log, self.epoch - 1, 100)

        self.run(moved)

    async def _move(self, log: FeedLog, epoch: int, rows: int) -> None:
        from changefeed.log.postgresql import outbox

        scribe = Scribe(log, await log.look())
        scribe.epoch, scribe.term = epoch, f"{epoch:08x}"
        scribe.numbers["outbox", 7] = await log.last_number("outbox", 7) or 0
        before, outbox.ROWS = outbox.ROWS, rows  # type: ignore[misc]
        try:
            await take(log, scribe)
        finally:
            outbox.ROWS = before  # type: ignore[misc]

    @invariant()
    def what_is_in_the_feed_was_committed_whole_and_in_order(self) -> None:
        found = self.run(everything)
        moved = [[change.body for change in group] for entry in found for group in groups(entry)]
        # Whole transactions, each once.
        assert all(group in self.committed for group in moved), moved
        assert len({tuple(group) for group in moved}) == len(moved)
        # Each key in the order of commits, and nothing of it left out.
        for key in KEYS:
            told = [mark for group in moved for mark in group if mark[0] == key]
            order = [mark for group in self.committed for mark in group if mark[0] == key]
            assert told == order[: len(told)]

    def teardown(self) -> None:
        for writer in range(WRITERS):
            self.end(writer, True)
            self.writers[writer].close()
        self.elect()
        for _ in range(len(self.committed) + 1):
            self.run(lambda log: self._move(log, self.epoch, 100))
        found = self.run(everything)
        moved = [[change.body for change in group] for entry in found for group in groups(entry)]
        assert sorted(moved) == sorted(self.committed)


def test_the_outbox_keeps_its_order_whatever_commits_when(server: PostgresqlServer) -> None:
    """Each committed transaction once and whole, each key in the order of commits; a deposed leader takes nothing."""
    Outbox.server = server
    case = Outbox.TestCase
    case.settings = settings(
        max_examples=5,
        stateful_step_count=20,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()
