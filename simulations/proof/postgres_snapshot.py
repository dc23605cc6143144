"""proof-postgres: a start at the snapshot. Lists and what follows them, held against whoever followed from the very
beginning, while leaders are killed and most of the log is trimmed; how long a list takes; what a snapshot costs."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import trio

from changefeed import Change, Event, MemoryCursor, Publisher, open_publisher, open_subscription
from changefeed.change import Key
from changefeed.errors import CannotResume
from changefeed.log.urls import open_log
from changefeed.subscriber.driver import Subscription
from changefeed.testing.processes import ServeCluster
from simulations.proof import postgres_basis as basis
from simulations.proof.rows import Row

STORES: Final = ("sqlite", "postgresql")
#: Of writing, and when in it the leader is killed.
SECONDS: Final = 40.0
KILLS_AT: Final = (0.25, 0.5, 0.75)
OBJECTS: Final = 5_000
#: Half of all changes are of so few, so that the two writers overtake each other.
HOT: Final = 50
#: Of these there is one writer, in order, and no change has a version.
NOTES: Final = 500
PER_SECOND: Final = 400
#: Events that are kept: some ten seconds.
RETENTION: Final = 4_000
READERS: Final = 4
#: What a list takes on the wire, about.
LIST_BYTES: Final = 800_000
PAUSE_S: Final = 1.0
#: How long a list is followed before the table is compared.
FOLLOW_S: Final = (0.2, 1.5)
LISTS_AT_LEAST: Final = 40
#: What may happen to a reader in the middle of its list.
WAYS: Final = ("straight", "cut", "paused", "left")

COST_OBJECTS: Final = 100_000
CHANGE_BYTES: Final = 200
COST_RUNS: Final = 3
#: Appends with the option, as a share of those without: server, leader, publisher share the machine.
COST_SHARE: Final = 0.3
LIST_LIMIT_S: Final = 30.0

#: An object in a table: the seq of its latest change, its version, what its body says.
Held = tuple[int, int | None, int]


def snapshot(quick: bool = False) -> Iterator[Row]:
    for kind in STORES:
        yield from lists(kind, quick)
    for kind in STORES:
        yield from costs(kind, quick)


@contextmanager
def place(kind: str) -> Iterator[str]:
    """The URL of a log of that kind; gone in the end."""
    if kind == "postgresql":
        with basis.database() as (_, url):
            yield url
    else:
        with tempfile.TemporaryDirectory(prefix="changefeed-proof-log-", ignore_cleanup_errors=True) as folder:
            yield f"sqlite:{Path(folder) / 'log'}"


async def prepare(url: str, feed: str = basis.FEED, **settings: Any) -> None:
    """The feed with these settings, before an instance takes part in it."""
    store = open_log(url)
    log = await store.open(feed)
    await log.set_settings(replace(await log.settings(), **settings))
    await log.aclose()
    await store.aclose()


# ---- lists, and the stream behind them


@dataclass
class Table:
    """What a subscriber keeps: each object by its latest change. Of two versions the higher one counts, also of a
    delete, which is remembered."""

    rows: dict[Key, Held] = field(default_factory=dict)
    deleted: dict[Key, int] = field(default_factory=dict)

    def apply(self, seq: int, change: Change) -> bool:
        """False: a change with a higher version was there already."""
        key = (change.resource, change.id)
        version = change.version
        if version is not None:
            held = self.rows.get(key)
            highest = self.deleted.get(key) if held is None else held[1]
            if highest is not None and version < highest:
                return False
        if change.op == "delete":
            self.rows.pop(key, None)
            if version is not None:
                self.deleted[key] = version
        else:
            self.rows[key] = (seq, version, change.body["n"])
            self.deleted.pop(key, None)
        return True


@dataclass(frozen=True)
class Checked:
    """A table as it was when everything up to `seq` was handled."""

    seq: int
    way: str
    listed: int
    list_s: float
    rows: dict[Key, Held]


@dataclass
class Trial:
    """One run: what the first reader was given, all tables that are to be compared, what went wrong on the way.

    backwards: events of an object that came at or below its seq before, within one life of a reader. resets: lists that
    were refused or overtaken by retention, with their typed error. cuts, pauses: in the middle of a list.
    """

    cluster: ServeCluster
    seconds: float
    log: list[tuple[int, Change]] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    published: int = 0
    floor: int = 0
    stop: bool = False
    head: int = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.follow_all)
            servers = self.cluster.servers
            async with open_publisher(basis.FEED, servers) as one, open_publisher(basis.FEED, servers) as two:
                source = Source(self)
                await source.fill(one)
                async with trio.open_nursery() as writers:
                    writers.start_soon(source.write, one, True)
                    writers.start_soon(source.write, two, False)
                    async with trio.open_nursery() as readers:
                        readers.start_soon(self.kill_leaders)
                        for number in range(READERS):
                            readers.start_soon(self.read, number)
                        await trio.sleep(self.seconds)
                        self.stop = True  # readers end with the table that they are at; writers write until then
                    source.stop = True
            self.floor = await trio.to_thread.run_sync(self.trimmed)
            with trio.fail_after(60):
                while not self.log or self.log[-1][0] < self.head:  # noqa: ASYNC110  # another process sends them
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    def trimmed(self) -> int:
        status = self.cluster.wait_leader().get("/status")["feeds"][basis.FEED]
        self.head = int(status["seq"])
        return int(status["log"]["earliest"].rpartition(".")[2])

    async def kill_leaders(self) -> None:
        killer = basis.Killer(self.cluster, 0.0)
        begun = trio.current_time()
        for share in KILLS_AT:
            await trio.sleep_until(begun + share * self.seconds)
            await killer.kill()
            self.counts["kills"] += 1

    async def follow_all(self) -> None:
        """Whoever is there from the beginning, and never lists."""
        async with open_subscription(basis.FEED, self.cluster.servers, start="beginning", name="first") as subscription:
            async for event in subscription:
                self.log.append((event.seq, event.change))

    async def read(self, number: int) -> None:
        """Start at the snapshot again and again."""
        chance = random.Random(number)
        async with trio.open_nursery() as nursery:
            relay = Relay([instance.port for instance in self.cluster.instances])
            port = await nursery.start(relay.serve)
            cursor = MemoryCursor()
            for turn in range(1 << 30):
                if self.stop:
                    break
                way = WAYS[(turn + number) % len(WAYS)]
                servers = f"ws://127.0.0.1:{port}"
                relay.plan = plan(way, chance)
                try:
                    opening = open_subscription(
                        basis.FEED, servers, start="snapshot", name=f"reader{number}", cursor=cursor
                    )
                    async with opening as subscription:
                        whole = await self.one_list(subscription, way, chance)
                except CannotResume as error:
                    self.counts[f"reset: {error.code}"] += 1
                    whole = True
                # Who left in the middle goes on with the cursor that was saved there: the list begins anew.
                cursor = MemoryCursor() if whole else cursor
            self.counts += relay.counts
            nursery.cancel_scope.cancel()

    async def one_list(self, subscription: Subscription, way: str, chance: random.Random) -> bool:
        """A list, and what follows for a while; False if it was left in the middle."""
        table, newest = Table(), dict[Key, int]()
        middle = chance.randrange(1, 4_000)
        begun, end, list_s = trio.current_time(), 0.0, 0.0
        listed = 0
        async for event in subscription:
            self.take(event, table, newest)
            if event.listed:
                listed += 1
                list_s = trio.current_time() - begun
                if listed == middle and way == "left":
                    self.counts["left"] += 1
                    return False
                continue
            end = end or trio.current_time() + chance.uniform(*FOLLOW_S)
            if trio.current_time() >= end and not event.position.is_listing:
                self.checked.append(Checked(event.seq, way, listed, list_s, table.rows))
                return True
        raise AssertionError("a subscription ends by an error only")

    def take(self, event: Event, table: Table, newest: dict[Key, int]) -> None:
        key = (event.resource, event.id)
        self.counts["backwards"] += event.seq <= newest.get(key, 0)
        newest[key] = event.seq
        table.apply(event.seq, event.change)

    def compare(self) -> Compared:
        """Every table with the model: everything that was given to the first reader, folded up to the same seq."""
        found = Compared()
        model, at = Table(), 0
        for check in sorted(self.checked, key=lambda check: check.seq):
            while at < len(self.log) and self.log[at][0] <= check.seq:
                found.overtaken += not model.apply(*self.log[at])
                at += 1
            missing = model.rows.keys() - check.rows.keys()
            phantom = check.rows.keys() - model.rows.keys()
            other = {key for key in model.rows.keys() & check.rows.keys() if model.rows[key] != check.rows[key]}
            found.missing += len(missing)
            found.phantom += len(phantom)
            found.other += len(other)
            for key in sorted(missing | phantom | other)[:3]:
                print(
                    f"{check.way}, seq {check.seq}: {key} {check.rows.get(key)}, not {model.rows.get(key)}", flush=True
                )
        return found


def plan(way: str, chance: random.Random) -> list[tuple[int, str]]:
    """What becomes of a connection after so many bytes, each in the middle of the list."""
    if way not in ("cut", "paused"):
        return []
    return [(chance.randrange(LIST_BYTES // 20, LIST_BYTES // 4), way) for _ in range(2)]


@dataclass
class Compared:
    """overtaken: changes that came after one with a higher version."""

    missing: int = 0
    phantom: int = 0
    other: int = 0
    overtaken: int = 0

    @property
    def wrong(self) -> int:
        return self.missing + self.phantom + self.other


class Source:
    """The truth that two instances of a service change: each change gets its version at once, and is told later."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.stop = False
        self.chance = random.Random(1)
        self.versions: Counter[str] = Counter()
        self.there: set[str] = set()
        self.number = 0

    async def fill(self, publisher: Publisher) -> None:
        for number in range(OBJECTS):
            self.versions[f"vm-{number}"] = 1
            await publisher.submit(self.change("vm", f"vm-{number}", 1))

    async def write(self, publisher: Publisher, notes: bool) -> None:
        """notes: this is the one writer of these."""
        due = trio.current_time()
        async with trio.open_nursery() as nursery:
            while not self.stop:
                chance = self.chance
                if notes and chance.random() < 0.2:
                    await self.tell(publisher, self.change("note", f"note-{chance.randrange(NOTES)}", None))
                else:
                    within = HOT if chance.random() < 0.5 else OBJECTS
                    id = f"vm-{chance.randrange(within)}"
                    while id not in self.there and chance.random() < 0.8:
                        id = f"vm-{chance.randrange(within)}"  # what is gone stays away for a while
                    self.versions[id] += 1
                    change = self.change("vm", id, self.versions[id])
                    later = chance.uniform(0, 0.5 if chance.random() < 0.1 else 0.05)
                    nursery.start_soon(self.tell, publisher, change, later)
                due += 2 / PER_SECOND
                await trio.sleep_until(max(due, trio.current_time()))

    def change(self, resource: str, id: str, version: int | None) -> Change:
        self.number += 1
        if id in self.there and self.chance.random() < 0.12:
            self.there.discard(id)
            return Change(resource, id, "delete", None, None, version)
        op = "update" if id in self.there else "create"
        self.there.add(id)
        return Change(resource, id, op, None, {"n": self.number, "data": "x" * 100}, version)

    async def tell(self, publisher: Publisher, change: Change, later_s: float = 0.0) -> None:
        await trio.sleep(later_s)
        await publisher.submit(change)
        self.trial.published += 1


