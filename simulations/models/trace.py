"""Is a recorded run a behaviour of the abstract protocol? A small specification of its own, replayed record by record.

It knows nothing of the production code: only a log, a fence, who submitted what, what leaders have learned, and where
each reader stands. Every record must be a step of it. Where something happens that nobody records (a fence that lands
while its answer is lost) the specification takes the hidden step that explains the record, if there is one.

    fence     the log lets an epoch and term write, above all before it
    commit    an entry joins the log under the fence that stands: whole groups as they were submitted, each once, in the
              order of each publisher
    learn     a leader hears that its append is stored; from now on its publishers may hear of it, and readers see it
    refuse    a leader is fenced: nothing of its epoch, or of an older one, is ever committed again
    ack       a group is acknowledged where the log holds it
    resume    a reader goes on where it stood, or where it had saved
    deliver   a reader is given the next change that it asked for, as the log holds it, once a leader vouches for it
    end       the log is what was committed and not trimmed; readers hold what they were given
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Unexplained(Exception):
    """No step of the specification explains a record. index: which, from 0; the end of the history is its length."""

    def __init__(self, index: int, record: Record | None, why: str) -> None:
        what = "the end" if record is None else f"record {index}, {record['f']} of {record['node']}"
        super().__init__(f"{what}: {why}")
        self.index = index
        self.why = why


class Place(NamedTuple):
    """A position, taken apart."""

    lineage: str
    epoch: int
    term: str
    seq: int


class Held(NamedTuple):
    """One change in the log."""

    key: str
    digest: str
    epoch: int
    term: str
    group: int
    last: bool
    who: tuple[str, int]
    number: int
    head: tuple[str, str, str, tuple[str, ...]] | None


@dataclass
class Op:
    """A group that was submitted. order: of its node's submits. first: where it is in the log, 0: nowhere."""

    keys: tuple[str, ...]
    digests: tuple[str, ...]
    heads: tuple[Any, ...]
    node: str
    order: int
    first: int = 0
    refused: bool = False
    settled: set[int] = field(default_factory=set)


@dataclass
class Reader:
    """saved: what its cursor holds. given: up to where it was given everything, in this life; None: not known yet.
    reach: up to where there is nothing more that it wants, as far as it can know."""

    life: int = 0
    filter: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    saved: Place | None = None
    given: Place | None = None
    reach: int = 0
    connected: bool = False
    over: bool = False


def place(text: str) -> Place:
    lineage, epoch, term, seq = text.split(".")
    return Place(lineage, int(epoch), term, int(seq))


