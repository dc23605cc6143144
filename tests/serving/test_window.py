"""The window: dense, bounded, and honest about what it does not hold."""

from __future__ import annotations

import gc
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.batch import ENTRY_OVERHEAD, Entry, Tail
from changefeed.serving.window import Window


def entry(seq: int, count: int = 1, size: int = 10, digest: bytes = b"d") -> Entry:
    return Entry(1, "0000000a", seq, seq * 10, "p", 1, 0, 1, (1,) * count, b"x" * size, b"b" * 8, digest)


def entries(counts: list[int], first: int = 1, size: int = 10) -> list[Entry]:
    starts = accumulate(counts, initial=first)
    return [entry(seq, count, size) for seq, count in zip(starts, counts, strict=False)]


ZERO = Tail(0, 0, "00000000", b"")


def test_nothing_is_known_before_it_begins() -> None:
    """Without a tail nobody vouches for anything: ask the log, and do not append."""
    window = Window(1000)
    assert window.tail is None and window.floor is None and window.after(0, 100) is None
    with pytest.raises(ValueError, match="begin"):
        window.append([entry(1)])


def test_tail_and_floor_carry_the_stamp_of_their_entry() -> None:
    """So that a position can be made of them."""
    window = Window(2 * (10 + ENTRY_OVERHEAD))
    window.begin(ZERO)
    window.append(entries([2, 3, 1]))
    assert (window.tail.seq, window.tail.epoch, window.tail.term, window.tail.time) == (6, 1, "0000000a", 60)  # type: ignore[union-attr]
    assert (window.floor.seq, window.floor.epoch, window.floor.term) == (2, 1, "0000000a")  # type: ignore[union-attr]


@given(
    st.lists(st.integers(1, 4), max_size=40),
    st.integers(0, 4000),
    st.integers(0, 1000),
    st.integers(0, 500),
    st.integers(0, 3),
)
def test_after_is_what_the_log_would_say_or_nothing(
    counts: list[int], bytes_max: int, max_bytes: int, start: int, step: int
) -> None:
    """From every position: a dense run that begins with what follows it, within the size asked for; [] at the tail;
    None below the floor. The bound on memory holds, but for the newest entry."""
    window = Window(bytes_max)
    window.begin(Tail(start, 0, "00000000", b""))
    made = entries(counts, start + 1)
    for index in range(0, len(made), step + 1):
        window.append(made[index : index + step + 1])
    end = start + sum(counts)
    assert window.tail is not None and window.tail.seq == end
    assert window.floor is not None and start <= window.floor.seq <= end
    assert window.bytes <= bytes_max or len(window) == 1
    assert window.bytes == sum(each.bytes for each in made if each.seq > window.floor.seq)
    for seq in range(start, end + 3):
        found = window.after(seq, max_bytes)
        if seq >= end:
            assert found == []
        elif seq < window.floor.seq:
            assert found is None
        else:
            assert found and found[0].seq <= seq + 1 <= found[0].last_seq
            assert found == made[made.index(found[0]) :][: len(found)]
            assert len(found) == 1 or sum(each.bytes for each in found) <= max_bytes
            following = made[made.index(found[-1]) + 1 :][:1]
            assert not following or sum(each.bytes for each in [*found, *following]) > max_bytes


def test_a_hole_is_refused() -> None:
    window = Window(1000)
    window.begin(ZERO)
    window.append(entries([2]))
    with pytest.raises(ValueError, match="does not follow"):
        window.append([entry(4)])
    with pytest.raises(ValueError, match="does not follow"):
        window.append([entry(2, 2)])
    assert window.tail is not None and window.tail.seq == 2


def test_what_comes_again_is_dropped_unless_it_is_something_else() -> None:
    """A new link repeats entries; the same seqs under another digest are another history."""
    window = Window(1000)
    window.begin(ZERO)
    window.append(entries([2, 1]))
    window.append(entries([2, 1, 1]))
    assert window.tail is not None and window.tail.seq == 4 and len(window) == 3
    with pytest.raises(ValueError, match="another digest"):
        window.append([entry(3, 1, digest=b"other")])


def test_begin_forgets_what_was_held() -> None:
    window = Window(10_000)
    window.begin(ZERO)
    window.append(entries([1] * 20))
    window.begin(Tail(5, 2, "0000000b", b""))
    assert (window.bytes, len(window)) == (0, 0)
    assert window.after(4, 100) is None and window.after(5, 100) == []
    window.append([entry(6)])
    assert window.after(5, 100) == [entry(6)]


def test_dropped_entries_are_let_go() -> None:
    """The list itself stays short after many appends."""
    window = Window(10 * (10 + ENTRY_OVERHEAD))
    window.begin(ZERO)
    for made in entries([1] * 5000):
        window.append([made])
    assert len(window) == 10
    assert len(window._entries) < 1000
    assert window.after(4990, 10**6) == entries([1] * 10, 4991)


def test_what_was_dropped_is_free() -> None:
    """A window of large entries holds no more than it says: what it has dropped, nobody holds any more."""
    made = entries([1] * 50, size=1000)
    window = Window(3 * (1000 + ENTRY_OVERHEAD))
    window.begin(ZERO)
    window.append(made)
    held = [each.seq for each in made if any(each is kept for kept in gc.get_referents(window._entries))]
    assert held == [48, 49, 50] and window.bytes == 3 * (1000 + ENTRY_OVERHEAD)
