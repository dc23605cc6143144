"""The leader's machine: who is admitted under which incarnation, what needs a look into the log, how a term ends."""

from __future__ import annotations

from typing import Any

import pytest
from leader_bench import LINEAGE, Bench, SyncLog, batch

from changefeed.change import Position
from changefeed.errors import (
    AcknowledgedLost,
    AppendOutcomeUnknown,
    BadMessage,
    ChangefeedError,
    Fenced,
    Forgotten,
    InvalidName,
    LogDamaged,
    LogFull,
    LogUnavailable,
    NotCurrent,
    PublisherInUse,
    Superseded,
    TooManyPublishers,
)
from changefeed.leader.effects import Admit, Deny, End, Give, Hold, LookUp
from changefeed.wire.messages import Open


def at(seq: int, epoch: int = 1) -> Position:
    return Position(LINEAGE, epoch, f"{epoch:08x}", seq)


@pytest.fixture
def bench() -> Bench:
    """A leader in its first epoch with publisher p, incarnation 1, open over channel c."""
    bench = Bench()
    assert bench.open() == Admit(1, 0)
    return bench


# ---- connections


def test_who_waits_on_a_connection_that_a_late_open_replaces_is_told(bench: Bench) -> None:
    """An Open of a broken connection may arrive after the publisher has opened over another one and sent there: it
    must not wait for ever for answers that nobody gives any more. What it brought is appended, and known."""
    bench.open(channel="newer", session="s", incarnation=1)
    assert bench.publish("sent", batch(1), channel="newer") is None
    bench.machine.next_append(0)
    held = bench.machine.open(Open("f", "p", "s", False, 1), "late")
    assert isinstance(held, Hold)
    bench.perform(bench.machine.displaced())
    assert bench.machine.displaced() == []
    assert bench.answers["sent"].code == "not-current"
    assert bench.publish("next", batch(2), channel="newer") is not None and bench.answers["next"].code == "not-current"

    append = bench.machine.next_append(0)
    assert append is not None
    bench.log.append(1, "00000001", 0, append.entries)
    bench.perform(bench.machine.appended())
    assert bench.order == ["sent", "next"], "one answer to each"
    assert bench.opened(bench.machine.resume(held.token)) == Admit(1, 1)
    bench.open(channel="again", session="s", incarnation=1)
    answer = bench.publish("resent", batch(1), channel="again")
    assert answer is not None and answer.first == at(1) and answer.repeated


def test_another_session_replaces_nobody(bench: Bench) -> None:
    """Its channels live side by side with those of others; each gets its own answers."""
    bench.publish("one", batch(1), channel="c")
    bench.machine.open(Open("f", "p", "other", False, 1), "d")
    assert bench.machine.displaced() == []
    bench.append()
    assert bench.answers["one"].first == at(1)


# ---- incarnations


def test_a_superseded_publisher_learns_the_last_number_stored(bench: Bench) -> None:
    """Also where its last batch was in flight when the newer incarnation came: the look waits for it."""
    bench.publish(1, batch(1))
    append = bench.machine.next_append(0)
    assert append is not None
    assert bench.machine.open(Open("f", "p", "new"), "d") == Hold(2)
    bench.log.append(1, "00000001", 0, append.entries)
    bench.perform(bench.machine.appended())
    assert bench.opened(bench.machine.resume(2)) == Admit(2, 0)

    bench.publish("late", batch(2))
    bench.look()
    assert bench.answers["late"].code == "superseded"
    assert bench.answers["late"].details == {"last_number": 1}

    error = bench.open(channel="e", incarnation=1)
    assert isinstance(error, Superseded)
    assert error.last_number == 1


def test_a_refusal_of_the_old_incarnation_waits_for_what_is_pending_of_it(bench: Bench) -> None:
    """A batch or an opening of a superseded incarnation is judged when the append under way is settled."""
    bench.publish(1, batch(1))
    # The newer incarnation is given while the batch waits: the log's answer was under way.
    give = bench.machine.open(Open("f", "p", "new"), "d")
    assert isinstance(give, Hold)
    bench.machine.open_abandoned(give.token)
    bench.machine.close("d")
    opening = bench.machine.open(Open("f", "p", "s2", False, 7), "d")
    assert isinstance(opening, LookUp)
    bench.log.incarnations = 7
    state = bench.log.open_publisher(1, "00000001", "p", False)
    given = bench.machine.open_given(opening.token, state)
    assert given == Admit(8, 0)

    bench.publish("late", batch(2))
    old = bench.machine.open(Open("f", "p", "s3", False, 1), "e")
    assert isinstance(old, Hold)
    assert bench.machine.resume(old.token) == old
    assert "late" not in bench.answers
    assert bench.look_ups == []
    bench.append()
    bench.look()

    assert bench.answers["late"].details == {"last_number": 1}
    error = bench.opened(bench.machine.resume(old.token))
    assert isinstance(error, Superseded)
    assert error.last_number == 1


