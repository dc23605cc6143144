"""Single places of the leader's pure parts that a change of one sign or line would break unseen."""

from __future__ import annotations

import pytest

from changefeed.batch import Batch, Tail
from changefeed.change import NO_TERM, SEQ_MAX, Change, FeedSettings
from changefeed.leader import refusals, retention
from changefeed.leader.book import Known, Run, shared
from changefeed.log import Fence, Look
from changefeed.wire.changes import encode_change


def batch(number: int, *groups: str, after: int | None = None) -> Batch:
    """One change per letter, one group per word."""
    payload = b"".join(encode_change(Change("vm", id, "update"), 2**20) for word in groups for id in word)
    sizes = tuple(len(word) for word in groups)
    return Batch("p", 1, number - 1 if after is None else after, number, sizes, payload)


def test_what_is_shared_with_a_batch_that_began_earlier() -> None:
    """A rerun that begins inside a stored batch and differs later shares what is the same, at its own offset."""
    stored = batch(1, "a", "b", "c")
    assert shared(stored, stored.digest, batch(2, "b", "x")) == (1, 1)
    assert shared(stored, stored.digest, batch(2, "b", "c")) == (1, 2)
    assert shared(stored, stored.digest, batch(2, "x", "c"))[1] == 0
    assert shared(stored, stored.digest, batch(2, "bc"))[1] == 0, "another group, though the same changes"


@pytest.mark.parametrize(("number", "good"), [(SEQ_MAX, True), (SEQ_MAX + 1, False)])
def test_the_last_number_of_all_may_be_used(number: int, good: bool) -> None:
    """Numbers go up to 2**53 - 1, that one too."""
    run = Run(Known("p"), 1, 0, 0)
    assert (refusals.malformed(batch(number, "a"), run) == "") is good


def test_superseded_says_what_is_held() -> None:
    """The sentence tells whether anything of the old incarnation is held, and up to which number."""
    assert "nothing of it is held any more" in str(refusals.superseded("p", 1, None))
    assert "its last number stored is 7" in str(refusals.superseded("p", 1, 7))


def test_retention_presses_by_what_is_held_not_by_what_was() -> None:
    """What counts is the number of events between floor and tail; a log that was trimmed often holds no more for it."""
    settings = FeedSettings(retention_count=10)

    def look(floor: int, tail: int) -> Look:
        ends = [Tail(seq, 1, "0badcafe", b"", 5) for seq in (tail, floor)]
        return Look("0123456789abcdef", ends[0], ends[1], Fence(1, NO_TERM), (), 0, 1, 100)

    assert not retention.pressing(look(95, 100), settings)
    assert retention.pressing(look(80, 100), settings)
