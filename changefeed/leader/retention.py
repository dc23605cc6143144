"""Which events a leader may trim now (pure). Age is measured against the newest entry's time, never the clock.

A *pass* trims at most a tenth of the feed, so that one wrong stamp cannot empty it at once. It goes in *steps*, each a
transaction small enough that appends and fences beside it do not wait long. While a feed has too many events or bytes
the passes follow each other faster (`HURRY`), so that a busy feed is kept near its bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from changefeed.batch import Entry
from changefeed.change import FeedSettings

if TYPE_CHECKING:
    from changefeed.log import Look

#: Never trimmed because of their age.
KEEP_EVENTS: Final = 10_000
#: A pass trims at most one part in so many of the feed's events.
PASS_SHARE: Final = 10
#: So many times faster than retention_every_s.
HURRY: Final = 10
#: Read from the floor on, to learn how many bytes the oldest events have.
SAMPLE_BYTES: Final = 256 * 1024
#: What one transaction trims.
STEP_BYTES: Final = 4 * 1024 * 1024


def too_old_before(look: Look, settings: FeedSettings) -> int | None:
    """Wall milliseconds: entries stamped before are too old. None if age trims nothing now."""
    if settings.retention_age_s is None or look.tail.seq - KEEP_EVENTS <= look.floor.seq:
        return None
    before = look.tail.time - int(settings.retention_age_s * 1000)
    return before if before > look.floor.time else None


def pass_end(look: Look) -> int:
    """The seq up to which a pass that begins at this look may trim."""
    return look.floor.seq + max(1, (look.tail.seq - look.floor.seq) // PASS_SHARE)


def pressing(look: Look, settings: FeedSettings) -> bool:
    """Whether there are too many events or bytes. No clock has a say in that: a next pass need not wait for long."""
    return (settings.retention_count is not None and look.tail.seq - look.floor.seq > settings.retention_count) or (
        settings.retention_bytes is not None and look.bytes > settings.retention_bytes
    )


def over(look: Look, settings: FeedSettings, aged: int) -> bool:
    """Whether a bound is passed. aged: seq of the last event that is too old (the floor's: none)."""
    return look.tail.seq > look.floor.seq and (aged > look.floor.seq or pressing(look, settings))


def step(look: Look, settings: FeedSettings, aged: int, sample: Sequence[Entry], end: int) -> int | None:
    """Up to which seq to trim now, or None: the pass is done.

    sample: the oldest entries (at least one unless there is none): how dense they are says how many of them make up
    the bytes above the bound. end: `pass_end` of the pass's first look. Only whole entries go: where a tenth of a small
    feed is less than its oldest entry, a pass trims that entry alone. Of the bound's last entry nothing goes.
    """
    if not sample:
        return None
    floor, tail = look.floor.seq, look.tail.seq
    oldest = sample[0].last_seq
    bytes_per_event = max(1, sum(entry.bytes for entry in sample) // (sample[-1].last_seq - floor))
    wanted = min(aged, tail - KEEP_EVENTS)
    if settings.retention_count is not None:
        wanted = max(wanted, tail - settings.retention_count)
    if settings.retention_bytes is not None:
        wanted = max(wanted, floor + (look.bytes - settings.retention_bytes) // bytes_per_event)
    if settings.snapshot:
        wanted = min(wanted, floor if look.folded is None else look.folded)
    if wanted < oldest:
        return None
    if end < oldest:
        first_of_pass = end == pass_end(look)
        return oldest if first_of_pass else None
    return max(oldest, min(wanted, end, floor + STEP_BYTES // bytes_per_event))