class Spec:
    """The state of the specification. `step` takes one record; `end` is asked for after the last one."""

    def __init__(self) -> None:
        self.lineage = ""
        self.log: dict[int, Held] = {}
        self.tail = self.floor = 0
        self.fence = (0, "")
        self.closed = 0  # nothing of this epoch or an older one is committed any more
        self.vouched = 0
        self.learned: set[int] = set()
        self.numbers: dict[tuple[str, int], int] = {}
        self.newest: dict[tuple[str, int], tuple[str, int]] = {}
        self.ops: dict[str, Op] = {}
        self.by_key: dict[str, str] = {}
        self.submits: dict[str, int] = {}
        self.lives: dict[str, int] = {}
        self.gone: set[tuple[str, int]] = set()
        self.offices: dict[tuple[str, int], dict[int, str]] = {}
        self.fenced: dict[int, str] = {}
        self.readers: dict[str, Reader] = {}
        self.commit: Record | None = None
        self.ending: int | None = None
        #: What was put back to a copy: what somebody knew of it may still be said.
        self.lost: dict[int, set[Held]] = {}
        self.restored = False
        #: Whether the store itself tells when a fence is made.
        self.tells_fences = False

    def step(self, record: Record) -> None:
        """Raises AssertionError with the reason if no step explains the record."""
        node, life, f = record["node"], record["life"], record["f"]
        known = self.lives.get(node, 0)
        require(life >= known, f"life {life} of {node} speaks after life {known} began")
        require((node, life) not in self.gone or f == "quit", f"life {life} of {node} speaks after its end")
        self.lives[node] = life
        act = getattr(self, f"on_{f}", None)
        if act is not None and not (self.restored and f in _OF_BOTH and self._of_the_lost(record)):
            act(record)

    def _of_the_lost(self, record: Record) -> bool:
        """After a copy was put back: whether a record speaks of what was lost. Who knew that learns of it later."""
        if record["f"] == "effects":
            return True
        if record["f"] == "append":
            held = [self.log.get(seq) for seq in range(record["first"], record["last"] + 1)]
            return record["outcome"] != "stored" or any(one is None or one.epoch != record["epoch"] for one in held)
        text = record.get("position") or record.get("last") or ""
        at = place(text)
        foreign = at.lineage != self.lineage or at.seq > self.tail or not self._agrees(at)
        known = any((held.epoch, held.term) == (at.epoch, at.term) for held in self.lost.get(at.seq, ()))
        reader = self.readers.get(record.get("reader", ""))
        behind = reader is not None and reader.given is not None and (
            reader.given.seq > self.tail or not self._agrees(reader.given)
        )  # fmt: skip
        return (foreign and known) or behind

    # ---- leaders and the log

    def on_fence(self, record: Record) -> None:
        epoch, term = record["epoch"], record["term"]
        tail = _seq(record["tail"])
        gone = tail > self.tail or (self.tells_fences and self.fenced.get(epoch) != term)
        if self.restored and gone:
            # It landed in the log that is gone; its answer came after the copy was put back.
            self.offices.setdefault((record["node"], record["life"]), {})[epoch] = term
            return
        self._fence_landed(epoch, term)
        require(tail <= self.tail, f"a fence tells the tail {tail}, the log ends at {self.tail}")
        require(
            all(self.log[seq].epoch < epoch for seq in self.log if seq <= tail),
            "a fence found entries of its own epoch",
        )
        self.offices.setdefault((record["node"], record["life"]), {})[epoch] = term
        self.vouched = max(self.vouched, tail)

    def on_fenced(self, record: Record) -> None:
        self.tells_fences = True
        require(record["epoch"] > self.fence[0], f"the log let epoch {record['epoch']} follow {self.fence[0]}")
        self._fence_landed(record["epoch"], record["term"])

    def _fence_landed(self, epoch: int, term: str) -> None:
        """The step that may have happened unseen before it is spoken of."""
        known = self.fenced.setdefault(epoch, term)
        require(known == term, f"epoch {epoch} is fenced twice: terms {known} and {term}")
        if epoch > self.fence[0]:
            self.fence = (epoch, term)
            self.closed = max(self.closed, epoch - 1)

    def on_elected(self, record: Record) -> None:
        terms = self.offices.get((record["node"], record["life"]), {})
        require(terms.get(record["epoch"]) == record["term"], f"it leads {record['epoch']}, but has fenced {terms}")

    def on_deposed(self, record: Record) -> None:
        terms = self.offices.get((record["node"], record["life"]), {})
        require(terms.pop(record["epoch"], None) is not None, f"it does not lead {record['epoch']}")

    def on_commit(self, record: Record) -> None:
        epoch, term = record["epoch"], record["term"]
        require(self.commit is None, "a commit without its entry came before")
        require(record["first"] == self.tail + 1, f"entries from {record['first']} on follow the tail {self.tail}")
        require(epoch > self.closed, f"epoch {epoch} commits although all up to {self.closed} are fenced off")
        self._fence_landed(record["fence"], record.get("fence_term", term))
        require((epoch, term) == self.fence, f"{epoch}.{term} commits under the fence {self.fence}")
        self.commit = record

    def on_entry(self, record: Record) -> None:
        if self.ending is not None:
            self._at_the_end(record)
            return
        commit, self.commit = self.commit, None
        require(commit is not None, "an entry that nobody committed")
        assert commit is not None
        keys, sizes = record["keys"], record["sizes"]
        require(record["seq"] == commit["first"] and len(keys) == sum(sizes), "an entry at another place")
        require(commit["last"] == record["seq"] + len(keys) - 1, "an entry of another length")
        require((record["epoch"], record["term"]) == (commit["epoch"], commit["term"]), "an entry of another term")
        who = (record["publisher"], record["incarnation"])
        last = self.numbers.get(who, 0)
        require(record["number"] > last, f"number {record['number']} of {who} follows {last}")
        self.numbers[who] = record["number"] + len(keys) - 1
        if record.get("lineage"):
            self.lineage = self.lineage or record["lineage"]
            require(record["lineage"] == self.lineage, f"an entry of {record['lineage']}, the log is {self.lineage}")
        at = 0
        for size in sizes:
            self._group(record, who, at, size)
            at += size
        self.tail = commit["last"]

    def _group(self, record: Record, who: tuple[str, int], at: int, size: int) -> None:
        """A group joins the log: exactly what one submit said, and only once."""
        keys = tuple(record["keys"][at : at + size])
        name = self.by_key.get(keys[0])
        require(name is not None, f"{keys[0]} was never submitted")
        assert name is not None
        op = self.ops[name]
        require(op.keys == keys, f"the group of {keys[0]} is not what was submitted as {name}")
        digests = tuple(record["digests"][at : at + size])
        require(op.digests == digests, f"{name} is stored with other bytes")
        require(op.first == 0, f"{name} is stored at {op.first} and again")
        require(not op.refused, f"{name} is stored although it was refused")
        newest = self.newest.get(who)
        if newest is not None and newest[0] == op.node:
            require(op.order > newest[1], f"{name} is stored after what was submitted behind it")
        self.newest[who] = (op.node, op.order)
        first = record["seq"] + at
        op.first = first
        for index, key in enumerate(keys):
            self.log[first + index] = Held(
                key, digests[index], record["epoch"], record["term"], first, index == size - 1, who,
                record["number"] + at + index, _head(op.heads[index]) if op.heads else None,
            )  # fmt: skip

    def on_trimmed(self, record: Record) -> None:
        # A copy that was put back may have been trimmed less; nobody says how far.
        require(
            (self.restored or self.floor <= record["floor"]) and record["floor"] <= self.tail,
            f"trimmed up to {record['floor']} of {self.tail}",
        )
        self.floor = record["floor"]

    def on_append(self, record: Record) -> None:
        epoch, first, last = record["epoch"], record["first"], record["last"]
        if record["outcome"] == "stored":
            held = [self.log.get(seq) for seq in range(first, last + 1)]
            require(all(one is not None and one.epoch == epoch for one in held), f"{first} to {last} are not committed")
            require(first not in self.learned, f"the append of {first} to {last} is answered twice")
            self.learned.update(range(first, last + 1))
            self.vouched = max(self.vouched, last)
        elif record["outcome"] == "fenced":
            require(epoch <= self.fence[0], f"epoch {epoch} is refused, but the fence is {self.fence[0]}")
            self.closed = max(self.closed, epoch)

    def on_repeat(self, record: Record) -> None:
        numbers = [last for (publisher, _), last in self.numbers.items() if publisher == record["publisher"]]
        require(any(record["number"] <= last for last in numbers), "a repeated number that the log never held")

    def on_restored(self, record: Record) -> None:
        """The storage is another copy: what lay above it is gone, and may be stored anew."""
        tail = record["tail"] if record["lineage"] == self.lineage else 0
        self.restored = True
        for seq in [seq for seq in self.log if seq > tail]:
            self.lost.setdefault(seq, set()).add(self.log.pop(seq))
        for op in self.ops.values():
            if op.first > tail:
                op.first = 0
        self.lineage, self.tail, self.vouched = record["lineage"], tail, min(self.vouched, tail)
        self.floor = min(self.floor, tail)
        self.fence, self.closed, self.fenced = (0, ""), 0, {}
        self.learned = {seq for seq in self.learned if seq <= tail}
        self.numbers = {held.who: held.number for _, held in sorted(self.log.items())}
        self.newest.clear()

    # ---- publishers

    def on_submit(self, record: Record) -> None:
        name, node = record["op"], record["node"]
        keys, digests = tuple(record["keys"]), tuple(record["digests"])
        known = self.ops.get(name)
        if known is not None:
            require((known.keys, known.digests) == (keys, digests), f"{name} was submitted as something else")
            return
        require(not any(key in self.by_key for key in keys), f"a key of {name} belongs to another group")
        self.submits[node] = order = self.submits.get(node, 0) + 1
        self.ops[name] = Op(keys, digests, tuple(record.get("heads") or ()), node, order)
        for key in keys:
            self.by_key[key] = name

    def on_acked(self, record: Record) -> None:
        op = self._settled(record)
        first, last = place(record["first"]), place(record["last"])
        require(op.first > 0, "acknowledged, but the log does not hold it")
        require(op.first == first.seq and last.seq == first.seq + len(op.keys) - 1, f"it is at {op.first}")
        held = self.log[first.seq]
        require((held.epoch, held.term) == (first.epoch, first.term), "a receipt of another term")
        if not record.get("repeated"):
            require(last.seq in self.learned, "acknowledged before a leader knew that it is stored")

    def on_failed(self, record: Record) -> None:
        op = self._settled(record)
        require(op.first == 0, f"refused, but it is stored at {op.first}")
        op.refused = True

    def on_unknown(self, record: Record) -> None:
        self._settled(record)

    def _settled(self, record: Record) -> Op:
        op = self.ops.get(record["op"])
        require(op is not None, f"{record['op']} was never submitted")
        assert op is not None
        require(record["life"] not in op.settled, f"{record['op']} is settled twice in one life")
        op.settled.add(record["life"])
        return op

    def on_quit(self, record: Record) -> None:
        self.gone.add((record["node"], record["life"]))

    # ---- readers

    def on_reader(self, record: Record) -> None:
        reader = self.readers.setdefault(record["reader"], Reader())
        require(record["life"] > reader.life, "a reader begins a life that it had")
        reader.life, reader.filter, reader.start = record["life"], record["filter"], record["start"]
        reader.given, reader.reach, reader.connected, reader.over = reader.saved, 0, False, False

    def on_connected(self, record: Record) -> None:
        reader, at = self._reader(record), place(record["position"])
        self._check_place(at)
        require(at.seq <= max(self.vouched, self.floor), f"goes on from {at.seq}, vouched for is {self.vouched}")
        if reader.given is None:
            if reader.start == "beginning":
                require(at.seq <= self.floor, f"the beginning is {self.floor}, not {at.seq}")
            elif reader.start != "now":
                require(at.seq <= place(reader.start).seq, f"asked for {reader.start}")
            reader.given = at
        elif at.seq < reader.given.seq:
            held = self.log.get(reader.given.seq)
            require(held is not None and at.seq >= held.group - 1, f"goes back to {at.seq}")
        elif not reader.connected:
            require(at.seq == reader.given.seq, f"goes on from {at.seq}, had saved {reader.given.seq}")
        # Later in a life it goes on after what it took: that may lie ahead of what the application was given.
        reader.connected = True

    def on_event(self, record: Record) -> None:
        reader, at = self._reader(record), place(record["position"])
        require(reader.given is not None, "given something before it was let in")
        assert reader.given is not None
        require(at.seq > reader.given.seq, f"given {at.seq} after {reader.given.seq}")
        require(at.seq <= self.vouched, f"given {at.seq}, vouched for is {self.vouched}")
        self._check_place(at)
        held = self.log[at.seq]
        said = (record["key"], record["digest"], record["publisher"], record["group"])
        require(said == (held.key, held.digest, held.who[0], held.group), f"given {said}, the log holds {held}")
        require(_selects(reader.filter, held), f"given {held.key}, which its filter does not select")
        skipped = self._skipped(reader, reader.given.seq, at.seq - 1)
        require(skipped is None, f"given {at.seq} although {skipped} comes before")
        end = self._group_end(at.seq)
        more = self._skipped(reader, at.seq, end) is not None
        require(record["last"] is not more, f"{at.seq} is {'not ' if more else ''}the last that it gets of its group")
        # The rest of the group, if nothing of it was asked for, may count as given too.
        reader.given, reader.reach = at, at.seq if more else end

    def on_bookmark(self, record: Record) -> None:
        reader, at = self._reader(record), place(record["position"])
        require(reader.given is not None or reader.over, "told of progress before it was let in")
        if not reader.over:
            self._progress(reader, at)

    def _progress(self, reader: Reader, at: Place) -> None:
        """It is given everything up to there: nothing that it wants lies between, and a leader vouches for it."""
        assert reader.given is not None
        self._check_place(at)
        if at.seq <= reader.given.seq:
            return
        require(at.seq <= self.vouched, f"at {at.seq}, vouched for is {self.vouched}")
        if at.seq > reader.reach:
            skipped = self._skipped(reader, reader.given.seq, at.seq)
            require(skipped is None, f"at {at.seq} although it was not given {skipped}")
        reader.given = at

    def on_handled(self, record: Record) -> None:
        reader, at = self._reader(record), place(record["position"])
        require(reader.given is not None, "saves before it was let in")
        require(reader.saved is None or at.seq >= reader.saved.seq, f"saves {at.seq} over {reader.saved}")
        self._progress(reader, at)
        reader.saved = at

    def on_refused(self, record: Record) -> None:
        reader = self._reader(record)
        text, code = record.get("position"), record["code"]
        if text:
            at = place(text)
            foreign = at.lineage != self.lineage
            stays = not foreign and self.floor <= at.seq <= self.tail and self._agrees(at)
            require(code not in _CANNOT or not stays, f"{code} is said of {text}, which the log holds")
        if code in _CANNOT:
            reader.saved, reader.over = None, True

    def _reader(self, record: Record) -> Reader:
        reader = self.readers.get(record["reader"])
        require(reader is not None and reader.life == record["life"], "a reader that did not begin")
        assert reader is not None
        return reader

    def _group_end(self, seq: int) -> int:
        while not self.log[seq].last:
            seq += 1
        return seq

    def _check_place(self, at: Place) -> None:
        self.lineage = self.lineage or at.lineage
        require(at.lineage == self.lineage, f"{at.lineage} is another log than {self.lineage}")
        require(at.seq <= self.tail, f"{at.seq} lies beyond the tail {self.tail}")
        require(self._agrees(at), f"{at.seq} is not of {at.epoch}.{at.term}")

    def _agrees(self, at: Place) -> bool:
        held = self.log.get(at.seq)
        return held is None if at.seq == 0 else held is not None and (held.epoch, held.term) == (at.epoch, at.term)

    def _skipped(self, reader: Reader, after: int, upto: int) -> int | None:
        """The first seq in (after, upto] that the reader's filter selects."""
        return next((seq for seq in range(after + 1, upto + 1) if _selects(reader.filter, self.log[seq])), None)

    # ---- the end

    def on_log(self, record: Record) -> None:
        require(self.commit is None, "a commit without its entry")
        require(_seq(record["tail"]) == self.tail, f"the log ends at {record['tail']}, not at {self.tail}")
        floor = _seq(record["floor"])
        # A copy that was put back may have been trimmed less; nobody says how far.
        told = floor == self.floor or (self.restored and floor < self.floor)
        require(told, f"the log begins after {record['floor']}, not after {self.floor}")
        self.ending = floor

    def _at_the_end(self, record: Record) -> None:
        assert self.ending is not None
        for index, key in enumerate(record["keys"]):
            seq = record["seq"] + index
            held = self.log.get(seq)
            require(held is not None, f"the log holds {seq}, which was never committed")
            assert held is not None
            same = (held.key, held.digest, held.epoch, held.term)
            found = (key, record["digests"][index], record["epoch"], record["term"])
            require(found == same, f"the log holds {found} at {seq}, committed was {same}")
            require(seq == self.ending + 1, f"the log goes on at {seq} after {self.ending}")
            self.ending = seq

    def on_effects(self, record: Record) -> None:
        """What a reader's database holds must be a stretch of the log, as its filter selects it."""
        origin = _seq(record["origin"]) if record.get("origin") else 0
        reader = self.readers[record["reader"]]
        wanted = [
            (seq, held.key) for seq, held in sorted(self.log.items()) if seq > origin and _selects(reader.filter, held)
        ]
        keys = list(record["keys"])
        require(keys == [key for _, key in wanted[: len(keys)]], f"its effects are not the log from {origin} on")
        saved = _seq(record["position"]) if record.get("position") else 0 if reader.saved is None else reader.saved.seq
        least = sum(seq <= saved for seq, _ in wanted)
        require(len(keys) >= least, f"of {least} effects up to {saved} it holds {len(keys)}")

    def end(self) -> None:
        """After the last record."""
        require(self.commit is None, "a commit without its entry")
        require(self.ending in (None, self.tail), f"the log was told up to {self.ending}, it ends at {self.tail}")


