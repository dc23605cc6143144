"""A link between two instances, both ends real, over a connection in memory (review findings 4, 20 and 21)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from changefeed.batch import Batch, Entry, Tail, batch_digest, chain, chain_start
from changefeed.change import Change, Position
from changefeed.coordination import LeaderRecord
from changefeed.errors import NotCurrent, PublisherInUse
from changefeed.leader import Answered
from changefeed.log import Fence
from changefeed.log.memory import Faults, MemoryLogStore, MemoryPlace
from changefeed.peer.driver import Link, serve_peer
from changefeed.ports import SeededEntropy, World
from changefeed.serving.window import Window
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Connection, Request, Response
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire import PEER
from changefeed.wire.changes import encode_change
from changefeed.wire.codec import decode
from changefeed.wire.messages import Answer, Limits, Open, Opened, PeerBeat, PeerHello

URL = "ws://leader:1"
LIMITS = Limits(2**20, 2**23, 9 * 2**20, 16, 10.0, 25.0)
TERM = "c" * 8


def settings(**changed: Any) -> Settings:
    return Settings(**changed)


class StubLeader:
    """A leader that takes what a test lets it take."""

    name, term = "leader", TERM

    def __init__(self) -> None:
        self.epoch = 3
        self.lost = trio.Event()
        self.room = trio.Event()
        self.openable = trio.Event()
        self.taken: list[tuple[str, int]] = []
        self.open_channels: set[str] = set()
        self.sessions: dict[str, str] = {}

    async def open(self, request: Open, channel: str) -> Opened:
        if any(session != request.session for session in self.sessions.values()):
            raise PublisherInUse("another one is open")
        await self.openable.wait()
        self.sessions[channel] = request.session
        return Opened("vmapi", "leader", "p", "leader", self.epoch, 1, 0, LIMITS)

    async def publish(self, channel: str, batch: Batch, answered: Answered) -> None:
        await self.room.wait()
        if self.lost.is_set():
            raise NotCurrent("lost")
        self.taken.append((channel, batch.number))
        answered(Answer(batch.number, batch.count, Position("a" * 16, 3, TERM, batch.number)))

    def close(self, channel: str) -> None:
        self.sessions.pop(channel, None)


class StubNode:
    """Both an instance's part in a feed and what its election hears of its links."""

    name = "vmapi"

    def __init__(self, who: str, log: Any, network: Any, settings: Settings, leader: StubLeader | None = None) -> None:
        self.instance = self.process = who
        self.url = URL
        self.log = log
        self.window = Window(settings.window_bytes)
        self.settings = settings
        self.world = World(SeededEntropy(who))
        self.network = network
        self.changed = Changed()
        self.leader = leader
        self.far: Any = None
        self.has_far = trio.Event()
        self.beats: list[tuple[float, PeerBeat]] = []
        self.follower_beats: list[tuple[float, PeerBeat]] = []
        self.seen: list[Entry] = []
        self.foreign: list[str] = []
        self.log_ok = True

    @property
    def evidence(self) -> StubNode:
        return self

    def link_up(self, process: str) -> None: ...
    def link_closed(self, process: str) -> None: ...
    def link_refused(self, process: str) -> None: ...
    def link_foreign(self, process: str, found: str) -> None: ...
    def link_silent(self, process: str) -> None: ...

    def link_beat(self, beat: PeerBeat) -> None:
        self.beats.append((trio.current_time(), beat))

    def follower_beat(self, beat: PeerBeat) -> None:
        self.follower_beats.append((trio.current_time(), beat))

    def serving(self) -> tuple[int, str]:
        return (0, "") if self.leader is None else (self.leader.epoch, self.leader.term)

    def beat(self) -> PeerBeat:
        tail = self.window.tail
        state = "following" if self.leader is None else "leading"
        at = None if tail is None else tail.position(self.log.lineage)
        return PeerBeat(self.instance, self.process, state, *self.serving(), at, self.log_ok)

    def begin_window(self, at: Position) -> None:
        self.window.begin(Tail(at.seq, at.epoch, at.term, b""))

    def visible(self, entries: Sequence[Entry]) -> None:
        self.window.append(entries)
        self.seen += entries
        self.changed.notify()

    def near_leader(self) -> StubLeader | None:
        return self.leader

    def far_leader(self, leader: Any) -> None:
        self.far = leader
        if leader is not None:
            self.has_far.set()

    def foreign_log(self, why: str) -> None:
        self.foreign.append(why)


