"""What sessions share is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from changefeed.serving.frames_cache import Shared


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3000))))
def test_items_and_bytes_stay_within_their_bounds(puts: list[tuple[int, int]]) -> None:
    """Whatever is put: the newest that fits is found again, and no bound is passed."""
    shared: Shared[str] = Shared(items_max=5, bytes_max=8000)
    for key, size in puts:
        shared.put(key, f"{key}/{size}", size)
        if size + 256 <= 2000:
            assert shared.get(key) == f"{key}/{size}"
        assert len(shared) <= 5 and 0 <= shared.bytes <= 8000
        assert shared.bytes == sum(size for _, size in shared._values.values())


def test_what_was_used_last_stays() -> None:
    shared: Shared[int] = Shared(items_max=2, bytes_max=10_000)
    shared.put("a", 1, 0)
    shared.put("b", 2, 0)
    assert shared.get("a") == 1
    shared.put("c", 3, 0)
    assert (shared.get("a"), shared.get("b"), shared.get("c")) == (1, None, 3)
