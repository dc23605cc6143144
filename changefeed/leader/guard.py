"""Which objects have versions, on a feed that keeps a snapshot, and what is refused because of that (pure).

An object *has a version* if a change that tells its state carried one. What is known of that, newest first:

    pending     batches that wait for their append, or are in it
    unfolded    what this term appended, or found at its start, and is not in the snapshot yet
    snapshot    the log's rows: asked for by a look-up, for one batch at a time

A look-up may be older than the last fold by the time its batch is judged. So what was folded since it was asked for
stays in `unfolded` until that batch is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from changefeed.change import Key
from changefeed.declared import body_missing
from changefeed.errors import Refused, VersionMissing
from changefeed.leader.folding import tells_state
from changefeed.log import OUTBOX
from changefeed.wire.changes import Head, raw_heads

if TYPE_CHECKING:
    from changefeed.batch import Batch, Entry
    from changefeed.log import Latest, Look

#: Objects with versions that are not in the snapshot yet: beyond it the leader takes no more until a fold is through.
OBJECTS_MAX: Final = 100_000


@dataclass(slots=True)
class Check:
    """What a batch holds, as far as it matters here, and how far its check is.

    bare: objects whose first change of the batch has no version. marks: objects to which the batch gives a version,
    with the highest one. error: what is wrong whatever the log holds. token: of the look-up (0: none asked for yet).
    versions: what the snapshot said about `bare`, once it was asked. looked: a look has found this term's fence since.
    """

    bare: tuple[Key, ...] = ()
    marks: dict[Key, int] = field(default_factory=dict)
    error: Refused | None = None
    token: int = 0
    versions: dict[Key, int] | None = None
    looked: bool = False


class Wait(Enum):
    """A batch cannot be judged yet."""

    SNAPSHOT = "the snapshot must be asked"
    SETTLED = "something pending must be settled first"


def check_of(batch: Batch) -> Check:
    """Raises BadMessage for a payload that holds no changes."""
    return _checked(raw_heads(batch.payload, batch.count), batch.publisher == OUTBOX)


def marks_of(entry: Entry) -> dict[Key, int]:
    """The objects to which an entry gives a version, with the highest one. Raises BadMessage, as above."""
    return _checked(raw_heads(entry.payload, entry.count), True).marks


def _checked(heads: Sequence[Head], committed: bool) -> Check:
    """committed: an application's transaction has decided it: nothing is refused, and nothing is asked."""
    bare: dict[Key, None] = {}
    marks: dict[Key, int] = {}
    error: Refused | None = None
    for resource, id, op, _, body, version, _ in heads:
        key = (resource, id)
        if body is None and error is None:
            error = body_missing(resource, id, op, body)
        if version is None:
            if key in marks:
                error = error or version_missing(key, marks[key])
            else:
                bare[key] = None
        elif tells_state(op, body):
            marks[key] = max(version, marks.get(key, 0))
    return Check(marks=marks) if committed else Check(tuple(bare), marks, error)


