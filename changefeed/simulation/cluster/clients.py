"""The publishers and subscribers of a simulated cluster, as applications would write them, and what they record."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from changefeed import Change, Event, Position, open_publisher, open_subscription
from changefeed.errors import AcknowledgedLost, CannotResume, ChangefeedError, OutcomeUnknown, PublisherInUse
from changefeed.history.facts import submit_facts
from changefeed.publisher.driver import Pending, Publisher
from changefeed.simulation.cluster.recording import FEED, Voice, key_of
from changefeed.simulation.cluster.virtual import PROCESS, virtual_clock
from changefeed.subscriber.driver import Subscription

if TYPE_CHECKING:
    from changefeed.instance import Instance
    from changefeed.simulation.cluster.cluster import Cluster

OPS: Final = ("create", "update", "update", "delete")
#: Once all is healed, each publisher publishes so many groups more.
AFTER_HEAL: Final = 2


class Client:
    """Something that is killed and begins again: a process of its own, or a part of an instance's.

    home: the instance in whose process it lives, and through which it goes without a socket; "": a process of its own.
    """

    def __init__(self, cluster: Cluster, who: str) -> None:
        self.cluster = cluster
        self.who = who
        self.life = 0
        self.voice: Voice = cluster.voice(who, 0)
        self.scope: trio.CancelScope | None = None
        self.away_s = 0.0
        self.home: str = cluster.plan.option("homes", {}).get(who, "")
        servers = cluster.servers
        random.Random(f"{cluster.seed}-{who}-servers").shuffle(servers)
        self.servers = servers

    def begin(self) -> trio.CancelScope:
        self.life += 1
        self.voice = self.cluster.voice(self.who, self.life)
        self.scope = trio.CancelScope()
        return self.scope

    async def at_home(self) -> Instance | None:
        """The instance in whose process this lives, once it runs; None for a process of its own."""
        if not self.home:
            return None
        while (process := self.cluster.running(self.home)) is None:
            await virtual_clock().sleep(0.05)
        return process.instance

    def killed(self, away_s: float) -> None:
        """As SIGKILL: nothing that it does from now on can be heard. It begins again after `away_s`."""
        if self.scope is not None:
            self.last_words()
            self.voice.silent = True
            self.away_s = away_s
            self.cluster.network.kill(self.who)
            self.scope.cancel()
            self.scope = None

    def last_words(self) -> None:
        """What the history says of the end of this life."""
        raise NotImplementedError


@dataclass
class Group:
    """What is submitted together. number: of its first change, for named publishers. settled: it has an outcome, or
    its publisher was killed before it heard of one and will not submit it again."""

    op: str
    changes: list[Change]
    number: int
    facts: dict[str, Any]
    settled: bool = False


class Writer(Client):
    """One publisher. A named one submits again, after a kill, what it had no answer for, or everything."""

    def __init__(self, cluster: Cluster, who: str) -> None:
        super().__init__(cluster, who)
        self.named = who == cluster.plan.option("named")
        self.name = "importer" if self.named else None
        self.groups: list[Group] = []
        self.done = False
        self._chance = random.Random(f"{cluster.seed}-{who}-work")
        self._left: int = cluster.plan.option("groups")
        self._burst: float = cluster.plan.option("burst")
        self._pause_s = cluster.plan.option("work_s", cluster.plan.option("chaos_s")) / (
            1 + self._left * (1 - self._burst)
        )
        self._changes = 0
        self._open: dict[str, Pending] = {}

    def last_words(self) -> None:
        self.voice("quit", abandoned=sorted(self._open))
        self._open.clear()
        if not self.named:
            for group in self.groups:
                group.settled = True

    def _draw(self) -> Group:
        """One more group, of 1 to 5 changes."""
        chance, number = self._chance, self._changes
        size = 1 if chance.random() < 0.6 else chance.randint(2, 5)
        self._changes += size
        changes = []
        for index in range(number, number + size):
            key = f"{self.who}-{index}"
            resource, op, fields = chance.choice(("vm", "nic")), chance.choice(OPS), chance.choice((("n",), ("state",)))
            id, op, version = self.cluster.object_of(key, op)
            changes.append(Change(resource, id, op, fields, {"id": key}, version))
        op = f"{self.who}/{len(self.groups)}"
        group = Group(op, changes, number + 1, submit_facts(op, changes, self.name, key_of))
        self.groups.append(group)
        return group

    async def run(self) -> None:
        PROCESS.set(self.home or self.who)
        while not self.done:
            with self.begin() as scope:
                await self._live()
                self.done = True
            if scope.cancelled_caught:
                await trio.sleep(self.away_s)
        self.scope = None

    async def _live(self) -> None:
        cluster, instance = self.cluster, await self.at_home()
        if instance is not None:
            opening = instance.publisher(FEED, name=self.name)
        else:
            opening = open_publisher(
                FEED,
                self.servers,
                name=self.name,
                settings=cluster.settings,
                network=cluster.network.host(self.who),
                world=cluster.world(self.who, self.voice),
            )
        async with opening as publisher, trio.open_nursery() as nursery:
            submit = partial(self._submit, publisher, nursery)
            if self.named and self.groups:
                # Until the leader has noticed that the run before has gone, the name is in use.
                await self._ready(publisher)
                everything = self._chance.random() < 0.4
                first = next((n for n, group in enumerate(self.groups) if not group.settled), len(self.groups))
                for group in self.groups[0 if everything else first :]:
                    await submit(group)
            while self._left and not cluster.healed.is_set():
                self._left -= 1
                await submit(self._draw())
                if self._chance.random() >= self._burst:
                    with trio.move_on_after(self._pause_s * 2 * self._chance.random()):
                        await cluster.healed.wait()
            await cluster.healed.wait()
            for _ in range(AFTER_HEAL):
                await submit(self._draw())

    async def _ready(self, publisher: Publisher) -> None:
        while True:
            try:
                await publisher.wait_ready()
            except PublisherInUse:
                await trio.sleep(0.1)
            else:
                return

    async def _submit(self, publisher: Publisher, nursery: trio.Nursery, group: Group) -> None:
        self.voice("submit", **group.facts)
        while True:
            try:
                pending = await publisher.submit(group.changes, number=group.number if self.named else None)
            except AcknowledgedLost as error:
                self._lost(self.voice, error)
            except ChangefeedError as error:
                self.voice("failed", op=group.op, code=error.code)
                group.settled = True
                return
            else:
                break
        self._open[group.op] = pending
        nursery.start_soon(self._settle, group, pending)

    def _lost(self, voice: Voice, error: AcknowledgedLost) -> None:
        voice("lost", code=error.code)
        if not voice.silent:
            self.cluster.sightings["a publisher was told of lost receipts"] += 1

    async def _settle(self, group: Group, pending: Pending) -> None:
        voice = self.voice
        while True:
            try:
                receipt = await pending.wait()
            except AcknowledgedLost as error:
                self._lost(voice, error)
                continue
            except OutcomeUnknown as error:
                voice("unknown", op=group.op, code=error.code)
            except ChangefeedError as error:
                voice("failed", op=group.op, code=error.code)
            else:
                voice("acked", op=group.op, first=str(receipt.first), last=str(receipt.last), repeated=receipt.repeated)
            if not voice.silent:
                self._open.pop(group.op, None)
                group.settled = True
            return


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


class SavedCursor:
    """A cursor that the subscription saves by itself, after the effect: what it had not saved is given again."""

    by_caller = False

    def __init__(self, reader: Reader) -> None:
        self.position: Position | None = None
        self._reader = reader

    async def open(self, feed: str) -> Position | None:
        await trio.lowlevel.checkpoint()
        return self.position

    async def store(self, position: Position, *, sync: bool = True) -> None:
        await trio.lowlevel.checkpoint()
        voice = self._reader.voice
        if not voice.silent:
            self.position = position
            voice("handled", reader=self._reader.who, position=str(position))

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class ApplicationFailed(Exception):
    """The application's own error, in the middle of its loop: what it was given last is not handled."""