def test_the_older_of_two_new_incarnations_is_superseded_at_once(bench: Bench) -> None:
    """Two openings at once get one each; the answers of the log may arrive in any order."""
    first = bench.machine.open(Open("f", "q", "a"), "x")
    second = bench.machine.open(Open("f", "q", "b"), "y")
    assert isinstance(first, LookUp)
    assert isinstance(second, LookUp)
    assert isinstance(bench.machine.open_found(first.token, bench.log.facts(first)), Give)
    assert isinstance(bench.machine.open_found(second.token, bench.log.facts(second)), Give)
    older = bench.log.open_publisher(1, "00000001", "q", False)
    newer = bench.log.open_publisher(1, "00000001", "q", False)
    assert bench.machine.open_given(second.token, newer) == Admit(3, 0)
    assert bench.machine.open_given(first.token, older) == Admit(2, 0)

    bench.publish("older", batch(1, publisher="q", incarnation=2), "x")
    bench.publish("newer", batch(1, publisher="q", incarnation=3), "y")
    bench.settle()

    assert bench.answers["older"].code == "superseded"
    assert bench.answers["newer"].first == at(1)


def test_an_unknown_incarnation_is_forgotten_or_was_never_given() -> None:
    """At or below the feed's counter: trimmed away. Above: of another log."""
    bench = Bench()
    bench.log.incarnations = 5
    assert isinstance(bench.open(incarnation=5), Forgotten)
    assert isinstance(bench.open(incarnation=6), BadMessage)
    assert bench.machine.publishers == 0

    bench.open()
    assert isinstance(bench.open("q", "d", incarnation=6), Forgotten)
    assert isinstance(bench.open(channel="e", session="t", incarnation=7), BadMessage)


def test_a_named_publisher_goes_on_over_runs() -> None:
    """Same incarnation, numbers known; another living session is refused, a dead one is not."""
    bench = Bench()
    assert bench.open(named=True, session="run1") == Admit(1, 0)
    bench.publish(1, batch(1))
    bench.append()

    assert isinstance(bench.open(channel="d", named=True, session="run2"), PublisherInUse)
    assert isinstance(bench.open(channel="d", named=True, session="run2", incarnation=1), PublisherInUse)
    bench.machine.close("c")
    assert bench.open(channel="d", named=True, session="run2") == Admit(1, 1)
    bench.publish("rerun", batch(1), "d")
    assert bench.answers["rerun"].repeated


def test_of_two_runs_that_open_at_once_one_is_refused() -> None:
    """Who was admitted while the other asked the log is seen when the log has answered."""
    bench = Bench()
    steps = [bench.machine.open(Open("f", "p", session, True), session) for session in ("run1", "run2")]
    for index, step in enumerate(steps):
        assert isinstance(step, LookUp)
        steps[index] = bench.machine.open_found(step.token, bench.log.facts(step))
    found = [bench.opened(step) for step in steps]
    assert found[0] == Admit(1, 0)
    assert isinstance(found[1], PublisherInUse)


def test_the_same_session_may_come_again_over_another_channel(bench: Bench) -> None:
    """The old channel is replaced: what it brought is stored, its answers are dropped, it takes no more."""
    bench.publish("lost", batch(1))
    step = bench.machine.open(Open("f", "p", "s", False, 1), "d")
    assert isinstance(step, Hold)
    bench.append()
    assert bench.opened(bench.machine.resume(step.token)) == Admit(1, 1)

    assert "lost" not in bench.answers
    late = bench.publish("late", batch(2), "c")
    assert late is not None
    assert late.code == "not-current"
    again = bench.publish("again", batch(1), "d")
    assert again is not None
    assert again.repeated


def test_the_outbox_is_nobody_s_name() -> None:
    """The log's own mover writes under it."""
    bench = Bench()
    assert isinstance(bench.open("outbox"), InvalidName)


# ---- acknowledged and lost