class Relay:
    """Between a reader and the instances: a new connection goes to one of those that run.

    plan: after so many bytes to the reader, counted from the last item or from a new connection on, the connection is
    cut, or nothing passes for a while and the server can send no more. counts: what was done.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.plan: list[tuple[int, str]] = []
        self.counts: Counter[str] = Counter()
        self._ports = list(ports)

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(self._handle, [listener])

    async def _handle(self, client: trio.SocketStream) -> None:
        for port in random.sample(self._ports, len(self._ports)):
            try:
                server = await trio.open_tcp_stream("127.0.0.1", port)
                break
            except OSError:
                continue
        else:
            return
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, server, nursery.cancel_scope, False)
            nursery.start_soon(self._pump, server, client, nursery.cancel_scope, True)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope, planned: bool
    ) -> None:
        passed = 0
        try:
            async for data in source:
                await sink.send_all(data)
                passed += len(data)
                if planned and self.plan and passed >= self.plan[0][0]:
                    passed, what = 0, self.plan.pop(0)[1]
                    self.counts[what] += 1
                    if what == "cut":
                        break
                    await trio.sleep(PAUSE_S)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


def lists(kind: str, quick: bool) -> Iterator[Row]:
    seconds = 8.0 if quick else SECONDS
    tunables = ("snapshot_every=500ms", "retention_every=500ms", "snapshot_list_bytes=16KiB")
    flags = [word for tunable in tunables for word in ("--set", tunable)]
    with place(kind) as url:
        trio.run(prepare_small, url)
        with basis.cluster(url, flags=flags) as cluster:
            trial = Trial(cluster, seconds)
            trio.run(trial.run)
    found = trial.compare()
    counts = trial.counts
    resets = {name: count for name, count in counts.items() if name.startswith("reset")}
    objects = statistics.median(check.listed for check in trial.checked) if trial.checked else 0
    took = statistics.median(check.list_s for check in trial.checked) if trial.checked else 0.0
    share = trial.floor / max(1, trial.head)
    note = basis.quick_note(quick)
    yield Row(
        f"starts at the snapshot ({kind}), again and again for {seconds:.0f} s, beside two writers that overtake each "
        f"other, {counts['kills']} SIGKILLs of the leader",
        f"{len(trial.checked)} lists and what followed, compared (median {objects:,.0f} objects in {took:.2f} s); "
        f"{counts['cut']} cut, {counts['paused']} paused, {counts['left']} left in the middle; {trial.head:,} events, "
        f"{share:.0%} trimmed, {found.overtaken:,} overtaken by a higher version; {resets or 'no resets'}; "
        f"{found.missing} missing, {found.phantom} phantoms, {found.other} differ",
        f"{LISTS_AT_LEAST} lists, 3 kills, half of the log trimmed, 0 differences{note}",
        found.wrong == 0
        and len(trial.checked) >= LISTS_AT_LEAST
        and counts["kills"] == len(KILLS_AT)
        and all(counts[way] for way in WAYS if way != "straight")
        and share >= 0.5
        and found.overtaken > 0
        and not quick,
    )
    yield Row(
        f"the same: an object's events within a list and behind it ({kind})",
        f"{counts['backwards']} times an object's seq went back or came again",
        f"0{note}",
        counts["backwards"] == 0 and bool(trial.checked) and not quick,
    )


async def prepare_small(url: str) -> None:
    await prepare(url, snapshot=True, retention_count=RETENTION)


# ---- how long a list takes, and what it all costs


@dataclass
class Cost:
    """rates: changes per second with receipts, by whether a snapshot is kept. behind_s: from the last receipt until all
    of it is folded. folds: transactions that fold. list_s: of a list of all objects."""

    rates: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    behind_s: list[float] = field(default_factory=list)
    list_s: list[float] = field(default_factory=list)
    folds: int = 0
    listed: int = 0
    events: int = 0
    bytes_each: float = 0.0


def costs(kind: str, quick: bool) -> Iterator[Row]:
    objects = COST_OBJECTS // 20 if quick else COST_OBJECTS
    feeds = {False: "plain", True: "kept"}
    with place(kind) as url:
        for on, feed in feeds.items():
            trio.run(prepare_kept, url, feed, on)
        with basis.cluster(url, count=1, feed=list(feeds.values())) as cluster:
            cost = trio.run(measure, cluster, feeds, objects)
            cost.bytes_each = sizes(kind, url) / objects
    with_it, without = statistics.median(cost.rates[True]), statistics.median(cost.rates[False])
    note = basis.quick_note(quick)
    yield Row(
        f"what a snapshot costs ({kind}): {objects:,} changes of {CHANGE_BYTES} bytes, each of another object, from "
        "one publisher to its last receipt, with and without it in turn",
        f"{with_it:,.0f} changes/s with, {without:,.0f} without: {with_it / without:.0%} (medians of "
        f"{len(cost.rates[True])}); all folded {statistics.median(cost.behind_s):.1f} s after the last receipt; "
        f"{cost.folds} transactions for {cost.events:,} events; {cost.bytes_each:,.0f} bytes kept per object",
        f"at least {COST_SHARE:.0%}{note}",
        with_it >= COST_SHARE * without and not quick,
    )
    yield Row(
        f"a list of {objects:,} objects of {CHANGE_BYTES} bytes ({kind}), to one subscriber",
        f"{statistics.median(cost.list_s):.1f} s (median of {len(cost.list_s)}), {cost.listed:,} listed each time",
        f"all, at most {LIST_LIMIT_S:g} s{note}",
        cost.listed == objects and max(cost.list_s) <= LIST_LIMIT_S and not quick,
    )


async def prepare_kept(url: str, feed: str, on: bool) -> None:
    await prepare(url, feed, snapshot=on)


async def measure(cluster: ServeCluster, feeds: dict[bool, str], objects: int) -> Cost:
    cost = Cost()
    chance = random.Random(1)
    instance = cluster.instances[0]
    for run in range(COST_RUNS):
        for on, feed in feeds.items():
            ids = [f"vm-{number}" for number in range(objects)]
            chance.shuffle(ids)
            cost.rates[on].append(await publish_all(feed, cluster.servers, ids, run))
            if on:
                begun = time.monotonic()
                while not await trio.to_thread.run_sync(all_folded, instance, feed):  # noqa: ASYNC110  # a process
                    await trio.sleep(0.02)
                cost.behind_s.append(time.monotonic() - begun)
    status = instance.get("/status")["feeds"][feeds[True]]
    cost.folds, cost.events = status["term"]["folds"], status["seq"]
    for _ in range(COST_RUNS):
        cost.listed, took = await list_all(feeds[True], cluster.servers, objects)
        cost.list_s.append(took)
    return cost


async def publish_all(feed: str, servers: str, ids: Sequence[str], run: int) -> float:
    """Changes per second, from the first one to the last receipt."""
    padding = "x" * (CHANGE_BYTES - 40)
    async with open_publisher(feed, servers) as publisher:
        await publisher.wait_ready()
        begun = time.perf_counter()
        for number, id in enumerate(ids):
            body = {"n": number, "data": padding}
            pending = await publisher.submit(Change("vm", id, "update", None, body, run))
        await pending.wait()
        return len(ids) / (time.perf_counter() - begun)


def all_folded(instance: Any, feed: str) -> bool:
    status = instance.get("/status")["feeds"][feed]
    return bool(status["term"].get("folded") == status["seq"])


async def list_all(feed: str, servers: str, objects: int) -> tuple[int, float]:
    """How many were listed, and in how many seconds from opening on."""
    begun, listed = time.perf_counter(), 0
    async with open_subscription(feed, servers, start="snapshot") as subscription:
        with trio.move_on_after(4 * LIST_LIMIT_S):
            async for event in subscription:
                listed += event.listed
                if listed == objects:
                    break
    return listed, time.perf_counter() - begun


def sizes(kind: str, url: str) -> int:
    """Bytes of the storage that the snapshot takes, with its index."""
    if kind == "postgresql":
        return int(basis.ask(url, "SELECT pg_total_relation_size('changefeed.objects')"))
    folder = Path(url.removeprefix("sqlite:"))
    return (folder / "kept.db").stat().st_size - (folder / "plain.db").stat().st_size
