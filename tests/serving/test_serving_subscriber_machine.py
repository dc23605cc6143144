"""A subscriber's session: admission, ranges, bookmarks, heartbeats, redirects, endings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.batch import Entry, Tail
from changefeed.change import NO_TERM, Position
from changefeed.errors import (
    ConnectionLost,
    Draining,
    FuturePosition,
    Moved,
    NotCurrent,
    OtherLineage,
    PositionTooOld,
    Stalled,
)
from changefeed.log import EpochRecord, Fence, Look
from changefeed.serving.machine import (
    LOG_RETRY_S,
    REDIRECT_GRACE_S,
    End,
    Read,
    Send,
    Session,
    Sight,
    Verify,
    Wait,
    admit,
    group_start,
)
from changefeed.settings import Settings
from changefeed.wire.messages import Beat, Events, Redirect, Run, Start, Subscribe

LINEAGE = "0" * 15 + "1"
A, B = "0000000a", "0000000b"
SETTINGS = Settings()


def look(floor: int = 0, tail: int = 100, floor_time: int = 0) -> Look:
    """A log whose seqs up to 50 are of term A, those after it of term B."""
    return Look(
        lineage=LINEAGE,
        tail=Tail(tail, 2, B, b"", 5000),
        floor=Tail(floor, 1 if floor else 0, A if floor else NO_TERM, b"", floor_time),
        fence=Fence(3, "0000000c"),
        epochs=(EpochRecord(1, A, 1, 0, "i", "start"), EpochRecord(2, B, 51, 0, "i", "start")),
        incarnations=0,
        settings_version=0,
        bytes=0,
    )


def request(groups: bool = False, **start: Any) -> Subscribe:
    return Subscribe("vmapi", Start(**start), "name", groups=groups)


def position(seq: int, epoch: int = 2, term: str = B, lineage: str = LINEAGE) -> Position:
    return Position(lineage, epoch, term, seq)


# ---- admission


def test_beginning_is_the_oldest_that_is_held() -> None:
    """Trimmed or not: the floor, with the stamp of the entry that holds it."""
    assert admit(request(at="beginning"), look(), None) == Position.beginning(LINEAGE)
    assert admit(request(at="beginning"), look(floor=7), None) == position(7, 1, A)


def test_now_is_the_visible_tail_and_never_beyond() -> None:
    """What is in the log beyond it may not stay there; while nobody vouches, the answer is to ask again."""
    assert admit(request(at="now"), look(tail=100), Tail(90, 2, B, b"")) == position(90)
    with pytest.raises(NotCurrent):
        admit(request(at="now"), look(), None)


@pytest.mark.parametrize(
    ("at", "refusal"),
    [
        (position(100), None),
        (position(51), None),
        (position(50, 1, A), None),
        (position(5, 1, A), None),
        (position(4, 1, A), PositionTooOld),
        (position(101), FuturePosition),
        (position(50), OtherLineage),
        (position(51, 1, A), OtherLineage),
        (position(60, 2, "ffffffff"), OtherLineage),
        (position(60, lineage="f" * 16), OtherLineage),
    ],
)
def test_a_position_is_resumed_or_refused_with_its_reason(at: Position, refusal: type[Exception] | None) -> None:
    """Too old, from the future, of another log or of a term that this log does not hold; never a guess. A lagging
    instance's own tail plays no part."""
    if refusal is None:
        assert admit(request(position=at), look(floor=5), Tail(20, 1, A, b"")) == at
    else:
        with pytest.raises(refusal) as refused:
            admit(request(position=at), look(floor=5), Tail(20, 1, A, b""))
        assert refused.value.position == at and refused.value.head == position(100)  # type: ignore[attr-defined]


def test_a_start_by_time() -> None:
    """Before the first event at or after it; clipped to what is visible; too old if such events may be trimmed."""
    assert admit(request(time=70), look(), Tail(90, 2, B, b""), 60) == position(60)
    assert admit(request(time=70), look(), Tail(90, 2, B, b""), 95) == position(90)
    assert admit(request(time=10**12), look(), None, 100) == position(100)
    assert admit(request(time=0), look(), None, 0) == Position.beginning(LINEAGE)
    assert admit(request(time=71), look(floor=5, floor_time=70), None, 5) == position(5, 1, A)
    for time, seq in ((70, 5), (71, 4)):
        with pytest.raises(PositionTooOld):
            admit(request(time=time), look(floor=5, floor_time=70), None, seq)


