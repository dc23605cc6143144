"""Made-up histories that keep every promise: random, but as a right product could have written them. For tests.

    history = MadeUp(random.Random(7)).history()

A small model plays leaders, publishers, readers and the nemesis, and writes down what they saw. It knows nothing of the
checkers and shares no code with them. `changefeed.testing.history_edits` breaks such histories in one place.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

from changefeed.history.records import Record

FEED: Final = "vmapi"
OPS: Final = ("create", "update", "update", "delete")
FIELDS: Final[tuple[list[str] | None, ...]] = (None, [], ["state"], ["state", "ram"], ["ram"], ["tags"])
FILTERS: Final[tuple[dict[str, Any] | None, ...]] = (
    None,
    None,
    {},
    {"resources": {"vm": []}},
    {"resources": {"vm": ["state"]}},
    {"resources": {"vm": ["state", "tags"], "nic": []}},
    {"ops": ["create", "delete"]},
    {"resources": {"nic": ["ram"]}, "ops": ["update"]},
    {"ids": ["vm1", "nic2", "vm3"]},
    {"ids": ["nobody"]},
)


@dataclass
class Change:
    key: str
    digest: str
    head: list[Any]


@dataclass
class Group:
    """An op. at: the seq of its first change (0: not stored). number: of its first change. answered: nothing is due."""

    op: str
    changes: list[Change]
    number: int = 0
    at: int = 0
    stamp: str = ""
    answered: bool = False
    submitted: int = 0


@dataclass
class Publisher:
    """One node. queue: what was sent and is not stored. highest: the highest seq in a receipt of this life."""

    node: str
    name: str | None
    life: int = 0
    incarnation: int = 0
    number: int = 1
    groups: list[Group] = field(default_factory=list)
    queue: list[Group] = field(default_factory=list)
    highest: int = 0
    owed: bool = False

    @property
    def id(self) -> str:
        return self.name or f"{self.node}-{self.life}"


@dataclass
class Entry:
    epoch: int
    term: str
    seq: int
    publisher: str
    incarnation: int
    number: int
    groups: list[Group]
    lineage: str

    @property
    def last(self) -> int:
        return self.seq + sum(len(group.changes) for group in self.groups) - 1

    def spots(self) -> list[tuple[int, Change, int, int]]:
        """(seq, change, group, group_last) of each of its changes."""
        made, seq = [], self.seq
        for group in self.groups:
            last = seq + len(group.changes) - 1
            made += [(seq + n, change, seq, last) for n, change in enumerate(group.changes)]
            seq = last + 1
        return made

    def facts(self) -> dict[str, Any]:
        changes = [change for group in self.groups for change in group.changes]
        return {
            "epoch": self.epoch, "term": self.term, "seq": self.seq, "publisher": self.publisher,
            "incarnation": self.incarnation, "number": self.number, "lineage": self.lineage,
            "sizes": [len(group.changes) for group in self.groups], "keys": [change.key for change in changes],
            "digests": [change.digest for change in changes], "heads": [change.head for change in changes],
        }  # fmt: skip


@dataclass
class Reader:
    """atomic: effect and cursor are saved in one step. tells: it writes down where it was told to go on. at: up to
    where it was given everything; None: not connected. start: "somewhere" becomes a position when it first connects."""

    name: str
    filter: dict[str, Any] | None
    groups: bool
    start: str
    atomic: bool
    tells: bool = True
    life: int = 0
    at: int | None = None
    saved: str | None = None
    origin: str | None = None
    effects: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)


class MadeUp:
    """One history. commits, early: whether the store tells of commits, and of entries when they are stored. trims,
    restores: whether the log is trimmed, or put back to a copy."""

    def __init__(
        self,
        chance: random.Random,
        *,
        steps: int = 60,
        commits: bool | None = None,
        early: bool | None = None,
        trims: bool | None = None,
        restores: bool = False,
    ) -> None:
        def drawn(given: bool | None) -> bool:
            return chance.random() < 0.5 if given is None else given

        self.chance = chance
        self.steps = steps
        self.commits, self.early, self.trims = drawn(commits), drawn(early), drawn(trims)
        self.restores = restores
        self.records: list[Record] = []
        self.t = 1_000_000
        self.lineage = "00000000000000aa"
        self.entries: list[Entry] = []
        self.floor = 0
        self.tail = 0
        self.epoch, self.term, self.leader, self.incarnations, self.ops = 0, "", "a", 0, 0
        self.past: list[Entry] = []
        self.publishers = [Publisher("p0", None), Publisher("p1", None), Publisher("p2", "importer")]
        self.dead: list[Publisher] = []
        self.readers = [
            Reader(
                f"s{n}", chance.choice(FILTERS), chance.random() < 0.3,
                chance.choice(("beginning", "beginning", "now", "somewhere")), chance.random() < 0.6,
                chance.random() < 0.8,
            )
            for n in range(4)
        ]  # fmt: skip
        self.readers[0].filter = None
        self.faults = 0

    # ---- writing

    def write(self, node: str, f: str, /, life: int = 1, **facts: Any) -> None:
        self.t += self.chance.choice((0, 1_000, 1_000_000, 50_000_000))
        self.records.append({"t": self.t, "node": node, "life": life, "f": f, "feed": FEED, **facts})

    def position(self, seq: int) -> str:
        """The text of the position at a seq of the log as it is now, trimmed or not."""
        entry = next((entry for entry in self.past if entry.seq <= seq <= entry.last), None)
        if entry is None:
            return f"{self.lineage}.0.00000000.0"
        return f"{entry.lineage}.{entry.epoch}.{entry.term}.{seq}"

    # ---- the whole

    def history(self) -> list[Record]:
        chance = self.chance
        self.lead()
        for publisher in self.publishers:
            self.begin(publisher)
        if chance.random() < 0.5 or self.restores:
            # Something is stored before the first reader comes.
            for _ in range(4):
                self.submit()
                self.append()
        acts = [self.submit] * 5 + [self.append] * 5 + [self.answer] * 5 + [self.read] * 8 + [self.disturb] * 2
        when = chance.randrange(self.steps // 2, self.steps - 5) if self.restores else -1
        for step in range(self.steps):
            if step == when:
                self.restore()
            chance.choice(acts)()
        if not self.entries and not any(publisher.queue for publisher in self.publishers):
            self.submit()  # by chance nobody did: such a run says nothing (C16)
        self.heal()
        self.end()
        return self.records

    def heal(self) -> None:
        """Everybody gets what is due to him."""
        self.write("nemesis", "heal", bound_s=1000.0)
        for publisher in self.publishers:
            while publisher.queue:
                self.append()
        while any(not group.answered for publisher in self.publishers for group in publisher.groups):
            self.answer()
        for reader in self.readers:
            while reader.at != self.tail:
                self.read_one(reader)
            self.save(reader)
        self.write("nemesis", "converged")

    def end(self) -> None:
        self.write("nemesis", "want", name="acks", count=1)
        self.write("end", "log", lineage=self.lineage, tail=self.position(self.tail), floor=self.floor)
        for entry in self.entries:
            self.write("end", "entry", **entry.facts())
        for reader in self.readers:
            if reader.atomic:
                self.write(
                    "end", "effects", reader=reader.name, origin=reader.origin, keys=list(reader.effects),
                    position=reader.saved,
                )  # fmt: skip

    # ---- leaders

    def lead(self, why: str = "start", alive: bool = False) -> None:
        """Another leader. alive: the one before it is, and comes to learn of it."""
        before = self.leader
        old = self.epoch
        self.epoch += self.chance.choice((1, 1, 2))
        self.term = f"{self.chance.getrandbits(32):08x}"
        self.leader = self.chance.choice([name for name in "abc" if name != before])
        life = 1
        if self.commits:
            self.write("store", "fenced", epoch=self.epoch, term=self.term)
        self.write(self.leader, "elected", life, epoch=self.epoch, term=self.term, why=why)
        self.write(self.leader, "fence", life, epoch=self.epoch, term=self.term, tail=self.position(self.tail))
        if alive:
            self.write(before, "append", epoch=old, first=self.tail + 1, last=self.tail + 2, outcome="fenced")
            self.write(before, "deposed", epoch=old, why="fenced")

    def disturb(self) -> None:
        chance = self.chance
        kind = chance.choice(("leader", "leader", "publisher", "reader", "reader", "reader", "trim", "trim"))
        if kind == "leader":
            self.faults += 1
            freeze = chance.random() < 0.5
            self.write(
                "nemesis", "fault", id=self.faults, kind="freeze-leader" if freeze else "kill-leader",
                target=self.leader, on={}, expects=["leader-changed"],
            )  # fmt: skip
            self.lead("silent" if freeze else "process gone", alive=freeze)
            self.write("nemesis", "effect", id=self.faults, what="leader-changed")
            self.write("nemesis", "over", id=self.faults)
        elif kind == "publisher":
            self.kill_publisher(chance.choice(self.publishers))
        elif kind == "reader":
            self.kill_reader(chance.choice(self.readers))
        elif kind == "trim" and self.trims and len(self.entries) > 3:
            self.floor = self.entries[chance.randrange(len(self.entries) * 3 // 4)].last
            self.entries = [entry for entry in self.entries if entry.seq > self.floor]
            self.write("store", "trimmed", floor=self.floor)

    # ---- publishers

    def begin(self, publisher: Publisher) -> None:
        publisher.life += 1
        publisher.highest, publisher.owed = 0, False
        if publisher.name is None or not publisher.incarnation:
            self.incarnations += 1
            publisher.incarnation = self.incarnations
            publisher.number = 1

    def submit(self, publisher: Publisher | None = None) -> None:
        chance = self.chance
        publisher = publisher or chance.choice(self.publishers)
        self.ops += 1
        changes = []
        for n in range(1 if chance.random() < 0.6 else chance.randint(2, 4)):
            resource = chance.choice(("vm", "nic"))
            head = [resource, f"{resource}{chance.randint(1, 4)}", chance.choice(OPS), chance.choice(FIELDS)]
            changes.append(Change(f"k{self.ops}-{n}", f"{chance.getrandbits(64):016x}", head))
        group = Group(f"o{self.ops}", changes)
        group.number = publisher.number
        publisher.number += len(changes)
        publisher.groups.append(group)
        self.say(publisher, group)
        publisher.queue.append(group)

    def say(self, publisher: Publisher, group: Group) -> None:
        group.submitted += 1
        self.write(
            publisher.node, "submit", publisher.life, op=group.op, keys=[change.key for change in group.changes],
            digests=[change.digest for change in group.changes], name=publisher.name,
            heads=[change.head for change in group.changes],
        )  # fmt: skip

    def append(self) -> None:
        """One group commit: a run of the queues of one or two publishers."""
        chance = self.chance
        waiting = [publisher for publisher in (*self.publishers, *self.dead) if publisher.queue]
        chance.shuffle(waiting)
        first, made = self.tail + 1, []
        for publisher in waiting[: chance.choice((1, 1, 2))]:
            run = publisher.queue[: chance.choice((1, 1, 2, 3))]
            end = 1
            while end < len(run) and run[end].number == run[end - 1].number + len(run[end - 1].changes):
                end += 1
            run = run[:end]
            del publisher.queue[:end]
            entry = Entry(
                self.epoch, self.term, self.tail + 1, publisher.id, publisher.incarnation, run[0].number, run,
                self.lineage,
            )  # fmt: skip
            seq = entry.seq
            for group in run:
                group.at, group.stamp = seq, f"{self.lineage}.{self.epoch}.{self.term}"
                seq += len(group.changes)
            self.tail = entry.last
            self.entries.append(entry)
            self.past.append(entry)
            made.append(entry)
        self.dead = [publisher for publisher in self.dead if chance.random() < 0.5]
        if not made:
            return
        facts: dict[str, Any] = {"epoch": self.epoch, "first": first, "last": self.tail}
        if self.commits:
            self.write("store", "commit", term=self.term, fence=self.epoch, fence_term=self.term, **facts)
        if self.early:
            for entry in made:
                self.write("store", "entry", **entry.facts())
        if chance.random() < 0.1:
            self.write(self.leader, "append", outcome="append-outcome-unknown", **facts)
            self.write(self.leader, "deposed", epoch=self.epoch, why="append-outcome-unknown")
            self.lead("outcome unknown")
        else:
            self.write(self.leader, "append", outcome="stored", **facts)

    def answer(self) -> None:
        chance = self.chance
        due = [
            (publisher, group)
            for publisher in self.publishers
            for group in publisher.groups
            if not group.answered and (group.at or group in publisher.queue)
        ]
        if not due:
            return
        publisher, group = chance.choice(due)
        if not group.at:
            if chance.random() < 0.1 and publisher.name is None:
                publisher.queue.remove(group)
                group.answered = True
                self.write(publisher.node, "failed", publisher.life, op=group.op, code="log-full")
            return
        if publisher.owed:
            publisher.owed = False
            self.write(publisher.node, "lost", publisher.life, code="acknowledged-lost")
        repeated = chance.random() < 0.2
        if repeated:
            self.write(self.leader, "repeat", publisher=publisher.id, number=group.number)
        last = group.at + len(group.changes) - 1
        group.answered = True
        publisher.highest = max(publisher.highest, last)
        self.write(
            publisher.node, "acked", publisher.life, op=group.op, first=f"{group.stamp}.{group.at}",
            last=f"{group.stamp}.{last}", repeated=repeated,
        )  # fmt: skip

    def kill_publisher(self, publisher: Publisher) -> None:
        """Its next life is somebody else, or, if it has a name, submits again what it had no answer for."""
        named = publisher.name is not None
        self.write(publisher.node, "quit", publisher.life, abandoned=not named)
        if not named:
            if publisher.queue:
                # What is under way may still arrive.
                ghost = Publisher(publisher.node, None, publisher.life, publisher.incarnation)
                ghost.queue = publisher.queue
                self.dead.append(ghost)
            publisher.queue, publisher.groups = [], []
            self.begin(publisher)
            return
        self.begin(publisher)
        everything = self.chance.random() < 0.3 and not self.restores
        open_ones = [n for n, group in enumerate(publisher.groups) if not group.answered]
        first = 0 if everything else min(open_ones, default=len(publisher.groups))
        for group in publisher.groups[first:]:
            group.answered = False
            self.say(publisher, group)

    # ---- readers

    def wants(self, reader: Reader, change: Change) -> bool:
        """The filter, in yet other words."""
        filter = reader.filter or {}
        resource, id, op, fields = change.head
        fits = [
            not filter.get("ids") or id in filter["ids"],
            not filter.get("ops") or op in filter["ops"],
            not filter.get("resources") or resource in filter["resources"],
        ]
        named = filter.get("resources", {}).get(resource, [])
        if op == "update" and named and fields:
            fits.append(bool(set(named).intersection(fields)))
        return all(fits)

    def connect(self, reader: Reader) -> None:
        """A new life: from what is saved, or from its start."""
        reader.life += 1
        reader.pending = []
        if reader.start == "somewhere":
            reader.start = self.position(self.chance.randint(self.floor, self.tail))
        self.write(
            reader.name, "reader", reader.life, reader=reader.name, filter=reader.filter, groups=reader.groups,
            start=reader.start,
        )  # fmt: skip
        saved = reader.saved
        if saved is not None:
            seq = int(saved.rpartition(".")[2])
            # What was saved is of this log, and still followed.
            if self.position(seq) != saved or seq < self.floor or seq > self.tail:
                code = "position-too-old"
                if not saved.startswith(self.lineage):
                    code = "other-lineage"
                elif seq > self.tail:
                    code = self.chance.choice(("future-position", "other-lineage"))
                elif self.position(seq) != saved:
                    code = "other-lineage"
                self.refuse(reader, saved, code)
                return
        elif reader.start == "now":
            seq = self.tail
        elif reader.start == "beginning":
            seq = self.floor
        else:
            seq = int(reader.start.rpartition(".")[2])
            if self.position(seq) != reader.start or not self.floor <= seq <= self.tail:
                self.refuse(reader, reader.start, "position-too-old" if seq < self.floor else "other-lineage")
                return
        reader.at = seq
        if reader.saved is None:
            reader.origin = self.position(seq)
            reader.effects = []
        if reader.groups:
            reader.at = self.group_start(seq, reader)
        if reader.tells:
            self.write(
                reader.name, "connected", reader.life, reader=reader.name, instance="a",
                position=self.position(reader.at), asked=reader.saved,
            )  # fmt: skip

    def refuse(self, reader: Reader, position: str, code: str) -> None:
        self.write(
            reader.name, "refused", reader.life, reader=reader.name, code=code, position=position,
            earliest=self.position(self.floor), head=self.position(self.tail),
        )  # fmt: skip
        reader.saved, reader.at, reader.pending, reader.effects, reader.start = None, None, [], [], "beginning"

    def group_start(self, seq: int, reader: Reader) -> int:
        """Where whole groups begin again: before the group that seq lies in, unless nothing that is wanted follows."""
        spots = [spot for entry in self.past for spot in entry.spots()]
        group = next((group for at, _, group, last in spots if at == seq and at != last), None)
        if group is None:
            return seq
        rest = [change for at, change, other, _ in spots if other == group and at > seq]
        return group - 1 if any(self.wants(reader, change) for change in rest) else seq

    def read(self) -> None:
        self.read_one(self.chance.choice(self.readers))

    def read_one(self, reader: Reader) -> None:
        """One frame: everything that is selected up to a group's end."""
        chance = self.chance
        if reader.at is None:
            self.connect(reader)
            return
        if reader.at < self.floor:
            self.refuse(reader, self.position(reader.at), "position-too-old")
            return
        ahead = [spot for entry in self.past for spot in entry.spots() if spot[0] > reader.at]
        ends = sorted({last for _, _, _, last in ahead})
        if not ends:
            return
        to = ends[min(len(ends) - 1, chance.randint(0, 4))]
        wanted = [spot for spot in ahead if spot[0] <= to and self.wants(reader, spot[1])]
        for n, (seq, change, group, last) in enumerate(wanted):
            entry = next(entry for entry in self.past if entry.seq <= seq <= entry.last)
            final = n + 1 == len(wanted) or wanted[n + 1][2] != group
            reader.at = seq
            reader.pending.append(change.key)
            self.write(
                reader.name, "event", reader.life, reader=reader.name, position=self.position(seq), key=change.key,
                digest=change.digest, publisher=entry.publisher, group=group, last=final,
            )  # fmt: skip
            if ((final and last == seq) or not reader.groups) and chance.random() < (0.7 if reader.atomic else 0.3):
                self.save(reader)
        reader.at = to
        if not wanted or chance.random() < 0.5:
            self.write(reader.name, "bookmark", reader.life, reader=reader.name, position=self.position(to))
            if chance.random() < 0.5:
                self.save(reader)

    def save(self, reader: Reader, told: bool = True) -> None:
        assert reader.at is not None
        reader.saved = self.position(reader.at)
        reader.effects += reader.pending
        reader.pending = []
        if told:
            self.write(reader.name, "handled", reader.life, reader=reader.name, position=reader.saved)

    def kill_reader(self, reader: Reader) -> None:
        if reader.at is None:
            return
        if reader.pending and self.group_start(reader.at, reader) == reader.at and self.chance.random() < 0.3:
            self.save(reader, told=False)  # killed before it could say so
        reader.at = None
        if self.chance.random() < 0.5:
            self.write(reader.name, "quit", reader.life, abandoned=True)

    # ---- the storage is lost

    def restore(self) -> None:
        """A copy is put back, or the log begins anew under another lineage."""
        chance = self.chance
        anew = chance.random() < 0.3
        was, kept = self.lineage, 0
        stood = {reader.name: self.position(reader.at or 0) for reader in self.readers}
        if not anew and self.entries:
            kept = max(self.floor, self.entries[chance.randrange(len(self.entries))].last)
        self.faults += 1
        self.write("nemesis", "fault", id=self.faults, kind="put-back", target="", on={}, expects=[])
        late: dict[str, Any] = {}
        if self.commits and chance.random() < 0.5:
            # Somebody fences the log that goes away, and hears of it afterwards. That epoch may come again.
            late = {"epoch": self.epoch + chance.choice((1, 2, 3)), "term": f"{chance.getrandbits(32):08x}"}
            self.write("store", "fenced", **late)
            late["tail"] = self.position(self.tail)
        if anew:
            self.lineage, self.floor = "00000000000000bb", 0
        self.tail = kept
        self.entries = [entry for entry in self.entries if entry.last <= kept]
        self.past = [entry for entry in self.past if entry.last <= kept]
        self.write("nemesis", "restored", lineage=self.lineage, tail=kept, was=was)
        if late:
            self.write("d", "fence", **late)
        self.dead = []
        for publisher in self.publishers:
            publisher.owed = publisher.highest > kept
            back = [group for group in publisher.groups if group.at > kept and not group.answered]
            for group in back:
                group.at = 0
            # What was answered and is lost is lost: nobody publishes it again.
            publisher.groups = [group for group in publisher.groups if not (group.answered and group.at > kept)]
            publisher.queue = sorted([*back, *publisher.queue], key=lambda group: group.number)
        for reader in self.readers:
            if reader.at is not None:
                ahead = reader.at > kept or anew
                if ahead and reader.at > 0:
                    self.refuse(reader, stood[reader.name], "other-lineage" if anew else "future-position")
                else:
                    reader.at = None if anew else reader.at
        self.lead("the log was put back")
