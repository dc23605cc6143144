"""What a subscription decides in a list and behind it: positions, what is dropped, breaks, contradictions."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from model_feed import LIMITS, LINEAGE, run_of_rows, term
from model_feed import ModelFeed as Feed
from model_feed import Row as LogRow
from test_subscriber_machine import give
from trio.testing import MockClock

from changefeed.change import Change, Event, Filter, Position
from changefeed.errors import BadPosition, NoSnapshot, OtherLineage, PositionTooOld, UsageError
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.subscriber.cursors import FileCursor, MemoryCursor, SqliteCursor
from changefeed.subscriber.driver import make_start, open_subscription
from changefeed.subscriber.machine import Go, Leave, SubscriberMachine, Welcomed
from changefeed.testing.scripted import open_scripted_server
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire.changes import encode_change
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import Events, Handled, Listed, Redirect, Run, Start, Subscribe, Subscribed

LISTING = Position.listing(LINEAGE)
SNAPSHOT = Start(at="snapshot")


def at(seq: int, lineage: str = LINEAGE) -> Position:
    return Position(lineage, 1, term(1), seq) if seq else Position.beginning(lineage)


def row(id: str, seq: int, resource: str = "vm") -> Run:
    change = Change(resource, id, "update", None, {"seq": seq})
    return Run(1, term(1), 1000, "p", seq, None, encode_change(change, 2**20))


def part(snapshot: int, *rows: Run, last: bool = False, head: int = 0, lineage: str = LINEAGE) -> Listed:
    return Listed(at(snapshot, lineage), rows, last, max(head, snapshot) if last else 0)


def frame(after: int, to: int, *events: tuple[str, int], groups: Sequence[int] | None = None) -> Events:
    """events: (id, seq); groups: of each the seq of its group's first event."""
    rows = [
        LogRow(seq, seq if groups is None else groups[index], 1, row(id, seq).payload, id)
        for index, (id, seq) in enumerate(events)
    ]
    return Events(after, at(to), (run_of_rows(rows),) if rows else ())


def make(start: Start = SNAPSHOT, saved: Position | None = None, **options: Any) -> SubscriberMachine:
    return SubscriberMachine("vmapi", "me", start, Filter({"vm": ("state",)}), Settings(), saved=saved, **options)


def welcome(position: Position, head: int) -> Subscribed:
    return Subscribed("vmapi", "a", "p", position, at(head, position.lineage), "a", 1, LIMITS)


class Talk:
    """A machine with a server that says what a test says."""

    def __init__(self, machine: SubscriberMachine, head: int = 50) -> None:
        self.machine = machine
        self.head = head
        self.asked: Subscribe
        self.connect()

    def connect(self, position: Position | None = None) -> None:
        machine = self.machine
        machine.disconnected()
        self.generation = machine.connected(0.0)
        asked = machine.take(0.0)
        assert isinstance(asked, Subscribe)
        self.asked = asked
        place = asked.start.position or LISTING
        assert self.hear(welcome(position or place, self.head)) == [Welcomed()]

    def hear(self, message: Any) -> list[Any]:
        return self.machine.received(message, self.generation, 0.0)

    def told(self, *messages: Any) -> list[Event]:
        found: list[Event] = []
        for message in messages:
            assert self.hear(message) == []
            found += give(self.machine)
        return found


def seqs(events: Sequence[Event]) -> list[int]:
    return [event.seq for event in events]


# ---- the list and its positions


def test_positions_through_a_list() -> None:
    """The listing position until the head of the list's end is handled; then ordinary ones."""
    talk = Talk(make())
    machine = talk.machine
    assert talk.asked == Subscribe("vmapi", SNAPSHOT, "me", Filter({"vm": ("state",)}), client=talk.asked.client)
    assert (machine.handled, machine.listing, machine.lag) == (LISTING, True, 50)
    listed = talk.told(part(40, row("a", 7), row("b", 44)))
    assert [(event.id, event.seq, event.listed, event.last, event.group) for event in listed] == [
        ("a", 7, True, True, 7),
        ("b", 44, True, True, 44),
    ]
    assert {event.position for event in listed} == {LISTING}
    assert (machine.handled, machine.lag, machine.caught_up, machine.reached) == (LISTING, 10, False, False)
    talk.told(part(40, row("c", 3), last=True, head=50))
    machine.settle(0.0)
    assert (machine.position, machine.handled, machine.listing) == (at(40), LISTING, True)
    behind = talk.told(frame(40, 49, ("a", 41), ("b", 43), ("b", 44), ("b", 45)))
    assert [(event.seq, event.position, event.listed) for event in behind] == [
        (41, LISTING, False),
        (45, LISTING, False),
    ]
    machine.settle(0.0)
    assert (machine.handled, machine.reached) == (LISTING, False)
    assert [(event.seq, event.position) for event in talk.told(frame(49, 51, ("b", 50), ("a", 51)))] == [
        (50, at(50)),
        (51, at(51)),
    ]
    machine.settle(0.0)
    assert (machine.handled, machine.listing, machine.reached, machine.caught_up) == (at(51), False, True, True)