class Linked:
    """A leader and a follower with a link between them, on one log in memory."""

    def __init__(self, leader: StubNode, follower: StubNode, faults: Faults, office: StubLeader) -> None:
        self.leader = leader
        self.follower = follower
        self.faults = faults
        self.office = office


@asynccontextmanager
async def linked(prepare: Callable[[Linked], None] | None = None, **changed: Any) -> AsyncIterator[Linked]:
    chosen, place, faults, network = settings(**changed), MemoryPlace(), Faults(), MemoryNetwork()
    store = MemoryLogStore(place, chosen, world=World(SeededEntropy("log")))
    log = await store.open("vmapi")
    look = await log.fence(Fence(3, TERM), why="start", time=1, clean=True)
    leaders_log, followers_log = await store.open("vmapi"), await store.open("vmapi")
    store.hook = faults
    office = StubLeader()
    leader = StubNode("leader", leaders_log, network.host("leader"), chosen, office)
    leader.window.begin(look.tail)
    follower = StubNode("follower", followers_log, network.host("follower"), chosen)
    both = Linked(leader, follower, faults, office)
    del office
    if prepare is not None:
        prepare(both)
    listener = await leader.network.listen("leader", 1, subprotocols=(PEER,), message_bytes_max=2**24)

    async def handle(connection: Connection, request: Request) -> None:
        hello = decode(await connection.receive(), PEER, None)
        assert isinstance(hello, PeerHello)
        await serve_peer(connection, hello, leader)

    async def http(request: Request) -> Response:
        raise AssertionError("nobody asks")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handle, http)
        nursery.start_soon(Link(follower).run, LeaderRecord("leader", "leader", URL, 3, "s"))
        yield both
        nursery.cancel_scope.cancel()


def batch(number: int, size: int = 10, publisher: str = "p") -> Batch:
    payload = encode_change(Change("vm", f"{number}", "update", None, "x" * size), 2**20)
    return Batch(publisher, 1, number - 1, number, (1,), payload)


async def test_a_full_leader_hears_its_followers_heartbeats(autojump_clock: Any) -> None:
    """Finding 21 rests on them: a leader whose log stalls has a full queue, and learns that others' logs answer."""
    async with linked(peer_heartbeat_s=0.3) as both:
        both.office.openable.set()
        await both.follower.has_far.wait()
        await both.follower.far.open(Open("vmapi", "p", "s"), "c")
        answers: list[Answer] = []
        await both.follower.far.publish("c", batch(1), answers.append)
        await both.follower.far.publish("c", batch(2), answers.append)
        await trio.sleep(3)
        assert both.office.taken == []
        both.follower.log_ok = False
        await trio.sleep(1)
        heard = [beat.log_ok for at, beat in both.leader.follower_beats if at > 2]
        assert len(heard) >= 5
        assert heard[0] is True
        assert heard[-1] is False
        # Nor do opens of other publishers wait for room.
        await both.follower.far.open(Open("vmapi", "q", "s"), "other")

        both.office.room.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [answer.number for answer in answers] == [1, 2]


async def test_what_a_follower_sends_ahead_is_bounded(autojump_clock: Any) -> None:
    """Unanswered batches stay below leader_queue_bytes, in the order in which they came; a large one gets its turn."""
    async with linked(leader_queue_bytes=2000) as both:
        both.office.openable.set()
        await both.follower.has_far.wait()
        far = both.follower.far
        await far.open(Open("vmapi", "p", "s"), "c")
        done: list[int] = []

        async def publish(number: int, size: int) -> None:
            await far.publish("c", batch(number, size), lambda answer: None)
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number, size in enumerate((600, 600, 1500, 10, 10), 1):
                nursery.start_soon(publish, number, size)
                await trio.testing.wait_all_tasks_blocked()
            assert done == [1, 2]
            both.office.room.set()
        assert done == [1, 2, 3, 4, 5]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [number for _, number in both.office.taken] == [1, 2, 3, 4, 5]


