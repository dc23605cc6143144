"""A thousand new seeds of the cluster tier each day; see slices.py. Two files, for two processes."""

from __future__ import annotations

from collections import Counter

import pytest
from slices import all_met, run_chunk

MET: Counter[str] = Counter()


@pytest.mark.parametrize("chunk", range(10))
def test_new_seeds_keep_every_promise(chunk: int) -> None:
    run_chunk(chunk, MET)


def test_what_must_be_met_now_and_then_was_met() -> None:
    """Else these seeds test less than they seem to."""
    all_met(MET)