def test_a_bookmark_over_the_head_ends_it() -> None:
    talk = Talk(make())
    talk.told(part(40, row("a", 7), last=True, head=50))
    talk.told(frame(40, 49))
    assert talk.machine.handled == LISTING
    talk.told(frame(49, 50))
    assert talk.machine.handled == at(50)


@pytest.mark.parametrize("seq", [0, 40])
def test_an_empty_list_and_one_that_nothing_follows(seq: int) -> None:
    """The end of the list is its head: handled goes there at once, or with its last object."""
    talk = Talk(make(saves=True), head=seq)
    talk.told(part(seq, last=True))
    machine = talk.machine
    assert (machine.handled, machine.listing, machine.reached, machine.caught_up) == (at(seq), False, True, True)
    assert machine.begin_save(0.0, force=True) == at(seq)
    if seq:
        talk = Talk(make(), head=seq)
        assert talk.hear(part(seq, row("a", 5), last=True)) == []
        assert seqs(give(talk.machine, 1)) == [5]
        assert talk.machine.handled == LISTING
        talk.machine.settle(0.0)
        assert talk.machine.handled == at(seq)


def test_a_cursor_holds_the_listing_position_until_the_head() -> None:
    """Of an empty feed too the end of the list is saved, though its seq is that of the listing position."""
    talk = Talk(make(saves=True), head=0)
    machine = talk.machine
    assert machine.begin_save(0.0, force=True) == LISTING
    machine.save_ended(LISTING)
    talk.told(part(0, last=True))
    assert machine.begin_save(0.0, force=True) == at(0)
    machine.save_ended(at(0))
    assert machine.begin_save(0.0, force=True) is None


def test_commit_in_the_middle_of_a_list() -> None:
    """Saves the listing position, whichever event it names; a position that was not reached is refused."""
    talk = Talk(make())
    events = talk.told(part(40, row("a", 7), row("b", 44)))
    assert talk.machine.commit(events[0].position) == LISTING
    assert talk.machine.commit(None) == LISTING
    talk.told(part(40, last=True, head=50))
    behind = talk.told(frame(40, 49, ("a", 41)))
    assert talk.machine.commit(behind[0].position) == LISTING
    assert talk.machine.commit(None) == LISTING
    with pytest.raises(BadPosition):
        talk.machine.commit(at(41))
    talk.told(frame(49, 50, ("a", 50)))
    assert talk.machine.commit(None) == at(50)


def test_the_loop_is_given_what_was_taken_before_the_head_was() -> None:
    """What waits in the buffer keeps its positions though later messages were taken."""
    talk = Talk(make())
    assert talk.hear(part(40, row("a", 44), last=True, head=44)) == []
    assert talk.machine.ask() is not None
    assert talk.hear(frame(40, 44, ("b", 41), ("a", 44))) == []
    assert talk.machine.handled == talk.machine.given == LISTING
    talk.machine.settle(0.0)
    assert [event.position for event in give(talk.machine, 1)] == [LISTING]
    assert (talk.machine.handled, talk.machine.lag) == (LISTING, 10)
    talk.machine.settle(0.0)
    assert talk.machine.handled == at(44)


def test_a_row_beyond_the_head_that_a_lagging_instance_knows() -> None:
    """The highest seq that was listed is the end of the list then."""
    talk = Talk(make(), head=40)
    talk.told(part(40, row("a", 60)))
    talk.told(part(40, last=True, head=45))
    assert talk.told(frame(40, 59, ("a", 46), ("b", 59)))[0].position == LISTING
    talk.connect()
    assert (talk.asked.start, talk.asked.whole) == (Start(position=at(59)), 60)
    assert seqs(talk.told(frame(59, 61, ("a", 60), ("a", 61)))) == [61]
    talk.connect()
    assert talk.asked.whole == 0