async def test_whoever_waits_for_room_at_a_lost_leader_is_sent_away(autojump_clock: Any) -> None:
    async with linked(leader_queue_bytes=500) as both:
        both.office.openable.set()
        await both.follower.has_far.wait()
        far = both.follower.far
        await far.open(Open("vmapi", "p", "s"), "c")
        await far.publish("c", batch(1, 400), lambda answer: None)
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(NotCurrent):
                    await far.publish("c", batch(2, 400), lambda answer: None)

            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            both.leader.leader = None
            both.leader.changed.notify()
        assert far.lost.is_set()


async def test_a_publisher_that_leaves_while_it_opens_leaves_nothing_at_the_leader(autojump_clock: Any) -> None:
    """Else a named publisher's next run would find its name in use for as long as the link lives."""
    async with linked() as both:
        await both.follower.has_far.wait()
        far = both.follower.far
        with trio.move_on_after(1):
            await far.open(Open("vmapi", "importer", "first", True), "c")
        far.close("c")
        await trio.sleep(1)
        both.office.openable.set()
        await trio.sleep(1)
        assert both.office.sessions == {}
        await far.open(Open("vmapi", "importer", "second", True), "d")


async def test_batches_of_a_channel_that_closed_do_not_reach_the_leader(autojump_clock: Any) -> None:
    """Their publisher has gone elsewhere, and sends them there."""
    async with linked() as both:
        both.office.openable.set()
        await both.follower.has_far.wait()
        far = both.follower.far
        for channel, publisher in (("c", "p"), ("d", "q")):
            await far.open(Open("vmapi", publisher, "s"), channel)
            for number in (1, 2):
                await far.publish(channel, batch(number, publisher=publisher), lambda answer: None)
        await trio.sleep(0.1)
        far.close("c")
        await trio.sleep(0.1)
        both.office.room.set()
        await trio.sleep(0.1)
        # The first one had been handed to the leader already.
        assert [(channel[-2:], number) for channel, number in both.office.taken] == [("/1", 1), ("/2", 1), ("/2", 2)]


async def test_a_leader_whose_log_does_not_answer_still_says_who_it_is(autojump_clock: Any) -> None:
    """A link that was broken during a stall comes up again at once: the leader answers, so nobody suspects it."""

    def stall(both: Linked) -> None:
        both.follower.window.begin(both.leader.window.tail or Tail(0, 0, "", b""))
        both.faults.outage = True

    async with linked(stall) as both:
        await trio.sleep(0.5)
        assert both.follower.beats
        assert both.leader.follower_beats
        entry = appended(both)
        await trio.sleep(1)
        assert both.follower.seen == []
        both.faults.outage = False
        await trio.sleep(3)
        assert both.follower.seen == [entry]


def appended(both: Linked, seq: int = 1) -> Entry:
    """An entry that the leader shows to its followers."""
    one = batch(seq)
    digest = batch_digest(one.sizes, one.payload)
    entry = Entry(3, TERM, seq, 1, "p", 1, one.after, one.number, one.sizes, one.payload, digest)
    entry = replace(entry, digest=chain(chain_start(both.leader.log.lineage, "vmapi"), both.leader.log.lineage, entry))
    both.leader.visible([entry])
    return entry


async def test_a_follower_whose_log_is_another_one_is_told(autojump_clock: Any) -> None:
    """A tail that the leader's log does not hold: the log was replaced under one of the two."""

    def ahead(both: Linked) -> None:
        both.follower.window.begin(Tail(7, 3, TERM, b""))

    async with linked(ahead) as both:
        await trio.sleep(1)
        assert both.follower.foreign
        assert "older copy" in both.follower.foreign[0]


async def test_other_bytes_under_a_known_seq_end_the_link_and_not_the_instance(autojump_clock: Any) -> None:
    """They are the sign of another history, and no bug of the follower's."""
    async with linked() as both:
        await both.follower.has_far.wait()
        both.follower.visible = lambda entries: (_ for _ in ()).throw(ValueError("came again with another digest"))  # type: ignore[method-assign]
        appended(both)
        await trio.sleep(0.2)
        assert "another digest" in both.follower.foreign[0]