def test_a_receipt_that_the_log_does_not_hold_is_reported() -> None:
    """Beyond the tail, of another lineage, of another term: with the last number that the log knows."""
    bench = Bench()
    bench.open()
    for number in (1, 2, 3):
        bench.publish(number, batch(number))
        bench.append()
    other = Position("ffffffffffffffff", 1, "00000001", 1)
    for position in (at(9), other, at(2, epoch=2)):
        error = bench.open(channel="d", session="t", incarnation=1, last_receipt=position)
        assert isinstance(error, AcknowledgedLost)
        assert error.last_number == 3
        error = bench.open("q", "e", last_receipt=position)
        assert isinstance(error, AcknowledgedLost)
        assert error.last_number == 0
    named = Bench()
    named.open(named=True)
    named.publish(1, batch(1))
    named.append()
    error = named.open(named=True, last_receipt=at(9))
    assert isinstance(error, AcknowledgedLost)
    assert error.last_number == 1


def test_a_receipt_that_is_held_or_was_trimmed_is_not_lost(bench: Bench) -> None:
    """Retention is no loss."""
    for number in (1, 2, 3):
        bench.publish(number, batch(number))
        bench.append()
    bench.log.trim(2)
    for seq in (1, 2, 3):
        assert bench.open(incarnation=1, last_receipt=at(seq)) == Admit(1, 3)


# ---- final refusals and looks


@pytest.mark.parametrize("wrong", ["gap", "reused", "superseded"])
def test_a_deposed_leader_gives_no_final_no(bench: Bench, wrong: str) -> None:
    """Its look finds another fence: the term is over, and the batch stays without an answer."""
    bench.publish(1, batch(1))
    bench.append()
    if wrong == "superseded":
        bench.open(channel="d", session="t")
    bench.log.fence(2)

    bench.publish("wrong", batch(9) if wrong == "gap" else batch(1, "X") if wrong == "reused" else batch(2))
    bench.look()

    assert bench.machine.ended == "fenced"
    assert "wrong" not in bench.answers


def test_a_deposed_leader_opens_nobody() -> None:
    """Not current: ask the one who leads."""
    bench = Bench()
    bench.log.fence(2)
    assert isinstance(bench.open(), NotCurrent)
    assert bench.machine.ended == "fenced"
    assert isinstance(bench.open(), NotCurrent)


def test_a_log_of_another_lineage_ends_the_term(bench: Bench) -> None:
    """The same epoch and term under another lineage is another log."""
    bench.publish("gap", batch(9))
    (wanted,) = bench.look_ups
    other = SyncLog("ffffffffffffffff")
    other.fence(1)
    assert bench.machine.found(wanted.token, other.facts(wanted)) == [End("fenced")]


def test_what_cannot_be_looked_up_is_not_current(bench: Bench) -> None:
    """The log does not answer: retryable, never a final no."""
    bench.publish("gap", batch(9))
    (wanted,) = bench.look_ups
    bench.perform(bench.machine.not_found(wanted.token, LogUnavailable("away")))
    assert bench.answers["gap"].code == "not-current"

    bench.look_ups.clear()
    bench.publish("gap2", batch(9))
    (wanted,) = bench.look_ups
    assert bench.machine.not_found(wanted.token, LogDamaged("torn")) == [End("log-damaged")]
    assert bench.machine.not_found(wanted.token, LogDamaged("torn")) == []


def test_an_opening_that_the_log_does_not_answer() -> None:
    """LogUnavailable: not current. Too many publishers: as the log says. An unknown outcome: the term ends."""

    def failed(bench: Bench, error: ChangefeedError) -> ChangefeedError:
        step = bench.machine.open(Open("f", "p", "s"), "c")
        assert isinstance(step, LookUp)
        step = bench.machine.open_found(step.token, bench.log.facts(step))
        assert isinstance(step, Give)
        step = bench.machine.open_failed(step.token, error)
        assert isinstance(step, Deny)
        return step.error

    bench = Bench()
    assert isinstance(failed(bench, LogUnavailable("away")), NotCurrent)
    assert isinstance(failed(bench, TooManyPublishers("100000")), TooManyPublishers)
    assert bench.machine.ended is None
    assert isinstance(failed(bench, AppendOutcomeUnknown("lost")), NotCurrent)
    assert bench.machine.ended == "outcome-unknown"


def test_housekeeping_that_fails_ends_the_term_only_where_it_must(bench: Bench) -> None:
    """A trim that could not be done is done later; one of unknown outcome is the end."""
    assert bench.machine.failed(LogUnavailable("away")) == []
    assert bench.machine.failed(LogFull("full")) == []
    assert bench.machine.failed(Fenced("another leads")) == [End("fenced")]


# ---- the end