def test_groups_of_which_the_list_held_the_end() -> None:
    """What is dropped does not glue groups together; listed objects are groups of their own."""
    talk = Talk(make())
    assert talk.machine.use_groups() is False
    assert talk.hear(part(40, row("a", 43), row("b", 3), last=True, head=50)) == []
    groups = []

    def take() -> None:
        talk.machine.settle(0.0)
        while (group := talk.machine.ask_group()) is not None:
            groups.append(seqs(group))
            talk.machine.settle(0.0)

    take()
    # Seqs 41 to 43 are one group, 44 to 46 the next: of each the list held what `a` was at 43.
    assert (
        talk.hear(frame(40, 46, ("b", 41), ("c", 42), ("a", 43), ("a", 44), ("b", 45), groups=[41, 41, 41, 44, 44]))
        == []
    )
    take()
    assert groups == [[43], [3], [41, 42], [44, 45]]


# ---- breaks


def test_breaks_at_every_place() -> None:
    """Before anything came: as it was begun. In the middle: behind the last object. Behind: after the position, whole
    up to the head. Passed: as ever."""
    talk = Talk(make())
    talk.connect()
    assert talk.asked.start == Start(position=LISTING)
    talk.told(part(40, row("a", 44)))
    talk.connect()
    assert talk.asked.start == Start(at="snapshot", snapshot=at(40), listed=("vm", "a"))
    talk.told(part(40, row("b", 3)))
    talk.connect()
    assert talk.asked.start == Start(at="snapshot", snapshot=at(40), listed=("vm", "b"))
    talk.told(part(40, last=True, head=50))
    talk.connect()
    assert (talk.asked.start, talk.asked.whole) == (Start(position=at(40)), 50)
    assert seqs(talk.told(frame(40, 45, ("a", 44), ("a", 45)))) == [45]
    talk.connect()
    assert (talk.asked.start, talk.asked.whole) == (Start(position=at(45)), 50)
    talk.told(frame(45, 50))
    talk.connect()
    assert (talk.asked.start, talk.asked.whole) == (Start(position=at(50)), 0)


def test_what_was_listed_must_still_be_in_the_log() -> None:
    """Until it is passed, the newest event that was listed is told at every break: an older copy of the log, put back
    meanwhile, does not hold it, and what was dropped because of it would be missing (cluster seed 1029 of 3875615)."""
    talk = Talk(make())
    talk.connect()
    assert talk.asked.newest is None
    talk.told(part(40, row("a", 44), row("b", 42)))
    talk.connect()
    assert talk.asked.newest == at(44)
    talk.told(part(40, row("c", 3), last=True, head=50))
    talk.connect()
    assert talk.asked.newest == at(44)
    talk.told(frame(40, 43))
    talk.connect()
    assert talk.asked.newest == at(44)
    talk.told(frame(43, 44))
    talk.connect()
    assert (talk.asked.newest, talk.asked.whole) == (None, 50)


def test_go_elsewhere_in_the_middle() -> None:
    talk = Talk(make())
    talk.told(part(40, row("a", 44)))
    assert talk.hear(Redirect(("ws://b:1",), 1.0)) == [Go(("ws://b:1",), 1.0)]
    talk.connect()
    assert talk.asked.start.listed == ("vm", "a")


def test_a_saved_listing_position_begins_the_list_again() -> None:
    """Whatever start was asked for: the cursor says where it stands."""
    talk = Talk(make(Start(at="now"), saved=LISTING, saves=True))
    assert talk.asked.start == Start(position=LISTING)
    assert talk.machine.listing
    assert seqs(talk.told(part(40, row("a", 7), last=True, head=40))) == [7]
    talk.machine.settle(0.0)
    assert talk.machine.begin_save(0.0, force=True) == at(40)


def test_handled_is_told_as_the_listing_position() -> None:
    talk = Talk(make())
    talk.told(part(40, row("a", 7), last=True, head=41))
    talk.machine.settle(0.0)
    assert talk.machine.take(2.0) == Handled(LISTING)
    talk.told(frame(40, 41))
    assert talk.machine.take(4.0) == Handled(at(41))


