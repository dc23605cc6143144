"""A history indexed once, for all checkers: the log, publishers' ops, readers' lives, leaders, faults. Pure.

`about` of what checkers say holds "record": an index into the history's records.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, NamedTuple

from changefeed.history.log import Held, Log
from changefeed.history.records import BadHistory, Record

#: What ends a subscription whose position cannot be resumed; its reader begins anew.
CANNOT_RESUME: Final = ("position-too-old", "other-lineage", "future-position", "cannot-resume")


class Answer(NamedTuple):
    """One answer to an op. kind: "acked", "failed" or "unknown". at: the record's index. first, last: (stamp, seq) of a
    receipt."""

    kind: str
    at: int
    t: int
    node: str
    life: int
    code: str
    first: tuple[str, int]
    last: tuple[str, int]
    repeated: bool


class Submit(NamedTuple):
    at: int
    t: int
    node: str
    life: int


@dataclass(slots=True)
class Op:
    """A group of changes that a publisher was asked to publish, once or (a named one) again in later lives.

    who: the name, or the node and life: whose order counts. variants: digests of a submit that differ from the first.
    """

    op: str
    keys: Sequence[str]
    digests: Sequence[str]
    heads: Sequence[Any] | None
    name: str | None
    who: str
    submits: list[Submit] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    variants: list[Sequence[str]] = field(default_factory=list)

    @property
    def acks(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.kind == "acked"]


class Step(NamedTuple):
    """One record of a reader. kind: connected, event, bookmark, handled or refused. at: the record's index."""

    kind: str
    at: int
    stamp: str
    seq: int
    record: Record


@dataclass(slots=True)
class Segment:
    """One life of a reader, or the part of it up to a reset. chapter: grows with each reset: then nothing is saved."""

    reader: str
    node: str
    life: int
    filter: dict[str, Any] | None
    groups: bool
    start: str
    chapter: int
    at: int
    steps: list[Step] = field(default_factory=list)
    refused: Step | None = None
    quit: bool = False

    def __str__(self) -> str:
        return f"reader {self.reader} (life {self.life})"


class Commit(NamedTuple):
    at: int
    t: int
    stamp: str
    epoch: int
    term: str
    fence: int
    fence_term: str | None
    first: int
    last: int


class Restore(NamedTuple):
    at: int
    t: int
    lineage: str
    tail: int
    was: str | None


@dataclass(slots=True)
class Fault:
    """over: when it was over (None: not told). effects: what was seen of it. expects: None where nothing was said. how:
    what else was told of it."""

    id: Any
    kind: str
    target: str
    at: int
    t: int
    expects: Sequence[str] | None
    how: str = ""
    over: int | None = None
    effects: list[str] = field(default_factory=list)


def seq_of(value: int | str) -> int:
    """The seq of a position's text, or of a seq."""
    return value if isinstance(value, int) else int(value.rpartition(".")[2])


def place_of(position: str) -> tuple[str, int]:
    """A position as (stamp, seq)."""
    stamp, _, seq = position.rpartition(".")
    return stamp, int(seq)


def _at(commit: Commit) -> int:
    return commit.at