async def test_answers_of_a_term_arrive_before_the_word_that_it_ended(autojump_clock: Any) -> None:
    """At a handover nobody needs to send again what was stored and answered."""
    async with linked() as both:
        both.office.openable.set()
        await both.follower.has_far.wait()
        far = both.follower.far
        await far.open(Open("vmapi", "p", "s"), "c")
        answers: list[int] = []
        for number in range(1, 9):
            await far.publish("c", batch(number), lambda answer: answers.append(answer.number))
        await trio.testing.wait_all_tasks_blocked(0.01)
        both.office.room.set()
        while len(both.office.taken) < 8:
            await trio.lowlevel.checkpoint()
        both.leader.leader = None
        both.leader.changed.notify()
        await trio.sleep(0.1)
        assert far.lost.is_set()
        assert answers == list(range(1, 9))


async def test_a_publisher_never_gets_the_answer_to_anothers_open(autojump_clock: Any) -> None:
    """The simulation's seed 487: a leader that was elected anew answered an Open of its last term late, over the same
    link, and it was taken for the answer to another publisher's: receipts seemed lost, and an incarnation ended."""
    async with linked() as both:
        await both.follower.has_far.wait()
        before, first = both.follower.far, both.office

        async def opens_under_the_old_term() -> None:
            with pytest.raises(NotCurrent):
                await before.open(Open("vmapi", "p", "s"), "c")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens_under_the_old_term)
            await trio.testing.wait_all_tasks_blocked(0.01)
            second = StubLeader()
            second.epoch = 4
            second.sessions.clear()
            both.leader.leader = second
            both.follower.has_far = trio.Event()
            both.leader.changed.notify()
            await both.follower.has_far.wait()
        opened: list[Opened] = []

        async def opens_under_the_new_term() -> None:
            opened.append(await both.follower.far.open(Open("vmapi", "q", "s"), "d"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens_under_the_new_term)
            await trio.testing.wait_all_tasks_blocked(0.01)
            first.openable.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert opened == []
            second.openable.set()
        assert opened[0].epoch == 4


async def test_a_link_keeps_nothing_of_terms_that_are_over(autojump_clock: Any) -> None:
    """Their leaders would be held for as long as the link lives."""
    async with linked() as both:
        both.office.openable.set()
        await both.follower.has_far.wait()
        await both.follower.far.open(Open("vmapi", "p", "s"), "c")
        gone = weakref.ref(both.office)
        both.office.lost.set()
        both.office = both.leader.leader = StubLeader()
        both.leader.changed.notify()
        await trio.sleep(1)
        gc.collect()
        assert gone() is None


class Forgetful:
    """A network whose first connection lets nothing through to its client any more after `words` messages, and tells
    neither end: as a router that has forgotten it."""

    def __init__(self, network: Any, words: int) -> None:
        self.network = network
        self.left = words
        self.opened = 0

    async def connect(self, url: str, **options: Any) -> Any:
        connection = await self.network.connect(url, **options)
        self.opened += 1
        if self.opened == 1:
            receive = connection.receive

            async def received() -> Any:
                self.left -= 1
                if self.left < 0:
                    await trio.sleep_forever()
                return await receive()

            connection.receive = received
        return connection


async def test_a_link_on_which_nothing_comes_any_more_is_opened_anew(autojump_clock: Any) -> None:
    """Found by the simulation of the full stack: the other members hear the leader, so nobody challenges it; but this
    follower waited for ever on a connection that was lost on one way, and so did whoever published through it."""
    forgetful: list[Forgetful] = []

    def prepare(both: Linked) -> None:
        forgetful.append(Forgetful(both.follower.network, 5))
        both.follower.network = forgetful[0]

    async with linked(prepare, peer_heartbeat_s=0.3, suspect_after_s=1.5) as both:
        both.office.openable.set()
        both.office.room.set()
        await both.follower.has_far.wait()
        await trio.sleep(2)
        lost = both.follower.far
        await trio.sleep(3)
        assert forgetful[0].opened == 2
        assert lost.lost.is_set()
        # The new one carries what the old one no longer did.
        assert [at for at, _ in both.follower.beats if at > 4.5]
        await both.follower.far.open(Open("vmapi", "p", "s"), "c")
        answers: list[Answer] = []
        await both.follower.far.publish("c", batch(1), answers.append)
        await trio.sleep(0.1)
        assert [answer.number for answer in answers] == [1]