# ---- what goes wrong

_TWO = Run(1, term(1), 1000, "p", 5, None, row("a", 5).payload + row("b", 6).payload)


@pytest.mark.parametrize(
    ("before", "wrong", "says"),
    [
        ([], part(40, row("b", 3), row("a", 4)), "out of order"),
        ([], part(40, row("a", 3), row("a", 4)), "two events of one object"),
        ([part(40, row("b", 3))], part(40, row("b", 4)), "cannot follow"),
        ([part(40, row("b", 3))], part(40, row("a", 4)), "cannot follow"),
        ([part(40, row("a", 3))], part(41, row("b", 4)), "cannot go on as one at"),
        ([], part(40, row("a", 3), lineage="f" * 16), "no place in the log"),
        ([], part(40, _TWO), "exactly one change"),
        ([], frame(0, 3, ("a", 3)), "in the middle of a list"),
        ([part(40, last=True, head=50)], part(40, row("a", 3)), "no list is under way"),
        ([part(40, last=True, head=50)], frame(41, 42, ("a", 42)), "a frame was lost"),
        ([], welcome(LISTING, 50), "a second Subscribed"),
    ],
)
def test_what_contradicts_itself_is_left(before: list[Any], wrong: Any, says: str) -> None:
    """The connection is given up; what was taken stays, and the next one goes on behind it."""
    talk = Talk(make())
    talk.told(*before)
    position = talk.machine.position
    (effect,) = talk.hear(wrong)
    assert isinstance(effect, Leave) and says in str(effect.error) and not effect.final
    assert talk.machine.position == position
    assert give(talk.machine) == []
    talk.connect()
    if position == LISTING:
        last = before[-1].runs[-1].payload if before else None
        assert (talk.asked.start.listed is None) == (last is None)


@pytest.mark.parametrize(
    ("machine", "offered"),
    [
        (make(), at(3)),
        (make(Start(at="now")), LISTING),
        (make(saved=at(3)), LISTING),
        (make(saved=LISTING), at(0)),
        (make(saved=LISTING), Position.listing("f" * 16)),
    ],
)
def test_a_place_that_was_not_asked_for(machine: SubscriberMachine, offered: Position) -> None:
    """A server that does not know of lists, or begins one unasked, is left."""
    generation = machine.connected(0.0)
    machine.take(0.0)
    (effect,) = machine.received(welcome(offered, 50), generation, 0.0)
    assert isinstance(effect, Leave) and "was offered what follows" in str(effect.error)


def test_a_part_of_a_list_that_nobody_asked_for() -> None:
    talk = Talk(make(Start(position=at(3))))
    (effect,) = talk.hear(part(40, row("a", 3)))
    assert isinstance(effect, Leave) and "no list is under way" in str(effect.error)


@pytest.mark.parametrize("listed", [False, True])
def test_what_was_trimmed_while_listing_is_told(listed: bool) -> None:
    """The error names where the list stood, if it is known; a restart begins a list of its own."""
    talk = Talk(make())
    if listed:
        talk.told(part(40, row("a", 60)))
    talk.hear(fault_of(PositionTooOld("trimmed", None, at(45), at(70))))
    failure = talk.machine.failure
    assert isinstance(failure, PositionTooOld) and failure.position == (at(40) if listed else None)
    talk.machine.restart(SNAPSHOT)
    talk.connect()
    assert talk.asked.start == SNAPSHOT
    talk.told(part(65, row("a", 60), last=True, head=70))
    assert seqs(talk.told(frame(65, 70, ("a", 66)))) == [66]


def test_no_snapshot_is_final() -> None:
    """Whichever server says so: the log itself does."""
    talk = Talk(make())
    talk.told(part(40, row("a", 60)))
    talk.hear(fault_of(NoSnapshot("none is kept")))
    assert isinstance(talk.machine.failure, NoSnapshot)


# ---- as applications use it


def test_start_texts() -> None:
    assert make_start("snapshot") == SNAPSHOT
    assert make_start(str(LISTING)) == Start(position=LISTING)
    with pytest.raises(UsageError, match="'snapshot'"):
        make_start(1.5)  # type: ignore[arg-type]


