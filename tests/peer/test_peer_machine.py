"""The link between instances: evidence, far leaders, entries, answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.batch import Entry, Tail
from changefeed.change import Position
from changefeed.peer.machine import (
    BeginWindow,
    Broken,
    FollowerEnd,
    Foreign,
    Heard,
    LeaderEnd,
    Leads,
    LeadsNoMore,
    Met,
    OpenSettled,
    Settled,
    Visible,
)
from changefeed.wire.messages import Answer, Entries, Fault, PeerAnswer, PeerBeat, PeerOpened

LINEAGE, OTHER, TERM = "a" * 16, "b" * 16, "c" * 8


def at(seq: int, lineage: str = LINEAGE) -> Position:
    return Position(lineage, 1, TERM, seq)


def entry(seq: int, count: int = 1) -> Entry:
    return Entry(1, TERM, seq, 0, "p", 1, seq - 1, seq, (1,) * count, b"", b"")


def beat(state: str = "leading", *, epoch: int = 3, tail: Position | None = None, process: str = "leader") -> PeerBeat:
    return PeerBeat("one", process, state, epoch, TERM, tail, True)


def met(tail: Position | None = None) -> FollowerEnd:
    end = FollowerEnd("leader", LINEAGE, tail)
    end.received(beat(tail=at(5)))
    return end


def kinds(effects: list[Any]) -> list[type]:
    return [type(effect) for effect in effects]


def test_the_first_beat_of_the_right_process_is_a_meeting_and_begins_an_empty_window() -> None:
    end = FollowerEnd("leader", LINEAGE, None)

    effects = end.received(beat(tail=at(5)))

    assert kinds(effects) == [Met, Heard, BeginWindow, Leads]
    assert effects[2] == BeginWindow(at(5))


def test_another_process_at_the_leaders_url_is_evidence_and_nothing_else_of_it_counts() -> None:
    end = FollowerEnd("leader", LINEAGE, None)

    assert end.received(beat(process="newcomer")) == [Foreign("newcomer")]
    assert not end.met


@pytest.mark.parametrize("message", [Entries(at(0), ()), Fault("other-lineage", "not mine", False)])
def test_who_does_not_say_who_it_is_breaks_the_link(message: Any) -> None:
    assert kinds(FollowerEnd("leader", LINEAGE, None).received(message)) == [Broken]


def test_a_far_leader_ends_with_its_epoch_even_in_the_same_process() -> None:
    end = met()
    assert end.open_sent() == 1
    end.publish_sent(1, 1)

    effects = end.received(beat(epoch=4, tail=at(5)))

    assert kinds(effects) == [Heard, LeadsNoMore, Leads]
    assert end.received(PeerAnswer(1, Answer(1, 1, at(6)))) == []


def test_a_peer_that_stops_leading_is_heard_but_no_leader() -> None:
    end = met()

    assert kinds(end.received(beat("following", epoch=0))) == [Heard, LeadsNoMore]
    assert end.leads is None


def test_a_beat_of_another_log_breaks_the_link() -> None:
    assert met().received(beat(tail=at(5, OTHER)))[-1] == Broken("the peer's log is another one", foreign_log=True)


def test_entries_behind_the_tail_become_visible_and_known_ones_are_dropped() -> None:
    end = met()

    effects = end.received(Entries(at(4), (entry(5), entry(6), entry(7, 2))))

    assert effects == [Visible([entry(6), entry(7, 2)])]
    assert end.tail is not None and end.tail.seq == 8
    assert end.received(Entries(at(4), (entry(5), entry(6)))) == []


def test_entries_beyond_the_tail_begin_the_window_anew_where_they_begin() -> None:
    effects = met().received(Entries(at(20), (entry(21),)))

    assert effects == [BeginWindow(at(20)), Visible([entry(21)])]


def test_a_hole_between_entries_breaks_the_link_and_shows_nothing() -> None:
    assert kinds(met().received(Entries(at(5), (entry(6), entry(8))))) == [Broken]


def test_entries_of_another_log_break_the_link() -> None:
    assert met().received(Entries(at(5, OTHER), (entry(6),)))[-1] == Broken("the peer's log is another one", True)


def test_an_answer_must_name_the_oldest_waiting_batch_of_its_channel() -> None:
    end = met()
    assert end.open_sent() == 1
    end.publish_sent(1, 1)
    end.publish_sent(1, 5)

    assert end.received(PeerAnswer(1, Answer(5, 1, at(9)))) == []
    assert end.received(PeerAnswer(2, Answer(1, 1, at(9)))) == []
    first = Answer(1, 4, at(6))
    assert end.received(PeerAnswer(1, first)) == [Settled(1, first)]
    assert kinds(end.received(PeerAnswer(1, Answer(5, 1, at(10))))) == [Settled]


def test_an_open_is_settled_once_and_only_if_somebody_waits() -> None:
    end = met()
    assert end.open_sent() == 1
    fault = Fault("superseded", "newer", False)

    assert end.received(PeerOpened(1, None, fault)) == [OpenSettled(1, None, fault)]
    assert end.received(PeerOpened(1, None, fault)) == []


def test_a_closed_channel_gets_no_answers() -> None:
    end = met()
    assert end.open_sent() == 1
    end.publish_sent(1, 1)
    end.channel_closed(1)

    assert end.received(PeerAnswer(1, Answer(1, 1, at(6)))) == []


def test_a_fault_after_the_meeting_says_whether_the_log_is_foreign() -> None:
    assert met().received(Fault("other-lineage", "no", False)) == [Broken("no", True)]
    assert met().received(Fault("draining", "bye", True)) == [Broken("bye", False)]


def test_a_leader_may_not_send_what_only_followers_send() -> None:
    assert kinds(met().received(Answer(1, 1))) == [Broken]  # type: ignore[arg-type]


def tail(seq: int) -> Tail:
    return Tail(seq, 1, TERM, b"")


def test_the_leaders_end_sends_from_the_followers_tail_while_its_window_reaches_back() -> None:
    end = LeaderEnd(at(5))

    assert end.next_after(tail(3), tail(9), LINEAGE) == at(5)
    end.sent([entry(6), entry(7, 3)], LINEAGE)
    assert end.next_after(tail(3), tail(9), LINEAGE) is None


def test_the_leaders_end_skips_to_its_floor_when_the_follower_fell_behind() -> None:
    assert LeaderEnd(at(5)).next_after(tail(7), tail(9), LINEAGE) == at(7)


def test_a_follower_is_told_that_it_fell_behind_though_nothing_follows_yet() -> None:
    """A new term's window begins, empty, at the log's tail: what an append of unknown outcome stored lies below it."""
    end = LeaderEnd(at(5))
    assert end.next_after(tail(7), tail(7), LINEAGE) == at(7)
    end.sent([], LINEAGE)
    assert end.next_after(tail(7), tail(7), LINEAGE) is None
    assert end.next_after(tail(7), tail(8), LINEAGE) == at(7)

    follower = met()
    assert follower.received(Entries(at(7), ())) == [BeginWindow(at(7))]
    assert follower.received(Entries(at(7), ())) == []


def test_a_new_follower_gets_what_comes_after_the_present_tail() -> None:
    end = LeaderEnd(None)

    assert end.next_after(None, None, LINEAGE) is None
    assert end.next_after(tail(3), tail(9), LINEAGE) == at(9)
    end.sent([], LINEAGE)
    assert end.next_after(tail(3), tail(9), LINEAGE) is None
    assert end.next_after(tail(3), tail(10), LINEAGE) == at(9)


@given(st.data())
def test_a_followers_window_never_has_a_hole_or_a_repeat(data: st.DataObject) -> None:
    """Whatever the connection drops or repeats, what becomes visible is dense from where the window began."""
    log = [entry(seq) for seq in range(1, 40)]
    end = FollowerEnd("leader", LINEAGE, None)
    end.received(beat(tail=at(data.draw(st.integers(0, 10)))))
    visible: list[int] = []
    for _ in range(data.draw(st.integers(1, 12))):
        start = data.draw(st.integers(0, 30))
        stop = data.draw(st.integers(start, min(start + 8, 39)))
        for effect in end.received(Entries(at(start), tuple(log[start:stop]))):
            if isinstance(effect, BeginWindow):
                visible = [effect.at.seq]
            elif isinstance(effect, Visible):
                visible += [one.seq for one in effect.entries]
    dense = list(range(visible[0], visible[0] + len(visible))) if visible else []
    assert visible == dense


def test_an_answer_of_an_earlier_term_is_not_taken_for_one_of_the_next() -> None:
    """Channels go on being numbered when the peer leads again: else a publisher could get another one's numbers."""
    end = met()
    first = end.open_sent()
    end.received(beat("following", epoch=0))
    end.received(beat(epoch=4))
    second = end.open_sent()
    assert second != first
    assert end.received(PeerOpened(first, None, Fault("not-current", "late", True))) == []
    assert kinds(end.received(PeerOpened(second, None, Fault("not-current", "now", True)))) == [OpenSettled]