#: Records that may speak of a copy of the log that is gone.
_OF_BOTH = frozenset({"append", "acked", "connected", "event", "bookmark", "handled", "effects"})
_CANNOT = frozenset({"position-too-old", "other-lineage", "future-position"})


def validate(records: Iterable[Record]) -> Spec:
    """The specification after all records. Raises Unexplained at the first that no step explains."""
    spec = Spec()
    index, record = -1, None
    for index, record in enumerate(records):
        try:
            spec.step(record)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise Unexplained(index, record, str(error) or type(error).__name__) from error
    try:
        spec.end()
    except AssertionError as error:
        raise Unexplained(index + 1, None, str(error)) from error
    return spec


def require(holds: bool, why: str) -> None:
    if not holds:
        raise AssertionError(why)


def _seq(value: int | str) -> int:
    return value if isinstance(value, int) else place(value).seq


def _head(head: Sequence[Any]) -> tuple[str, str, str, tuple[str, ...]]:
    resource, id, op, fields = head
    return resource, id, op, tuple(fields or ())


def _selects(filter: Mapping[str, Any], held: Held) -> bool:
    if not filter or held.head is None:
        return True
    resource, id, op, fields = held.head
    resources = filter.get("resources") or {}
    if resources:
        if resource not in resources:
            return False
        named = resources[resource]
        if named and op == "update" and fields and not set(named) & set(fields):
            return False
    ids, ops = filter.get("ids"), filter.get("ops")
    return (not ids or id in ids) and (not ops or op in ops)