@pytest.mark.parametrize(("seq", "start"), [(50, 50), (51, 50), (52, 52), (53, 52), (54, 52), (55, 55), (56, 56)])
def test_groups_begin_at_the_first_event_of_their_group(seq: int, start: int) -> None:
    """A position inside a group goes back to before its first event, with the stamp of what is there."""
    if seq == 50:
        holder = Entry(1, A, 50, 0, "p", 1, 0, 1, (1,), b"", b"")
        assert group_start(position(50, 1, A), holder, look()) == position(50, 1, A)
        return
    holder = Entry(2, B, 51, 0, "p", 1, 0, 1, (2, 3, 1), b"", b"")
    stamp = (1, A) if start == 50 else (2, B)
    assert group_start(position(seq), holder, look()) == position(start, *stamp)


# ---- what happens next


def sight(tail: int = 0, **other: Any) -> Sight:
    return Sight(**({"tail": tail, "epoch": 3, "stale_s": 0.0, "servers": (), "draining": False} | other))


def session(seq: int = 0, now: float = 0.0, luck: float = 0.5) -> Session:
    return Session(position(seq), SETTINGS, now, luck)


def run(seq: int) -> Run:
    return Run(2, B, 0, "p", seq, None, b"x")


def test_a_range_without_events_becomes_a_bookmark_at_the_tail() -> None:
    """Catching up through events that are not wanted: told at once when the tail is reached."""
    it = session(10)
    assert it.step(0, sight(30)) == Read(10, 30)
    it.took([], position(20), 0)
    assert it.step(0, sight(30)) == Read(20, 30)
    it.took([], position(30), 0)
    assert it.step(0, sight(30)) == Send(Events(10, position(30)))
    assert it.told == it.scanned == position(30)
    assert it.step(0, sight(30)) == Wait(SETTINGS.stale_after_s, 30)


def test_live_bookmarks_are_sent_once_per_bookmark_s() -> None:
    """A busy feed of which a subscriber wants nothing costs it one small frame a second, not one per event."""
    it, frames = session(0), []
    for tick in range(1, 100):
        now = tick / 10
        while True:
            match it.step(now, sight(tick)):
                case Read(_, upto):
                    it.took([], position(upto), now)
                case Send(Events() as frame):
                    frames.append((now, frame))
                case Wait():
                    break
                case other:
                    raise AssertionError(other)
    assert 8 <= len(frames) <= 11
    covered = 0
    for _, frame in frames:
        assert frame.after == covered and not frame.runs
        covered = frame.to.seq


def test_a_long_catch_up_without_matches_is_told_on_the_way() -> None:
    """The subscriber's position moves while the server looks through the log, so that it does not fall out of it."""
    it = session(0)
    it.step(0, sight(1000))
    it.took([], position(100), 0.4)
    assert it.step(0.5, sight(1000)) == Read(100, 1000)
    it.took([], position(200), 0.9)
    assert it.step(1.0, sight(1000)) == Send(Events(0, position(200)))
    assert it.step(1.0, sight(1000)) == Read(200, 1000)


def test_events_come_with_the_range_in_which_nothing_was_wanted() -> None:
    """The frame begins where the subscriber is, not where the last look began."""
    it = session(0)
    it.step(0, sight(30))
    it.took([], position(10), 0)
    it.step(0, sight(30))
    it.took([run(20)], position(25), 0)
    assert it.step(0, sight(30)) == Send(Events(0, position(25), (run(20),)))


def test_idle_sessions_beat() -> None:
    """Every heartbeat_s without another message; with the head, the epoch and how stale the instance is."""
    it = session(5)
    assert it.step(9.9, sight(5)) == Wait(10.0, 5)
    it.heard(9)
    assert it.step(10, sight(5, stale_s=1.5)) == Send(Beat(3, 5, 1.5))
    assert it.step(10, sight(5)) == Wait(15.0, 5)
    it.took([run(6)], position(6), 15)
    assert isinstance(it.step(15, sight(6)), Send)
    assert isinstance(it.step(24.9, sight(6)), Wait)
    assert it.step(25, sight(-1, stale_s=float("inf"))) == Send(Beat(3, 0, 1e9))


def test_a_silent_subscriber_is_let_go() -> None:
    """After heartbeat_dead_s without a word, however busy the feed is."""
    it = session()
    it.heard(3.0)
    assert not isinstance(it.step(27.9, sight(100)), End)
    step = it.step(28.0, sight(100))
    assert isinstance(step, End) and isinstance(step.error, Stalled)


def test_what_fails_the_connection_ends_the_session() -> None:
    """The first reason counts, before anything else is sent."""
    it = session()
    it.step(0, sight(1))
    it.took([run(1)], position(1), 0)
    lost = ConnectionLost("gone")
    it.failed(lost)
    it.failed(Stalled("later"))
    assert it.step(0, sight(1)) == End(lost)


