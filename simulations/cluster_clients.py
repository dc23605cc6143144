"""The publishers and subscribers of a simulated cluster, what they remember, and what must be true of it at the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from changefeed import Change, Event, Position, open_publisher, open_subscription
from changefeed.errors import ChangefeedError
from changefeed.publisher.driver import Publisher
from changefeed.subscriber.driver import Subscription
from changefeed.wire.changes import decode_change, split

if TYPE_CHECKING:
    from simulations.memory_cluster import Cluster

FEED: Final = "vmapi"
OPS: Final = ("create", "update", "update", "delete")


@dataclass
class Group:
    """What was submitted together. number: of its first change, for named publishers. life: which run of the publisher
    submitted it first. seqs: its receipt; error: or what it ended with. abandoned: its publisher was killed before it
    heard anything, and does not come back."""

    ids: list[str]
    changes: list[Change]
    number: int
    life: int
    seqs: tuple[int, int] | None = None
    error: str = ""
    abandoned: bool = False


@dataclass
class Written:
    groups: list[Group] = field(default_factory=list)
    life: int = 0

    def draw(self, who: str, chance: random.Random) -> Group:
        """One more group, of 1 to 5 changes."""
        number = sum(len(group.ids) for group in self.groups)
        size = 1 if chance.random() < 0.6 else chance.randint(2, 5)
        ids = [f"{who}-{number + n}" for n in range(size)]
        changes = [
            Change(
                chance.choice(("vm", "nic")), id, chance.choice(OPS), chance.choice((("n",), ("state",))), {"id": id}
            )
            for id in ids
        ]
        self.groups.append(Group(ids, changes, number + 1, self.life))
        return self.groups[-1]


async def _settle(group: Group, pending: Any) -> None:
    try:
        receipt = await pending.wait()
    except ChangefeedError as error:
        group.error = error.code
        return
    seqs = (receipt.first.seq, receipt.last.seq)
    if group.seqs is not None and group.seqs != seqs:
        group.error = f"two receipts: {group.seqs} and {seqs}"
    group.seqs = seqs


async def publish(cluster: Cluster, who: str, stop: trio.Event, written: Written) -> None:
    """Publishes until told to stop. p1 is killed now and then, and begins again as somebody else; p2 is a named one: it
    is killed too, and submits again what it had no answer for, or everything."""
    chance = random.Random(f"{cluster.seed}-{who}")
    named = who == "p2"
    while not stop.is_set() or (named and any(group.seqs is None for group in written.groups)):
        lives = 1e9 if who == "p0" or cluster.healed else 1 + 5 * chance.random()
        with trio.move_on_after(lives) as life:
            await _publish_once(cluster, who, stop, written, chance, named)
        if life.cancelled_caught:
            cluster.note("publisher-killed", who=who)
            cluster.network.kill(who)
            written.life += not named
            for group in written.groups:
                # What its end told it, nobody heard.
                group.error = "" if group.error == "outcome-unknown" else group.error
                group.abandoned = group.abandoned or (not named and group.seqs is None)
            await trio.sleep(chance.random())


async def _publish_once(
    cluster: Cluster, who: str, stop: trio.Event, written: Written, chance: random.Random, named: bool
) -> None:
    servers = cluster.servers
    chance.shuffle(servers)
    name = "importer" if named else None
    async with trio.open_nursery() as nursery:

        async def submit(publisher: Publisher, group: Group) -> None:
            pending = await publisher.submit(group.changes, number=group.number if named else None)
            nursery.start_soon(_settle, group, pending)

        async with open_publisher(
            FEED,
            servers,
            name=name,
            settings=cluster.settings,
            network=cluster.network.host(who),
            world=cluster.world(who),
        ) as publisher:
            if named:
                # Until the leader has noticed that the run before has gone, the name is in use.
                await publisher.wait_ready()
                everything = chance.random() < 0.4
                first = next((n for n, group in enumerate(written.groups) if group.seqs is None), len(written.groups))
                for group in written.groups[0 if everything else first :]:
                    await submit(publisher, group)
            while not stop.is_set():
                await submit(publisher, written.draw(who, chance))
                await trio.sleep(0.25 * chance.random() ** 2)


class EffectCursor:
    """A cursor that its application saves together with its effect: each event must be applied exactly once."""

    by_caller = True

    def __init__(self) -> None:
        self.position: Position | None = None

    async def open(self, feed: str) -> Position | None:
        await trio.lowlevel.checkpoint()
        return self.position

    async def store(self, position: Position, *, sync: bool = True) -> None:
        raise AssertionError("its application saves it")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class Reader:
    """One subscriber. wanted: its filter, said once more in other words. seen: what it applied. origin: the seq after
    which it began. reached: up to where it has handled everything."""

    who: str
    wanted: Callable[[Change], bool] = lambda change: True
    filter: dict[str, Any] = field(default_factory=dict)
    groups: bool = False
    killed: bool = True
    late: bool = False
    seen: list[Event] = field(default_factory=list)
    lists: list[list[int]] = field(default_factory=list)
    origin: int | None = 0
    cursor: EffectCursor = field(default_factory=EffectCursor)
    subscription: Subscription | None = None

    @property
    def reached(self) -> int:
        """Up to where everything is handled."""
        state = None if self.subscription is None else self.subscription.state
        found = [self.seen[-1].seq if self.seen else 0]
        if state is not None and state.position is not None:
            found.append(state.position.seq)
        return max(found)

    def apply(self, events: Iterable[Event]) -> None:
        """The effect and the cursor, in one transaction."""
        for event in events:
            self.seen.append(event)
            self.cursor.position = event.position


def readers(chance: random.Random) -> list[Reader]:
    """One that is never disturbed, one that is killed, filtered ones, one that takes whole groups, one from now on."""
    filters: list[tuple[dict[str, Any], Callable[[Change], bool]]] = [
        ({"ops": ("create",)}, lambda change: change.op == "create"),
        ({"resources": ("nic",)}, lambda change: change.resource == "nic"),
        (
            {"resources": {"vm": ("state",)}},
            lambda change: change.resource == "vm" and (change.op != "update" or "state" in (change.fields or ())),
        ),
        ({"ids": ("p0-3", "p2-7")}, lambda change: change.id in ("p0-3", "p2-7")),
    ]
    options, wanted = chance.choice(filters)
    return [
        Reader("s0", killed=False),
        Reader("s1"),
        Reader("s2", wanted, options),
        Reader("s3", groups=True),
        Reader("s4", killed=False, late=True, origin=None),
    ]


async def subscribe(cluster: Cluster, reader: Reader, stop: trio.Event) -> None:
    """From the beginning (or late, from now on); most are killed and go on from their cursor now and then."""
    who = reader.who
    chance = random.Random(f"{cluster.seed}-{who}")
    servers = cluster.servers
    chance.shuffle(servers)
    if reader.late:
        await trio.sleep(8 * chance.random())
    while not stop.is_set():
        steady = not reader.killed or cluster.healed
        quota = 10**9 if steady else chance.randint(20, 200)
        with trio.move_on_after(1e9 if steady else 0.5 + 4 * chance.random()):
            async with open_subscription(
                FEED,
                servers,
                start="now" if reader.late else "beginning",
                cursor=reader.cursor,
                name=who,
                settings=cluster.settings,
                network=cluster.network.host(who),
                world=cluster.world(who),
                **reader.filter,
            ) as subscription:
                reader.subscription = subscription
                if reader.origin is None:
                    at = subscription.state.position
                    reader.origin = 0 if at is None else at.seq
                if reader.cursor.position is None:
                    reader.cursor.position = subscription.state.position
                await _read(cluster, reader, subscription, quota)
        reader.subscription = None


async def _read(cluster: Cluster, reader: Reader, subscription: Subscription, quota: int) -> None:
    if reader.groups:
        async for events in subscription.groups():
            reader.lists.append([event.seq for event in events])
            reader.apply(events)
            quota -= len(events)
            if quota <= 0:
                break
        return
    before = reader.seen[-1] if reader.seen else None
    if before is not None and not before.last:
        cluster.sightings["a position inside a group resumed"] += 1
    async for event in subscription:
        reader.apply([event])
        quota -= 1
        if quota <= 0:
            break


# ---- what must be true


def check(cluster: Cluster, written: dict[str, Written], reading: list[Reader]) -> list[str]:
    """What is wrong at the end, as sentences."""
    log: list[tuple[int, Change]] = []
    groups: list[list[int]] = []
    for entry in cluster.place.feeds[FEED].entries:
        seq = entry.seq
        for size in entry.sizes:
            groups.append(list(range(seq, seq + size)))
            seq += size
        for offset, data in enumerate(split(entry.payload)):
            log.append((entry.seq + offset, decode_change(data)))
    problems = []
    if [seq for seq, _ in log] != list(range(1, len(log) + 1)):
        problems.append("the log is not dense")
    at = {change.id: seq for seq, change in log}
    if len(at) != len(log):
        problems.append(f"{len(log) - len(at)} changes are in the log twice")
    for who, one in written.items():
        problems += _check_written(who, one, at)
    for reader in reading:
        problems += _check_reader(reader, log, groups)
    acknowledged = sum(group.seqs is not None for one in written.values() for group in one.groups)
    cluster.note("end", log=len(log), acknowledged=acknowledged)
    return problems


def _check_written(who: str, written: Written, at: dict[str, int]) -> list[str]:
    problems, newest = [], dict.fromkeys(range(written.life + 1), 0)
    for group in written.groups:
        places = [at.get(id) for id in group.ids]
        held = [place for place in places if place is not None]
        if group.error:
            problems.append(f"{who}: {group.ids} ended with {group.error}")
        if group.seqs is not None and places != list(range(group.seqs[0], group.seqs[1] + 1)):
            problems.append(f"{who}: {group.ids} acknowledged at {group.seqs} stands at {places}")
        if group.seqs is None and not group.abandoned:
            problems.append(f"{who}: {group.ids} has no outcome")
        if held and (len(held) != len(places) or held != list(range(held[0], held[0] + len(held)))):
            problems.append(f"{who}: the group {group.ids} is torn: {places}")
        if held and held[0] <= newest[group.life]:
            problems.append(f"{who}: {group.ids} stands before what was published earlier")
        newest[group.life] = held[-1] if held else newest[group.life]
    return problems


def _check_reader(reader: Reader, log: list[tuple[int, Change]], groups: list[list[int]]) -> list[str]:
    problems = []
    begin = reader.origin or 0
    got = [(event.seq, event.id) for event in reader.seen]
    upto = reader.reached
    wanted = [(seq, change.id) for seq, change in log if begin < seq <= upto and reader.wanted(change)]
    if got != wanted:
        index = next(
            (n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))
        )
        problems.append(
            f"{reader.who}: event {index} is {got[index : index + 2]}, the log has {wanted[index : index + 2]} there "
            f"(of {len(got)} and {len(wanted)}, after {begin} up to {upto})"
        )
    of = {seq: group for group in groups for seq in group}
    for event in reader.seen:
        if event.group != of[event.seq][0]:
            problems.append(f"{reader.who}: event {event.seq} says group {event.group}, not {of[event.seq][0]}")
            break
    if reader.groups and reader.lists != [group for group in groups if group[-1] <= upto]:
        problems.append(f"{reader.who}: groups are not those of the log")
    return problems