def test_listed_events_are_values() -> None:
    """Equal to themselves made again, to no other; printed with what tells them apart."""
    first = Talk(make()).told(part(40, row("a", 7)))[0]
    second = Talk(make()).told(part(40, row("a", 7)))[0]
    plain = Talk(make(Start(position=at(6)))).told(frame(6, 7, ("a", 7)))[0]
    assert first == second and hash(first) == hash(second)
    assert first != plain and plain != first and (first.listed, plain.listed) == (True, False)
    assert "listed=True" in repr(first) and "listed" not in repr(plain)
    with pytest.raises(AttributeError):
        first.listed = False  # type: ignore[misc]


async def test_the_error_leaves_the_loop(autojump_clock: MockClock) -> None:
    """A server without a snapshot refuses; the loop is told, though another server is named."""
    network = MemoryNetwork()
    async with open_scripted_server(network) as server:
        world = World(SeededEntropy(1))
        urls = [server.url, "ws://127.0.0.1:1"]
        async with open_subscription("vmapi", urls, start="snapshot", network=network, world=world, wait=False) as one:
            assert one.state.listing
            async with trio.open_nursery() as nursery:

                async def refuse() -> None:
                    peer = await server.accept()
                    assert (await peer.expect(Subscribe)).start == SNAPSHOT
                    await peer.fail(NoSnapshot("feed vmapi keeps no snapshot"))

                nursery.start_soon(refuse)
                with pytest.raises(NoSnapshot):
                    await one.__anext__()


async def test_cursors_hold_the_listing_position(tmp_path: Path) -> None:
    """As any other, in a file and in a database."""
    file = FileCursor(tmp_path / "cursor")
    assert await file.open("vmapi") is None
    await file.store(LISTING)
    await file.aclose()
    assert await file.open("vmapi") == LISTING
    await file.aclose()
    with sqlite3.connect(tmp_path / "db") as connection:
        table = SqliteCursor(connection, "me", "vmapi")
        assert await table.open("vmapi") is None
        table.save(LISTING)
        assert SqliteCursor(connection, "me", "vmapi").load() == LISTING
        table.save(at(40))
        assert SqliteCursor(connection, "me", "vmapi").load() == at(40)


async def test_a_cursor_that_holds_the_listing_position(autojump_clock: MockClock) -> None:
    """A subscription that is opened with it begins the list anew, in that log only."""
    network = MemoryNetwork()
    cursor = MemoryCursor()
    world = World(SeededEntropy(1))
    asked: list[Start] = []
    async with open_scripted_server(network) as server, trio.open_nursery() as nursery:

        async def serve() -> None:
            peer = await server.accept()
            asked.append((await peer.subscribed(LISTING, at(41))).start)
            await peer.send(part(40, row("a", 7), row("b", 9)))
            await peer.listen()
            peer = await server.accept()
            asked.append((await peer.subscribed(LISTING, at(41))).start)
            await peer.send(part(40, row("a", 7), row("b", 9)))
            await peer.send(part(40, last=True, head=41))
            await peer.send(frame(40, 41, ("a", 41)))
            await peer.listen()
            peer = await server.accept()
            request = await peer.expect(Subscribe)
            asked.append(request.start)
            await peer.fail(OtherLineage("another log", request.start.position, None, None))

        nursery.start_soon(serve)
        options: dict[str, Any] = {"start": "snapshot", "network": network, "world": world, "cursor": cursor}
        async with open_subscription("vmapi", server.url, **options) as one:
            assert [(await one.__anext__()).seq for _ in range(2)] == [7, 9]
            await one.commit()
        async with open_subscription("vmapi", server.url, **options) as one:
            assert [(await one.__anext__()).seq for _ in range(3)] == [7, 9, 41]
            assert one.state.listing and one.state.lag == 1
            one._machine.settle(0.0)
            assert not one.state.listing and one.state.position == at(41)
        await cursor.reset(LISTING)
        async with open_subscription("vmapi", server.url, **options) as one:
            with pytest.raises(OtherLineage):
                await one.__anext__()
        assert asked == [SNAPSHOT, Start(position=LISTING), Start(position=LISTING)]


def test_the_model_of_this_folder_still_serves_others() -> None:
    """A start that is no list is asked for as before: strangers' servers see nothing new."""
    machine = make(Start(at="beginning"))
    machine.connected(0.0)
    asked = machine.take(0.0)
    assert isinstance(asked, Subscribe) and asked.whole == 0 and Feed().place(asked.start, asked.groups) == 0