@dataclass
class Effects:
    """A reader's own database: what it applied since `origin`, and its cursor, in one. applied: its last event; where
    the cursor is saved by the subscription, an effect is idempotent by that."""

    origin: Position | None = None
    keys: list[str] = field(default_factory=list)
    cursor: EffectCursor | SavedCursor = field(default_factory=EffectCursor)
    applied: Position | None = None

    @property
    def place(self) -> Position | None:
        """Up to where its database holds the effects of everything."""
        saved, applied = self.cursor.position, self.applied
        return applied if applied is not None and (saved is None or saved.seq < applied.seq) else saved


class Reader(Client):
    """One subscriber. It applies what comes, saves its position in the same step, and goes on from there after a kill.
    After a reset it begins anew with an empty database, as an application would that lists its source again."""

    def __init__(self, cluster: Cluster, options: dict[str, Any]) -> None:
        super().__init__(cluster, options["who"])
        self.filter: dict[str, Any] = options["filter"]
        self.groups: bool = options.get("groups", False)
        self.late: float = options.get("late", 0.0)
        self.breaks: int = options.get("breaks", 0)
        #: Its cursor is saved by the subscription; its work takes time before the effect; it fails after some events.
        self.saves: bool = options.get("saves", False)
        self.work_s: float = options.get("work_s", 0.0)
        self.fails: int = options.get("fails", 0)
        self.slow_s = 0.0
        self.effects = self._database()
        self.resets = 0
        self._subscription: Subscription | None = None
        self._told: Position | None = None
        self._inside = False

    def _database(self) -> Effects:
        return Effects(cursor=SavedCursor(self)) if self.saves else Effects()

    @property
    def start(self) -> str:
        return "now" if self.late and not self.resets else "beginning"

    @property
    def reached(self) -> Position | None:
        """Up to where everything is handled."""
        if self._subscription is not None and self.scope is not None:
            position = self._subscription.state.position
            if position is not None:
                return position
        return self.effects.cursor.position

    def last_words(self) -> None:
        self.look()
        self.voice("quit", abandoned=[])

    def look(self) -> None:
        """Tell how far it is, events or not."""
        position = self.reached
        if self._subscription is not None and position is not None and position != self._told:
            self._told = position
            self.voice("bookmark", reader=self.who, position=str(position))

    async def run(self) -> None:
        PROCESS.set(self.home or self.who)
        if self.late:
            await trio.sleep(self.late)
        while True:
            with self.begin() as scope:
                await self._live()
            self._subscription = None
            if scope.cancelled_caught:
                await trio.sleep(self.away_s)

    async def _live(self) -> None:
        cluster, effects, instance = self.cluster, self.effects, await self.at_home()
        saved = effects.cursor.position
        if saved is not None and self._inside:
            cluster.sightings["a position inside a group resumed"] += 1
        self.voice(
            "reader",
            reader=self.who,
            filter=self.filter,
            groups=self.groups,
            start=self.start if saved is None else str(saved),
        )
        wanted = {"start": self.start, "cursor": effects.cursor, "name": self.who, **self.filter}
        if instance is not None:
            opening = instance.subscribe(FEED, **wanted)
        else:
            opening = open_subscription(
                FEED,
                self.servers,
                settings=cluster.settings,
                network=cluster.network.host(self.who),
                world=cluster.world(self.who, self.voice),
                **wanted,
            )
        try:
            async with opening as subscription:
                self._subscription = subscription
                if effects.cursor.position is None and not self.voice.silent:
                    effects.origin = effects.cursor.position = subscription.state.position
                await self._read(subscription)
            self.last_words()
        except CannotResume as error:
            self.voice(
                "refused",
                reader=self.who,
                code=error.code,
                position=str(error.position),
                earliest=str(error.earliest),
                head=str(error.head),
            )
            self.last_words()
            cluster.sightings[f"reset: {error.code}"] += 1
            self.effects = self._database()
            self.resets += 1
            self._told = None
            self._inside = False
        except ApplicationFailed:
            cluster.sightings["an application failed in its loop"] += 1
            self.last_words()

    async def _read(self, subscription: Subscription) -> None:
        left, good = self.breaks or 1 << 60, self.fails or 1 << 60
        events = subscription.groups() if self.groups else subscription
        async for found in events:
            applied: Iterable[Event] = found if isinstance(found, list) else (found,)
            if self.work_s and not self.cluster.healed.is_set():
                await trio.sleep(self.work_s)
            good -= 1
            if good < 0 and not self.cluster.healed.is_set():
                raise ApplicationFailed
            for event in applied:
                self._apply(event)
                left -= 1
            if not self.saves:
                self.voice("handled", reader=self.who, position=str(self.effects.cursor.position))
            if self.slow_s:
                await trio.sleep(self.slow_s)
            if left <= 0 and not self.cluster.healed.is_set():
                break

    def _apply(self, event: Event) -> None:
        """The effect and the cursor, in one transaction; or the effect alone, if it was not there yet."""
        if self.voice.silent:
            return  # it was killed between two checkpoints: trio ends it only at the next one
        effects = self.effects
        self._inside = not event.last
        self.voice("event", **self.cluster.recorder.event(self.who, event))
        if self.saves:
            if effects.applied is None or event.position.seq > effects.applied.seq:
                effects.keys.append(key_of(event.change))
                effects.applied = event.position
            return
        effects.keys.append(key_of(event.change))
        effects.cursor.position = event.position
