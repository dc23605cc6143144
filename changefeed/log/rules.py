"""What every store holds to, apart from how it stores (pure): what an append may hold, when a disk is full, settings.

A mistake of the caller's code (entries that are not dense, a seq beyond 2**53) is a ValueError: nothing was written,
and no user can mend it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from changefeed.batch import Entry, Tail
from changefeed.change import SEQ_MAX, FeedSettings, Key, Resource
from changefeed.errors import Fenced, TailMoved
from changefeed.log import Fence, Latest
from changefeed.settings import Settings

#: Epoch records kept at most, not counting terms that the log holds entries of: those go with their entries.
EPOCHS_KEPT: Final = 1000


def check_entries(epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]) -> None:
    """Raise ValueError unless entries are what `FeedLog.append` asks for, as far as they alone can tell."""
    if not entries:
        raise ValueError("an append holds at least one entry")
    seq, time = expected_tail + 1, 0
    for entry in entries:
        if (entry.epoch, entry.term) != (epoch, term):
            raise ValueError(f"entry {entry.seq} is stamped {entry.epoch}.{entry.term}, not {epoch}.{term}")
        if entry.seq != seq:
            raise ValueError(f"entry {entry.seq} does not follow seq {seq - 1}")
        if not entry.sizes or min(entry.sizes) < 1:
            raise ValueError(f"entry {entry.seq} holds an empty group or none")
        if entry.last_seq > SEQ_MAX:
            raise ValueError(f"entry {entry.seq} goes beyond seq 2**53 - 1")
        if entry.time < time:
            raise ValueError(f"entry {entry.seq} is of time {entry.time}, before {time} of the entry before")
        if len(entry.batch_digest) != 8 or len(entry.digest) != 32:
            raise ValueError(f"entry {entry.seq} does not carry its digests")
        seq, time = entry.last_seq + 1, entry.time


def check_time(tail: Tail, first: Entry) -> None:
    """Raise ValueError if times would decrease: `read_time` searches them."""
    if first.time < tail.time:
        raise ValueError(f"entry {first.seq} is of time {first.time}, before {tail.time} of the log's tail")


#: Objects that `FeedLog.latest` is asked for at once.
LATEST_MAX: Final = 10_000
#: What a tombstone counts in a page of `FeedLog.list_latest`: it has no payload, but so many may follow each other.
TOMBSTONE_BYTES: Final = 128


def check_fold(after: int | None, to: int, rows: Sequence[Latest], gone: Sequence[Key]) -> None:
    """Raise ValueError unless the arguments are what `FeedLog.fold` asks for, as far as they alone can tell."""
    if after is not None and not 0 <= after <= to:
        raise ValueError(f"a fold goes forward, not from seq {after} to seq {to}")
    keys = {row.key for row in rows}
    if len(keys.union(gone)) < len(rows) + len(gone):
        raise ValueError("a fold names an object once, among rows and gone")
    for row in rows:
        if not 1 <= row.seq <= to:
            raise ValueError(f"a fold to seq {to} cannot hold a row of seq {row.seq}")
        if row.version is None and row.payload is None:
            raise ValueError(f"the row of {row.resource} {row.id!r:.80} is a tombstone, and yet has no version")
        if row.version is not None and not 0 <= row.version < 2**63:
            raise ValueError(f"the row of {row.resource} {row.id!r:.80} has the impossible version {row.version}")


def check_folded(feed: str, folded: int | None, after: int | None, to: int, floor: int, tail: int) -> None:
    """Raise TailMoved if the snapshot is not where a fold begins, ValueError if it may not end at `to`."""
    if after is not None and after != folded:
        stands = "there is none" if folded is None else f"it is folded up to seq {folded}"
        raise TailMoved(f"the snapshot of feed {feed} does not stand at seq {after}: {stands}")
    if not floor <= to <= tail:
        raise ValueError(f"a fold ends between floor and tail, {floor} and {tail}, not at seq {to}")


def listed_bytes(payload: object) -> int:
    """What a row counts in a page of `FeedLog.list_latest`; what is no payload is found by whoever reads it."""
    return len(payload) if type(payload) is bytes else TOMBSTONE_BYTES


def check_listed(feed: str, folded: int | None, at: int | None) -> None:
    """Raise TailMoved if the snapshot does not hold (any more) what it held at seq `at`."""
    if at is not None and (folded is None or folded < at):
        stands = "nothing is folded" if folded is None else f"it is folded up to seq {folded}"
        raise TailMoved(f"the snapshot of feed {feed} was begun anew: {stands}, not up to {at}")


def check_keys(keys: Sequence[Key]) -> None:
    """Raise ValueError for more objects than `FeedLog.latest` may be asked for at once."""
    if len(keys) > LATEST_MAX:
        raise ValueError(f"latest is asked for {len(keys):,} objects at once; the limit is {LATEST_MAX:,}")


def fenced(feed: str, epoch: int, term: str, fence: Fence) -> Fenced:
    """The refusal of a write under another epoch and term than the fence's."""
    return Fenced(
        f"feed {feed} is fenced by {fence.instance or 'nobody'} for epoch {fence.epoch} term {fence.term};"
        f" a write of epoch {epoch} term {term} was refused",
        fence.epoch,
        fence.term,
        fence.coordinator,
    )


def fence_refused(feed: str, wanted: Fence, fence: Fence) -> Fenced:
    """The refusal of a fence that is not above the one that stands."""
    return Fenced(
        f"feed {feed} is fenced for epoch {fence.epoch} by {fence.instance or 'nobody'}; a fence for epoch"
        f" {wanted.epoch} is not above it",
        fence.epoch,
        fence.term,
        fence.coordinator,
    )


def room_needed(total: int, settings: Settings) -> int:
    """Free bytes below which appends are refused with LogFull: min_free_bytes, or min_free_share of a small disk."""
    return min(settings.min_free_bytes, int(settings.min_free_share * total))


def too_old(feed: str, after_seq: int, floor: int) -> str:
    return f"feed {feed} is trimmed up to seq {floor}: what follows seq {after_seq} is no longer held"


def dump_settings(settings: FeedSettings) -> str:
    """The stored form of a feed's settings, without their version."""
    return json.dumps(
        {
            "resources": [
                {"name": r.name, "fields": None if r.fields is None else list(r.fields), "list": r.list}
                for r in settings.resources
            ],
            "retention_age_s": settings.retention_age_s,
            "retention_bytes": settings.retention_bytes,
            "retention_count": settings.retention_count,
            "snapshot": settings.snapshot,
        }
    )


def load_settings(text: str, version: int) -> FeedSettings:
    """The settings of a stored form; unknown keys of a later release are left out. Raises ValueError."""
    try:
        found: dict[str, Any] = json.loads(text)
        resources = tuple(
            Resource(r["name"], None if r["fields"] is None else tuple(r["fields"]), r["list"])
            for r in found["resources"]
        )
        return FeedSettings(
            resources,
            found["retention_age_s"],
            found["retention_bytes"],
            found["retention_count"],
            version,
            bool(found.get("snapshot", False)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"stored settings cannot be read: {error!r}") from None