class View:
    """A history of one feed. Raises BadHistory, with the record's index, for a record that lacks what its kind has."""

    def __init__(self, records: Iterable[tuple[int, Record]], feed: str = "") -> None:
        self.feed = feed
        self.ops: dict[str, Op] = {}
        self.by_key: dict[str, tuple[Op, int]] = {}
        self.stray: list[tuple[int, Record]] = []
        self.segments: list[Segment] = []
        self.readers: dict[str, list[Segment]] = {}
        self.effects: list[tuple[int, Record]] = []
        self.publisher_quits: dict[tuple[str, int], bool] = {}
        self.losses: list[tuple[int, Record]] = []
        self.elected: list[tuple[int, Record]] = []
        self.fences: list[tuple[int, Record]] = []
        self.fenced: list[tuple[int, Record]] = []
        self.appends: list[tuple[int, Record]] = []
        self.deposed: list[tuple[int, Record]] = []
        self.commits: list[Commit] = []
        self.trims: list[tuple[int, int]] = []
        self.faults: list[Fault] = []
        self.restores: list[Restore] = []
        self.heals: list[tuple[int, Record]] = []
        self.converged: list[tuple[int, Record]] = []
        self.wants: dict[str, int] = {}
        self.limits: dict[str, Record] = {}
        self.sightings: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._current: dict[str, Segment] = {}
        self._seen: list[tuple[int, int]] | None = None
        self._faults: dict[Any, Fault] = {}
        self._commits: list[tuple[int, Record]] = []
        self._entries: list[tuple[int, Record]] = []
        self._dump: tuple[int, Record] | None = None
        self._read(records)
        self._finish()

    # ---- one pass over the records

    def _read(self, records: Iterable[tuple[int, Record]]) -> None:
        keep: dict[str, Callable[[int, Record], object]] = {
            "submit": self._submit,
            "acked": self._answer,
            "failed": self._answer,
            "unknown": self._answer,
            "lost": self._keep(self.losses),
            "quit": self._quit,
            "elected": self._keep(self.elected),
            "fence": self._keep(self.fences),
            "fenced": self._keep(self.fenced),
            "append": self._keep(self.appends),
            "repeat": self._nothing,
            "deposed": self._keep(self.deposed),
            "commit": self._keep(self._commits),
            "trimmed": self._trimmed,
            "reader": self._reader,
            "connected": self._step,
            "event": self._step,
            "bookmark": self._step,
            "handled": self._step,
            "refused": self._refused,
            "fault": self._fault,
            "effect": self._effect,
            "over": self._over,
            "restored": self._restored,
            "heal": self._keep(self.heals),
            "converged": self._keep(self.converged),
            "want": self._want,
            "limit": self._limit,
            "sighting": self._sighting,
            "log": self._log,
            "entry": self._keep(self._entries),
            "effects": self._keep(self.effects),
        }
        counts = self.counts
        at = 0
        found: Record = {}
        try:
            for at, found in records:
                f = found["f"]
                counts[f] += 1
                keep[f](at, found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._bad(at, found, error, keep)

    @staticmethod
    def _bad(index: int, record: Any, error: Exception, known: dict[str, Any]) -> None:
        f = record.get("f") if isinstance(record, dict) else None
        if f not in known:
            raise BadHistory(f"{f!r} is no kind of record", line=index + 1) from None
        says = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise BadHistory(f"{f} of {record.get('node')!r} cannot be read: {says}", line=index + 1) from None

    @staticmethod
    def _keep(into: list[tuple[int, Record]]) -> Callable[[int, Record], object]:
        append = into.append
        return lambda index, record: append((index, record))

    def _nothing(self, index: int, record: Record) -> None:
        pass

    def _submit(self, index: int, record: Record) -> None:
        op = self.ops.get(record["op"])
        keys, digests = record["keys"], record["digests"]
        if op is None:
            name = record["name"]
            who = name or f"{record['node']}/{record['life']}"
            op = self.ops[record["op"]] = Op(record["op"], keys, digests, record.get("heads"), name, who)
            if len(keys) != len(digests) or (op.heads is not None and len(op.heads) != len(keys)):
                raise ValueError("it has not one digest (and head) for each key")
            for place, key in enumerate(keys):
                if key in self.by_key:
                    raise ValueError(f"key {key!r} names a change of op {self.by_key[key][0].op!r} already")
                self.by_key[key] = (op, place)
        elif digests != op.digests or keys != op.keys:
            if keys != op.keys:
                raise ValueError(f"op {op.op!r} was submitted with other keys before")
            op.variants.append(digests)
        op.submits.append(Submit(index, record["t"], record["node"], record["life"]))

    def _answer(self, index: int, record: Record) -> None:
        kind = record["f"]
        op = self.ops.get(record["op"])
        if op is None:
            self.stray.append((index, record))
            return
        if kind == "acked":
            first, last, code, repeated = place_of(record["first"]), place_of(record["last"]), "", record["repeated"]
        else:
            first = last = ("", 0)
            code, repeated = record["code"], False
        op.answers.append(Answer(kind, index, record["t"], record["node"], record["life"], code, first, last, repeated))

    def _quit(self, index: int, record: Record) -> None:
        who = record["node"], record["life"]
        self.publisher_quits[who] = bool(record.get("abandoned"))
        for segment in self._current.values():
            if (segment.node, segment.life) == who:
                segment.quit = True

    def _reader(self, index: int, record: Record) -> None:
        reader = record["reader"]
        before = self._current.get(reader)
        chapter = 0 if before is None else before.chapter + (before.refused is not None)
        self._begin(
            Segment(
                reader, record["node"], record["life"], record["filter"], bool(record["groups"]),
                record["start"], chapter, index,
            )
        )  # fmt: skip

    def _begin(self, segment: Segment) -> Segment:
        self._current[segment.reader] = segment
        self.segments.append(segment)
        self.readers.setdefault(segment.reader, []).append(segment)
        return segment

    def _step(self, index: int, record: Record) -> None:
        segment = self._current.get(record["reader"])
        if segment is None:
            raise ValueError(f"reader {record['reader']!r} has not said who it is (a record 'reader' comes first)")
        if segment.refused is not None:
            # Its own application healed the reset and goes on in the same life, wherever it chose.
            segment = self._begin(
                Segment(
                    segment.reader, segment.node, segment.life, segment.filter, segment.groups,
                    "anywhere", segment.chapter + 1, index,
                )
            )  # fmt: skip
        stamp, _, seq = record["position"].rpartition(".")
        segment.steps.append(Step(record["f"], index, stamp, int(seq), record))

    def _refused(self, index: int, record: Record) -> None:
        segment = self._current.get(record["reader"])
        if segment is None:
            raise ValueError(f"reader {record['reader']!r} has not said who it is (a record 'reader' comes first)")
        position = record["position"]
        stamp, seq = place_of(position) if position else ("", 0)
        step = Step("refused", index, stamp, seq, record)
        segment.steps.append(step)
        if record["code"] in CANNOT_RESUME:
            segment.refused = step

    def _trimmed(self, index: int, record: Record) -> None:
        self.trims.append((index, seq_of(record["floor"])))

    def _fault(self, index: int, record: Record) -> None:
        fault = Fault(record["id"], record["kind"], record["target"], index, record["t"], record.get("expects"))
        fault.how = str((record.get("on") or {}).get("how", ""))
        self._faults[fault.id] = fault
        self.faults.append(fault)

    def _effect(self, index: int, record: Record) -> None:
        fault = self._faults.get(record["id"])
        if fault is None:
            raise ValueError(f"there was no fault {record['id']!r}")
        fault.effects.append(record["what"])

    def _over(self, index: int, record: Record) -> None:
        fault = self._faults.get(record["id"])
        if fault is None:
            raise ValueError(f"there was no fault {record['id']!r}")
        fault.over = record["t"]

    def _restored(self, index: int, record: Record) -> None:
        self.restores.append(Restore(index, record["t"], record["lineage"], seq_of(record["tail"]), record.get("was")))

    def _want(self, index: int, record: Record) -> None:
        self.wants[record["name"]] = max(self.wants.get(record["name"], 0), record["count"])

    def _limit(self, index: int, record: Record) -> None:
        self.limits[record["kind"]] = record

    def _sighting(self, index: int, record: Record) -> None:
        self.sightings[record["name"]] += 1

    def _log(self, index: int, record: Record) -> None:
        seq_of(record["tail"]), seq_of(record["floor"])
        self._dump = index, record

    # ---- afterwards

    def _finish(self) -> None:
        self.lineages = self._lineages()
        self.committed: dict[tuple[str, int], int] = {}
        for index, record in self._commits:
            self._read_part(self._commit, index, record)
        self.entries: list[list[Held]] = []
        for index, record in self._entries:
            self._read_part(self._entry, index, record)
        self.born = self._born() if self.restores else {}
        self.log = self._final_log()
        #: The log's own rows of its ends, as they were told.
        self.ends = {} if self._dump is None else {name: self._dump[1][name] for name in ("tail", "floor")}
        self.logs = [*self._older_logs(), self.log] if self.restores else [self.log]

    def _read_part(self, read: Callable[[int, Record], None], index: int, record: Record) -> None:
        try:
            read(index, record)
        except (KeyError, TypeError, ValueError) as error:
            self._bad(index, record, error, {record["f"]: None})

    def _lineages(self) -> list[str]:
        """The lineage of each era: before the first restore, and after each."""
        if not self.restores:
            return [self._dump[1]["lineage"] if self._dump is not None else self._some_lineage()]
        return [self.restores[0].was or self.restores[0].lineage, *(restore.lineage for restore in self.restores)]

    def _some_lineage(self) -> str:
        """The lineage of any position that was told: there is but one, and no log to ask."""
        for op in self.ops.values():
            for answer in op.acks:
                return answer.first[0].partition(".")[0]
        return next((step.stamp.partition(".")[0] for segment in self.segments for step in segment.steps), "")

    def era(self, index: int) -> int:
        """How many restores came before a record."""
        return sum(restore.at < index for restore in self.restores)

    def fence_era(self, index: int, record: Record) -> int:
        """In which era the log made the fence that a record (fence, elected) tells of: whoever made it may hear of it,
        and say so, only after the log was put back. Where the store does not tell: the era of the record."""
        if self.restores:
            term = record["epoch"], record["term"]
            made = [at for at, fenced in self.fenced if at < index and (fenced["epoch"], fenced["term"]) == term]
            if made:
                return self.era(made[-1])
        return self.era(index)

    def _commit(self, index: int, record: Record) -> None:
        epoch, term = record["epoch"], record["term"]
        lineage = record.get("lineage") or self.lineages[self.era(index)]
        stamp = f"{lineage}.{epoch}.{term}"
        first, last = seq_of(record["first"]), seq_of(record["last"])
        self.commits.append(
            Commit(index, record["t"], stamp, epoch, term, record["fence"], record.get("fence_term"), first, last)
        )
        for seq in range(first, last + 1):
            self.committed.setdefault((stamp, seq), index)

    def _entry(self, index: int, record: Record) -> None:
        lineage = record.get("lineage") or self.lineages[self.era(index)]
        stamp = f"{lineage}.{record['epoch']}.{record['term']}"
        seq, keys, digests, heads = record["seq"], record["keys"], record["digests"], record.get("heads")
        publisher, incarnation, number = record["publisher"], record["incarnation"], record["number"]
        by_key = self.by_key
        held: list[Held] = []
        group = 0
        if not len(keys) == len(digests) == sum(record["sizes"]):
            raise ValueError("its sizes do not add up to its keys and digests")
        for size in record["sizes"]:
            for place in range(group, group + size):
                key = keys[place]
                head = None
                if heads is not None:
                    head = heads[place]
                elif key in by_key:
                    op, at = by_key[key]
                    head = None if op.heads is None else op.heads[at]
                held.append(
                    Held(
                        seq + place, stamp, key, digests[place], publisher, incarnation, number + place,
                        seq + group, seq + group + size - 1, head, index,
                    )
                )  # fmt: skip
            group += size
        self.entries.append(held)

    def _born(self) -> dict[str, int]:
        """The record in which each term was seen first."""
        born: dict[str, int] = {}
        lineages = self.lineages
        seen: list[tuple[int, str]] = [
            (index, f"{lineages[self.fence_era(index, record)]}.{record['epoch']}.{record['term']}")
            for index, record in (*self.elected, *self.fences)
        ]
        seen += [(commit.at, commit.stamp) for commit in self.commits]
        seen += [(answer.at, answer.first[0]) for op in self.ops.values() for answer in op.acks]
        seen += [(step.at, step.stamp) for segment in self.segments for step in segment.steps]
        seen += [(held[0].record, held[0].stamp) for held in self.entries if held]
        for index, stamp in sorted(seen, key=itemgetter(0)):
            born.setdefault(stamp, index)
        return born

    def lost(self, stamp: str, seq: int) -> bool:
        """Whether a position went away with the storage (a record 'restored'), and not by anybody's fault."""
        if not self.restores:
            return False
        born = self.committed.get((stamp, seq))
        if born is None:
            born = self.born.get(stamp, -1)
        lineage = stamp.partition(".")[0]
        return any(
            born < restore.at and (restore.lineage != lineage or seq > restore.tail) for restore in self.restores
        )

    def kept(self, stamp: str, seq: int) -> int:
        """Up to which seq the log in which a position stood is still the same log, whatever was put back since."""
        born = self.committed.get((stamp, seq))
        if born is None:
            born = self.born.get(stamp, -1)
        lineage = stamp.partition(".")[0]
        later = [restore for restore in self.restores if born < restore.at]
        return min((restore.tail if restore.lineage == lineage else 0 for restore in later), default=seq)

    def _final_log(self) -> Log:
        dump = self._dump
        if dump is None:
            tail = max((held[-1].seq for held in self.entries if held), default=0)
            log = Log(self.lineages[-1], 0, tail, whole=False)
        else:
            record = dump[1]
            log = Log(record["lineage"], seq_of(record["floor"]), seq_of(record["tail"]), whole=True)
        at, begin = log.at, -1 if dump is None else dump[0]
        for held in self.entries:
            if held and held[0].record > begin and dump is not None:
                for one in held:
                    if at.setdefault(one.seq, one) is not one:
                        log.clashes.append(one)
        for held in self.entries:
            if held and (dump is None or held[0].record < begin):
                for one in held:
                    if (dump is None or one.seq <= log.floor) and not self.lost(one.stamp, one.seq):
                        at[one.seq] = one
        log.finish()
        return log

    def _older_logs(self) -> list[Log]:
        """What the log held before each restore, as far as that was seen."""
        logs: list[Log] = []
        at: dict[int, Held] = {}
        entries = sorted((held for held in self.entries if held), key=lambda held: held[0].record)
        for era, restore in enumerate(self.restores):
            if era:
                before = self.restores[era - 1]
                kept = before.tail if before.lineage == self.lineages[era - 1] else 0
                at = {seq: held for seq, held in at.items() if seq <= kept}
            begin = self.restores[era - 1].at if era else -1
            for held in entries:
                if begin < held[0].record < restore.at:
                    at.update((one.seq, one) for one in held)
            log = Log(self.lineages[era], 0, max(at, default=0), whole=False)
            log.at = dict(at)
            log.finish()
            logs.append(log)
        return logs

    def committed_tail(self, at: int) -> int | None:
        """Up to where commits had come when a record was written; None if this history does not tell of commits."""
        if not self.commits:
            return None
        place = bisect_left(self.commits, at, key=_at)
        tail = self.commits[place - 1].last if place else self.commits[0].first - 1
        since = self.commits[place - 1].at if place else -1
        for restore in self.restores:
            if since < restore.at < at:
                tail = restore.tail
        return tail

    def seen_tail(self, at: int) -> int:
        """The highest seq that anybody had seen in the log before a record was written, since it was put back last."""
        if self._seen is None:
            seen = [(commit.at, commit.last) for commit in self.commits]
            seen += [(answer.at, answer.last[1]) for op in self.ops.values() for answer in op.acks]
            seen += [
                (s.at, s.seq) for segment in self.segments for s in segment.steps if s.kind in ("event", "bookmark")
            ]
            seen += [(restore.at, -1) for restore in self.restores]
            self._seen, newest = [], 0
            for when, seq in sorted(seen):
                newest = max(newest, seq) if seq >= 0 else 0
                self._seen.append((when, newest))
        place = bisect_left(self._seen, (at, -1))
        return self._seen[place - 1][1] if place else 0

    def log_of(self, stamp: str, seq: int) -> Log:
        """The newest log in which a position stands; the last one if it stands in none."""
        for log in reversed(self.logs):
            held = log.at.get(seq)
            if held is not None and held.stamp == stamp:
                return log
        return self.log