class Guard:
    """What a term knows. on: the feed keeps a snapshot. building: what stands between the snapshot and the log's end
    has not been read yet, so that no change without version can be judged. folded: up to where the snapshot reaches,
    as far as this term knows. versioned: whether a row of the snapshot may have a version."""

    def __init__(self) -> None:
        self.on = False
        self.building = False
        self.folded = 0
        self.versioned = False
        #: Object -> (how many pending batches give it a version, the last one).
        self._pending: dict[Key, tuple[int, int]] = {}
        #: Object -> (seq up to which its last version must be remembered, the highest one); in the order of seqs.
        self._unfolded: dict[Key, tuple[int, int]] = {}
        #: Look-ups whose batch is not judged yet -> `folded` when they were asked for.
        self._asked: dict[int, int] = {}

    def begin(self, look: Look) -> None:
        """The feed keeps a snapshot: from now on every batch that is accepted is noted."""
        self.on = self.building = True
        self.folded = look.floor.seq if look.folded is None else look.folded
        self.versioned = look.versioned

    @property
    def full(self) -> bool:
        """No more may be noted until a fold is through."""
        return self.on and len(self._unfolded) + len(self._pending) >= OBJECTS_MAX

    @property
    def objects(self) -> int:
        """With a version, and not in the snapshot yet."""
        return len(self._unfolded)

    # ---- what is noted

    def accepted(self, marks: dict[Key, int]) -> None:
        for key, version in marks.items():
            self._pending[key] = (self._pending.get(key, (0, 0))[0] + 1, version)

    def dropped(self, marks: dict[Key, int]) -> None:
        """A pending batch is settled: it is appended, or will never be."""
        for key in marks:
            count, version = self._pending[key]
            if count > 1:
                self._pending[key] = (count - 1, version)
            else:
                del self._pending[key]

    def appended(self, marks: dict[Key, int], last_seq: int) -> None:
        """A batch that was pending is durable, up to `last_seq`."""
        self.dropped(marks)
        self._note(self._unfolded, marks, last_seq)

    @staticmethod
    def _note(place: dict[Key, tuple[int, int]], marks: dict[Key, int], last_seq: int) -> None:
        for key, version in marks.items():
            # Taken out first, so that the order stays that of the seqs.
            _, before = place.pop(key, (0, 0))
            place[key] = (last_seq, max(version, before))

    def built(self, found: Iterable[tuple[dict[Key, int], int]]) -> None:
        """What stood between the snapshot and the log's end when `begin` was called: the marks of its entries, each
        with its last seq. Without all of it (there is too much of it), what is missing counts once it is folded."""
        place: dict[Key, tuple[int, int]] = {}
        for marks, last_seq in found:
            self._note(place, marks, last_seq)
        for key, (seq, version) in self._unfolded.items():
            self._note(place, {key: version}, seq)
        self._unfolded = place
        self.building = False
        self._forget()

    def reached(self, to: int, versioned: bool) -> None:
        """The snapshot reaches up to seq `to`; versioned: a change that was folded has a version."""
        self.versioned = self.versioned or versioned
        self.folded = to
        self._forget()

    def _forget(self) -> None:
        safe = min(self._asked.values(), default=self.folded)
        passed = []
        for key, (seq, _) in self._unfolded.items():
            if seq > safe:
                break
            passed.append(key)
        for key in passed:
            del self._unfolded[key]

    # ---- judgement

    def asks(self, token: int) -> None:
        """A look-up is on its way: until `settled`, what it may not have seen is remembered."""
        self._asked[token] = self.folded

    def settled(self, token: int) -> None:
        if self._asked.pop(token, None) is not None:
            self._forget()

    def judge(self, check: Check) -> Refused | Wait | None:
        """Whether a batch that goes on where its publisher's numbers end may be accepted (None)."""
        if check.error is not None:
            return check.error
        if not check.bare:
            return None
        if self.building:
            return Wait.SETTLED
        waits: Wait | None = None
        for key in check.bare:
            if key in self._unfolded:
                return version_missing(key, self._unfolded[key][1])
            if key in self._pending:
                # That one may still be refused.
                waits = Wait.SETTLED
        if waits is None and self.versioned:
            if check.versions is None:
                return Wait.SNAPSHOT
            for key in check.bare:
                if key in check.versions:
                    return version_missing(key, check.versions[key])
        return waits


def versions_of(rows: Iterable[Latest]) -> dict[Key, int]:
    return {row.key: row.version for row in rows if row.version is not None}


def version_missing(key: Key, version: int) -> VersionMissing:
    return VersionMissing(
        f"the change of {key[0]} {key[1]!r} has no version, but the object's changes carry one ({version} stands) and "
        "this feed keeps a snapshot: nobody could say which is newer; publish it with a `version` above that one"
    )