@pytest.mark.parametrize("how", ["finish", "end"])
def test_openings_under_way_are_not_admitted_when_the_term_ends(how: str) -> None:
    """At each step of an opening."""

    def stop(bench: Bench) -> None:
        if how == "finish":
            bench.machine.finish()
        else:
            bench.machine.end("told")

    for steps in (0, 1, 2):
        bench = Bench()
        step: Any = bench.machine.open(Open("f", "p", "s"), "c")
        for _ in range(steps):
            if isinstance(step, LookUp):
                step = bench.machine.open_found(step.token, bench.log.facts(step))
        if steps == 0:
            stop(bench)
        if isinstance(step, LookUp):
            step = bench.machine.open_found(step.token, bench.log.facts(step))
        stop(bench)
        error = bench.opened(step)
        assert isinstance(error, NotCurrent)
    assert isinstance(bench.open(), NotCurrent)


def test_a_held_opening_is_denied_when_the_term_ends(bench: Bench) -> None:
    """It need not wait for an append whose answer nobody will hear."""
    bench.publish(1, batch(1))
    step = bench.machine.open(Open("f", "p", "s", False, 1), "d")
    assert isinstance(step, Hold)
    bench.machine.end("told")
    denied = bench.machine.resume(step.token)
    assert isinstance(denied, Deny)
    assert isinstance(denied.error, NotCurrent)


def test_idle_means_that_all_is_answered(bench: Bench) -> None:
    """A handover waits for it."""
    assert bench.machine.idle
    bench.publish(1, batch(1))
    bench.publish("gap", batch(9))
    assert not bench.machine.idle
    bench.append()
    assert not bench.machine.idle
    bench.look()
    assert bench.machine.idle
    bench.machine.finish()
    assert bench.machine.finishing


# ---- bounds


def test_room_is_bounded_but_never_nothing() -> None:
    """Bytes without an answer; one batch above the bound is let in alone."""
    bench = Bench(queue_bytes_max=500)
    bench.open()
    assert bench.machine.room(10_000)
    bench.publish(1, batch(1, "x" * 200))
    assert bench.machine.room(100)
    assert not bench.machine.room(400)
    bench.append()
    assert bench.machine.queue_bytes == 0
    assert bench.machine.room(10_000)


def test_publishers_that_left_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded; the log knows them still."""
    monkeypatch.setattr("changefeed.leader.machine.IDLE_MAX", 2)
    bench = Bench()
    for index, name in enumerate(("a", "b", "c", "d"), 1):
        bench.open(name, name)
        bench.publish(name, batch(1, publisher=name, incarnation=index), name)
        bench.append()
        bench.machine.close(name)
    assert bench.machine.publishers == 2
    assert bench.machine.channels == 0
    for index, name in enumerate(("a", "d"), 1):
        known = {"a": 1, "d": 4}[name]
        assert bench.open(name, name, incarnation=known) == Admit(known, 1), index
        bench.publish(f"{name} again", batch(1, publisher=name, incarnation=known), name)
        bench.look()
        assert bench.answers[f"{name} again"].repeated


def test_a_publisher_is_kept_while_something_of_it_is_under_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a connection with a batch in flight keeps its numbers until that is settled, and no longer."""
    monkeypatch.setattr("changefeed.leader.machine.IDLE_MAX", 0)
    bench.publish(1, batch(1))
    bench.machine.next_append(0)
    bench.machine.close("c")
    bench.machine.close("c")
    step = bench.machine.open(Open("f", "p", "s", False, 1), "d")
    assert isinstance(step, Hold)
    bench.machine.open_abandoned(step.token)
    bench.machine.open_abandoned(step.token)
    bench.perform(bench.machine.append_failed(LogFull("full")))
    assert bench.machine.publishers == 0
    assert bench.open(incarnation=1) == Admit(1, 0)


def test_a_superseded_incarnation_is_kept_until_it_is_settled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing remembers it any more."""
    monkeypatch.setattr("changefeed.leader.machine.IDLE_MAX", 0)
    step = bench.machine.open(Open("f", "p", "new"), "d")
    assert isinstance(step, LookUp)
    bench.publish(1, batch(1))
    assert bench.opened(step) == Admit(2, 0)
    bench.machine.close("c")
    bench.machine.close("d")
    old = bench.machine.open(Open("f", "p", "s", False, 1), "e")
    assert isinstance(old, Hold)
    bench.append()
    error = bench.opened(bench.machine.resume(old.token))
    assert isinstance(error, Superseded)
    assert error.last_number == 1
    assert bench.machine.publishers == 0
