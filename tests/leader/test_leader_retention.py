"""What a leader may trim: bounds, tenths, steps, whole entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from leader_bench import LINEAGE

from changefeed.batch import ENTRY_OVERHEAD, Entry, Tail
from changefeed.change import NO_TERM, FeedSettings
from changefeed.leader import retention
from changefeed.log import Fence, Look

NONE = FeedSettings(retention_age_s=None, retention_bytes=None)


def look(floor: int, tail: int, *, size: int = 0, floor_time: int = 0, tail_time: int = 0) -> Look:
    return Look(
        LINEAGE,
        Tail(tail, 1, "00000001", b"", tail_time),
        Tail(floor, 1, "00000001", b"", floor_time),
        Fence(1, "00000001"),
        (),
        0,
        0,
        size,
    )


def entry(seq: int, count: int = 1, size: int = 1000) -> Entry:
    """An entry that counts as `size` bytes."""
    payload = b"x" * (size - ENTRY_OVERHEAD)
    return Entry(1, "00000001", seq, 0, "p", 1, 0, seq, (count,), payload, b"")


def test_nothing_is_trimmed_within_the_bounds() -> None:
    """No bound at all, and each bound just met."""
    now = look(0, 100, size=1000)
    assert not retention.over(now, NONE, 0)
    assert not retention.over(now, replace(NONE, retention_count=100, retention_bytes=1000), 0)
    assert not retention.over(look(5, 5), replace(NONE, retention_count=0, retention_bytes=0), 5)
    assert retention.step(now, NONE, 0, [entry(1)], 10) is None
    assert retention.step(look(5, 5), replace(NONE, retention_count=0), 5, [], 6) is None


@pytest.mark.parametrize(
    ("settings", "aged"),
    [(replace(NONE, retention_count=99), 0), (replace(NONE, retention_bytes=999), 0), (NONE, 1)],
    ids=["count", "bytes", "age"],
)
def test_each_bound_alone_is_seen(settings: FeedSettings, aged: int) -> None:
    """Whichever is first."""
    assert retention.over(look(0, 100, size=1000), settings, aged)


def test_age_is_measured_against_the_newest_entry() -> None:
    """Never against a clock: an idle feed does not age."""
    settings = replace(NONE, retention_age_s=60.0)
    busy = look(0, 50_000, tail_time=100_000)
    assert retention.too_old_before(busy, settings) == 40_000
    assert retention.too_old_before(replace(busy, floor=Tail(9, 1, NO_TERM, b"", 40_000)), settings) is None
    assert retention.too_old_before(busy, NONE) is None


def test_the_last_ten_thousand_events_do_not_age() -> None:
    """One entry with a wrong stamp must not empty a feed."""
    settings = replace(NONE, retention_age_s=1.0)
    assert retention.too_old_before(look(0, 10_000, tail_time=10**12), settings) is None
    now = look(0, 10_100, tail_time=10**12)
    assert retention.too_old_before(now, settings) == 10**12 - 1000
    assert retention.step(now, settings, 10_100, [entry(1)], 10**6) == 100


def test_a_pass_trims_at_most_a_tenth() -> None:
    """Of the events held when it began."""
    now = look(1000, 2000)
    assert retention.pass_end(now) == 1100
    assert retention.step(now, replace(NONE, retention_count=0), 0, [entry(1001)], 1100) == 1100
    assert retention.step(look(1100, 2000), replace(NONE, retention_count=0), 0, [entry(1101)], 1100) is None


def test_a_small_feed_trims_one_entry_a_pass() -> None:
    """Where a tenth is less than the oldest entry, which lies beyond the bound with all its events."""
    settings = replace(NONE, retention_count=5)
    now = look(0, 30)
    assert retention.step(now, settings, 0, [entry(1, 20), entry(21, 10)], retention.pass_end(now)) == 20
    assert retention.step(look(20, 30), settings, 0, [entry(21, 10)], retention.pass_end(now)) is None


def test_an_entry_that_lies_partly_within_the_bound_stays() -> None:
    """Whole entries, and at least what the bound says is kept."""
    settings = replace(NONE, retention_count=15)
    assert retention.step(look(0, 30), settings, 0, [entry(1, 20), entry(21, 10)], 30) is None


def test_bytes_are_told_by_the_density_of_the_oldest_entries() -> None:
    """Large old events and small new ones: only as many go as make up the excess."""
    settings = replace(NONE, retention_bytes=900_000)
    now = look(0, 100_000, size=1_000_000)
    assert retention.step(now, settings, 0, [entry(1), entry(2)], 10_000) == 100
    assert retention.step(now, settings, 0, [entry(1, 10), entry(11, 10)], 10_000) == 1000


def test_a_step_is_one_small_transaction() -> None:
    """However much there is to trim; but at least an entry."""
    settings = replace(NONE, retention_count=0)
    now = look(0, 10**7)
    assert retention.step(now, settings, 0, [entry(1, 1, 2**20)], 10**6) == retention.STEP_BYTES // 2**20
    assert retention.step(now, settings, 0, [entry(1, 10, 2**28)], 10**6) == 10


def test_only_events_and_bytes_press() -> None:
    """Age waits for its turn: a wrong stamp is to trim slowly."""
    now = look(0, 100, size=1000)
    assert not retention.pressing(now, NONE)
    assert not retention.pressing(now, replace(NONE, retention_age_s=0.0, retention_count=100, retention_bytes=1000))
    assert retention.pressing(now, replace(NONE, retention_count=99))
    assert retention.pressing(now, replace(NONE, retention_bytes=999))


def test_what_is_not_in_the_snapshot_stays() -> None:
    """On a feed that keeps one: whatever the bounds say, and also the one entry that a small feed's pass may trim."""
    settings = replace(NONE, retention_count=0, snapshot=True)
    now = look(0, 100)
    assert retention.step(replace(now, folded=40), settings, 0, [entry(1)], 60) == 40
    assert retention.step(replace(now, folded=80), settings, 0, [entry(1)], 60) == 60
    assert retention.step(now, settings, 0, [entry(1)], 60) is None, "nothing is folded"
    assert retention.step(replace(look(0, 9), folded=4), settings, 0, [entry(1, 5)], 1) is None
    assert retention.step(replace(look(0, 9), folded=5), settings, 0, [entry(1, 5)], 1) == 5
    assert retention.step(replace(look(50, 100), folded=40), settings, 0, [entry(51)], 60) is None, (
        "it was off meanwhile"
    )
    assert retention.step(replace(now, folded=40), replace(settings, snapshot=False), 0, [entry(1)], 60) == 60