def test_draining_spreads_redirects_and_then_closes() -> None:
    """Each subscriber is told to go after its share of redirect_spread_s, is served meanwhile, and closed later."""
    it = session(5, luck=0.25)
    where = ("ws://other:1",)
    assert it.step(100 - 90, sight(5, draining=True, servers=where)) == Send(Redirect(where, 2.5))
    assert it.step(10, sight(6, draining=True, servers=where)) == Read(5, 6)
    it.took([run(6)], position(6), 10)
    assert isinstance(it.step(10, sight(6, draining=True, servers=where)), Send)
    leave = 10 + 2.5 + REDIRECT_GRACE_S
    assert it.step(11, sight(6, draining=True, servers=where)) == Wait(leave, 6)
    step = it.step(leave, sight(6, draining=True, servers=where))
    assert isinstance(step, End) and isinstance(step.error, Moved)


def test_draining_without_another_server_ends_at_once() -> None:
    step = session().step(0, sight(draining=True))
    assert isinstance(step, End) and isinstance(step.error, Draining)


def test_a_stale_instance_sends_subscribers_only_to_a_fresh_one_once_a_minute() -> None:
    """Without a fresh server it keeps them; after one redirect it keeps them too, for a minute."""
    it = session(5)
    fresh = ("ws://fresh:1",)
    assert it.step(0, sight(5, stale_s=100)) == Wait(5.0, 5)
    assert it.step(0, sight(5, stale_s=4.9, servers=fresh)) == Wait(5.0, 5)
    assert it.step(0, sight(5, stale_s=5, servers=fresh, redirected_s=59)) == Wait(5.0, 5)
    assert it.step(0, sight(5, stale_s=5, servers=fresh, redirected_s=60)) == Send(Redirect(fresh, 5.0))
    it.heard(9)
    assert not isinstance(it.step(30, sight(5, stale_s=35, servers=fresh, redirected_s=30)), End)


def test_a_log_that_does_not_answer_keeps_the_subscriber() -> None:
    """Retried after a while; heartbeats go on."""
    it = session(5)
    assert it.step(0, sight(9)) == Read(5, 9)
    it.log_failed(0)
    assert it.step(0, sight(9)) == Wait(LOG_RETRY_S, None)
    assert it.step(LOG_RETRY_S, sight(9)) == Read(5, 9)
    it.log_failed(9.9)
    assert isinstance(it.step(10, sight(9)), Send)


def test_a_tail_behind_the_position_is_looked_into() -> None:
    """An instance that is behind waits; whether the log was replaced by an older one, only the log can say."""
    it = session(50)
    assert it.step(0, sight(40)) == Verify(position(50))
    assert it.step(0, sight(40)) == Wait(5.0, 50)
    assert it.step(5, sight(40)) == Verify(position(50))
    assert it.step(5, sight(-1)) == Wait(10.0, 50)
    assert it.step(6, sight(51)) == Read(50, 51)


def test_handled_positions_are_never_more_than_what_was_told() -> None:
    it = session(50)
    assert it.handled(position(40)) == position(40)
    assert it.handled(position(60)) == position(50)
    assert it.handled(position(40, lineage="f" * 16)) is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5)),
            st.tuples(st.just("time"), st.sampled_from([0.1, 0.5, 1.0, 3.0])),
            st.tuples(st.just("fail"), st.just(0)),
        ),
        max_size=60,
    ),
    st.sets(st.integers(1, 200)),
    st.integers(1, 4),
)
def test_ranges_are_gapless_and_hold_every_wanted_event_once(
    happens: list[tuple[str, Any]], wanted: set[int], chunk: int
) -> None:
    """Whatever is appended, however long things take, whatever the log refuses: what arrives is exactly what the
    filter selects, in order, and a position never passes an event that was not delivered."""
    it, now, tail, failing = session(0), 0.0, 0, False
    got: list[int] = []
    covered = 0
    for what, value in [*happens, *[("time", 2.0)] * 3]:
        if what == "append":
            tail += value
        elif what == "time":
            now += value
            it.heard(now)
        else:
            failing = True
        while True:
            step = it.step(now, sight(tail))
            if isinstance(step, Read):
                assert (step.after, step.upto) == (it.scanned.seq, tail)
                if failing:
                    failing = False
                    it.log_failed(now)
                    continue
                to = min(step.after + chunk, tail)
                it.took([run(seq) for seq in range(step.after + 1, to + 1) if seq in wanted], position(to), now)
            elif isinstance(step, Send):
                if isinstance(step.message, Events):
                    assert step.message.after == covered < step.message.to.seq <= tail
                    covered = step.message.to.seq
                    got += [each.seqs for each in step.message.runs]  # type: ignore[misc]
                    assert got == [seq for seq in range(1, covered + 1) if seq in wanted]
            else:
                assert isinstance(step, Wait)
                assert step.until > now
                break
    assert covered == tail
    assert got == [seq for seq in range(1, tail + 1) if seq in wanted]
