"""A store beside the memory store, step by step: whatever hypothesis thinks of, both must answer alike.

    TestMine = lockstep_machine(make_store).TestCase

Needs hypothesis. Each machine opens one feed on a new place of both stores, under one seed, so that lineages, and with
them digests and positions, are equal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from changefeed.batch import Entry, batch_digest, chain
from changefeed.change import FeedSettings, Key, Position
from changefeed.errors import ChangefeedError
from changefeed.log import FeedLog, Fence, Latest, LogStore, Look
from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.log.verify import verify_log
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.testing.log_scribe import MakeStore

Call = Callable[[FeedLog], Awaitable[Any]]

_places = count()
_PUBLISHERS = st.sampled_from(("a", "b", "c", "d"))
_NUMBERS = st.integers(0, 12)
_SEQS = st.integers(0, 30)
_SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
_ENTRIES = st.lists(st.tuples(_PUBLISHERS, st.integers(1, 4), _SIZES, st.binary(max_size=40)), min_size=1, max_size=4)
_ALL_KEYS = [(resource, id) for resource in ("vm", "VM") for id in ("a", "\0", "\uffff", "\U00010000")]
_KEYS = st.sampled_from(_ALL_KEYS)
_VERSIONS = st.none() | st.integers(0, 3)
_ROWS = st.lists(
    st.tuples(_KEYS, st.integers(0, 4), _VERSIONS, st.none() | st.binary(max_size=20)),
    max_size=6,
    unique_by=lambda r: r[0],
)
_SETTINGS = Settings(publishers_max=3)


class Lockstep(RuleBasedStateMachine):
    """The steps. Subclasses say how the candidate's store is made."""

    make_store: MakeStore

    def __init__(self) -> None:
        super().__init__()
        self._memory = MemoryPlace()
        self._place = f"lockstep {next(_places)}"
        self._terms: list[tuple[int, str]] = [(1, "00000001")]
        self._named: list[Position] = []
        self._logs: list[FeedLog] = []
        self._look: Look

    def _stores(self) -> tuple[LogStore, LogStore]:
        worlds = [World(entropy=SeededEntropy(self._place)) for _ in range(2)]
        memory = MemoryLogStore(self._memory, _SETTINGS, world=worlds[0])
        return memory, type(self).make_store(self._place, _SETTINGS, worlds[1])

    @initialize(leads=st.integers(0, 3))
    def begin(self, leads: int) -> None:
        """Mostly with a leader and a publisher, lest most steps be refused."""
        self.open()
        if leads:
            self.fence(1, False, True)
            self.open_publisher("a", True, 1)
        if leads > 1:
            self.append([("a", 1, (1,), b"%d" % number) for number in range(12)], 1, 0, True)
            self.same_look()
        if leads > 2:
            self.fold(True, 3, 0, [(("vm", "a"), 0, None, b"a"), (("vm", "b"), 1, 2, None)], [], False, False, 1)

    def open(self) -> None:
        async def open_both() -> list[FeedLog]:
            return [await store.open("vmapi") for store in self._stores()]

        self._logs = trio.run(open_both)
        assert self._logs[0].lineage == self._logs[1].lineage
        self.same_look()

    def _both(self, call: Call) -> Any:
        """The answer of both; an error is an answer (its kind, and the fence that it names)."""

        async def ask() -> list[Any]:
            return [await _answer(call, log) for log in self._logs]

        memory, candidate = trio.run(ask)
        assert memory == candidate, f"memory: {memory!r}\ncandidate: {candidate!r}"
        return memory

    @rule(step=st.integers(-1, 2), again=st.booleans(), clean=st.booleans())
    def fence(self, step: int, again: bool, clean: bool) -> None:
        epoch = max(0, self._look.fence.epoch + step)
        term = self._terms[-1][1] if again else f"{len(self._terms) + 1:08x}"
        fence = Fence(epoch, term, f"i{epoch}", coordinator="c")
        self._terms.append((epoch, term))
        self._both(lambda log: log.fence(fence, why="test", time=len(self._terms), clean=clean))
        self.same_look()

    @rule(new=_ENTRIES, by=st.integers(0, 6), behind=st.sampled_from((0, 0, 0, 0, 0, 0, 1, -1)), tick=st.booleans())
    def append(self, new: list[tuple[str, int, tuple[int, ...], bytes]], by: int, behind: int, tick: bool) -> None:
        epoch, term = (self._look.fence.epoch, self._look.fence.term) if by else self._terms[-1]
        if not self._look.incarnations:
            return
        tail = self._look.tail
        time = tail.time + tick
        expected = max(0, tail.seq - behind)
        entries: list[Entry] = []
        seq, digest = expected, tail.digest
        numbers = {}
        for publisher, drawn, sizes, payload in new:
            incarnation = min(drawn, self._look.incarnations)
            key = (publisher, incarnation)
            if key not in numbers:
                numbers[key] = self._both(lambda log, key=key: log.last_number(*key)) or 0  # type: ignore[misc]
            after = numbers[key]
            entry = Entry(
                epoch,
                term,
                seq + 1,
                time,
                publisher,
                incarnation,
                after,
                after + 1,
                sizes,
                payload,
                batch_digest(sizes, payload),
            )
            entry = replace(entry, digest=chain(digest, self._logs[0].lineage, entry))
            numbers[key] = after + entry.count
            seq, digest = entry.last_seq, entry.digest
            entries.append(entry)
        self._both(lambda log: log.append(epoch, term, expected, entries))

    @rule(publisher=_PUBLISHERS, named=st.booleans(), by=st.integers(0, 6))
    def open_publisher(self, publisher: str, named: bool, by: int) -> None:
        epoch, term = (self._look.fence.epoch, self._look.fence.term) if by else self._terms[-1]
        self._both(lambda log: log.open_publisher(epoch, term, publisher, named=named))
        self.same_look()

    @rule(up_to=st.integers(0, 6) | _SEQS, by=st.integers(0, 6))
    def trim(self, up_to: int, by: int) -> None:
        epoch, term = (self._look.fence.epoch, self._look.fence.term) if by else self._terms[-1]
        self._both(lambda log: log.trim(epoch, term, up_to))
        self.same_rows()

    @rule(
        anew=st.sampled_from((False, False, False, True)),
        ahead=st.sampled_from((0, 1, 1, 2, 2, 3, 4, -1, 99)),
        off=st.sampled_from((0, 0, 0, 0, 0, 1, -1)),
        rows=_ROWS,
        gone=st.lists(_KEYS, max_size=3),
        twice=st.sampled_from((False, False, False, False, True)),
        versioned=st.booleans(),
        by=st.integers(0, 6),
    )
    def fold(
        self, anew: bool, ahead: int, off: int, rows: list[Any], gone: list[Any], twice: bool, versioned: bool, by: int
    ) -> None:
        """Mostly on from where the snapshot stands; sometimes with rows below the floor, as after a trim meanwhile."""
        epoch, term = (self._look.fence.epoch, self._look.fence.term) if by else self._terms[-1]
        folded = self._look.folded
        after = None if anew or folded is None else folded + off
        to = (self._look.floor.seq if after is None else after) + ahead
        to = min(to, self._look.tail.seq) if 0 <= ahead < 99 else to
        latest = [
            Latest(resource, id, max(1, to - back), 1, "00000001", 7, "a", version, payload)
            for (resource, id), back, version, payload in rows
            if payload is not None or version is not None
        ]
        if not twice:
            gone = [key for key in dict.fromkeys(gone) if key not in {row.key for row in latest}]
        self._both(lambda log: log.fold(epoch, term, after, to, latest, gone, versioned=versioned))
        self.same_look()
        self.same_rows()

    @rule(keys=st.lists(_KEYS, max_size=4), after=st.none() | _KEYS, max_bytes=st.integers(0, 60), at=st.none() | _SEQS)
    def list_latest(self, keys: list[Any], after: Any, max_bytes: int, at: int | None) -> None:
        self._both(lambda log: _latest(log, keys))
        self._both(lambda log: log.list_latest(after, max_bytes, at=at))

    def same_rows(self) -> None:
        """Equal snapshots: the tombstones, and the list in its order."""
        self._both(lambda log: _latest(log, _ALL_KEYS))
        self._both(lambda log: log.list_latest(None, 2**20))

    @rule(after=_SEQS, max_bytes=st.integers(0, 600))
    def read(self, after: int, max_bytes: int) -> None:
        self._both(lambda log: log.read(after, max_bytes))

    @rule(publisher=_PUBLISHERS, incarnation=st.integers(1, 4), number=_NUMBERS)
    def look_up(self, publisher: str, incarnation: int, number: int) -> None:
        self._both(lambda log: log.find_batch(publisher, incarnation, number))
        self._both(lambda log: log.last_number(publisher, incarnation))
        self._both(lambda log: log.publisher_state(publisher))

    @rule(time=_SEQS)
    def read_time(self, time: int) -> None:
        self._both(lambda log: log.read_time(time))

    @rule(version=st.integers(0, 3), bound=st.integers(1, 9))
    def set_settings(self, version: int, bound: int) -> None:
        self._both(lambda log: log.set_settings(FeedSettings(retention_count=bound, version=version)))
        self._both(lambda log: log.settings())

    @rule()
    def reopen(self) -> None:
        async def close() -> None:
            for log in self._logs:
                await log.aclose()

        trio.run(close)
        self.open()

    @rule()
    def maintain(self) -> None:
        async def maintain() -> None:
            for log in self._logs:
                await log.maintain()

        trio.run(maintain)

    @invariant()
    def same_look(self) -> None:
        """Equal looks, and every position ever named is judged as the look must."""
        if not self._logs:
            return
        self._look = self._both(lambda log: log.look())
        for seq in {self._look.floor.seq, self._look.tail.seq}:
            position = self._look.position(seq)
            if position not in self._named:
                self._named.append(position)
        for position in self._named:
            # One history without restores: only what is trimmed is refused.
            assert (self._look.check(position) is None) is (position.seq >= self._look.floor.seq)

    def teardown(self) -> None:
        if not self._logs:
            return

        async def end() -> None:
            for log in self._logs:
                verified = await verify_log(log)
                assert verified.fault is None, verified
                await log.aclose()

        trio.run(end)


async def _latest(log: FeedLog, keys: Sequence[Key]) -> list[Latest]:
    return sorted(await log.latest(keys), key=lambda row: row.key)


async def _answer(call: Call, log: FeedLog) -> Any:
    try:
        return await call(log)
    except (ChangefeedError, ValueError) as error:
        return (type(error), getattr(error, "epoch", None), getattr(error, "term", None))


def lockstep_machine(make_store: MakeStore) -> type[Lockstep]:
    """A state machine that runs `make_store`'s store beside the memory store."""
    return type("LockstepMachine", (Lockstep,), {"make_store": staticmethod(make_store)})
