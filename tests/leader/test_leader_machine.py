"""The leader's machine, case by case. The model test beside this one looks for what no case thought of."""

from __future__ import annotations

from typing import Any

import pytest
from leader_bench import LINEAGE, Bench, SyncLog, batch

from changefeed.batch import Batch
from changefeed.change import SEQ_MAX, Position
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
    TailMoved,
    TooManyPublishers,
)
from changefeed.leader import book
from changefeed.leader.effects import Admit, Deny, End, Give, Hold, LookUp, Reply, Visible
from changefeed.wire.messages import Open


def at(seq: int, epoch: int = 1) -> Position:
    return Position(LINEAGE, epoch, f"{epoch:08x}", seq)


@pytest.fixture
def bench() -> Bench:
    """A leader in its first epoch with publisher p, incarnation 1, open over channel c."""
    bench = Bench()
    assert bench.open() == Admit(1, 0)
    return bench


# ---- accepted


def test_a_batch_is_answered_when_it_is_durable_and_visible_after_that(bench: Bench) -> None:
    """Nothing leaves before the append; then the receipt, then the entry."""
    assert bench.publish(1, batch(1, "a", "b")) is None

    append = bench.machine.next_append(77)
    assert append is not None
    bench.log.append(1, "00000001", append.expected_tail, append.entries)
    effects = bench.machine.appended()

    assert [type(effect) for effect in effects] == [Reply, Visible]
    bench.perform(effects)
    assert (bench.answers[1].number, bench.answers[1].count, bench.answers[1].first) == (1, 2, at(1))
    assert not bench.answers[1].repeated
    assert [(entry.seq, entry.time) for entry in bench.visible] == [(1, 77)]


def test_what_waits_while_an_append_is_under_way_goes_into_the_next(bench: Bench) -> None:
    """Group commit: one append in flight, all others together, in order of arrival."""
    bench.open("q", "d")
    bench.publish(1, batch(1))
    first = bench.machine.next_append(0)
    assert first is not None
    bench.publish(2, batch(1, publisher="q", incarnation=2), "d")
    bench.publish(3, batch(2))
    bench.log.append(1, "00000001", 0, first.entries)
    bench.perform(bench.machine.appended())

    second = bench.append()

    assert [(entry.publisher, entry.number, entry.seq) for entry in second.entries] == [("q", 1, 2), ("p", 2, 3)]
    assert bench.order == [1, 2, 3]
    assert bench.machine.next_append(0) is None


def test_an_append_is_bounded_but_a_large_batch_goes_alone() -> None:
    """append_bytes_max cuts between batches, never a batch."""
    bench = Bench(append_bytes_max=600)
    bench.open()
    for number in (1, 2, 3):
        bench.publish(number, batch(number, "x" * 100))
    bench.publish(4, batch(4, *["x" * 100] * 5))

    assert [len(bench.append().entries) for _ in range(3)] == [2, 1, 1]
    assert bench.machine.idle
    assert [entry.number for entry in bench.log.held] == [1, 2, 3, 4]


def test_time_never_goes_back(bench: Bench) -> None:
    """An entry's time is at least that of the entry before, also of another term."""
    bench.publish(1, batch(1))
    bench.append(1000)
    bench.publish(2, batch(2))
    assert bench.append(900).entries[0].time == 1000

    later = Bench(bench.log)
    later.open(incarnation=1)
    later.publish(3, batch(3))
    assert later.append(5).entries[0].time == 1000


def test_refused_numbers_leave_no_gap(bench: Bench) -> None:
    """A batch may skip numbers if `after` names the last one that the log holds."""
    bench.publish(1, batch(1))
    bench.publish(5, batch(5, after=1))
    bench.append()
    assert bench.answers[5].first == at(2)


# ---- known numbers


def test_a_retry_gets_the_receipt_that_it_had(bench: Bench) -> None:
    """From memory, at once."""
    bench.publish(1, batch(1, "a", "b"))
    bench.append()

    again = bench.publish("again", batch(1, "a", "b"))

    assert again is not None
    assert (again.first, again.count, again.repeated, again.code) == (at(1), 2, True, "")
    assert len(bench.log.history) == 1
    assert bench.machine.repeated == 1


def test_a_retry_of_what_is_under_way_waits_for_that_append(bench: Bench) -> None:
    """Over another channel, while the first try waits or is in flight: both are answered by one append."""
    bench.open(channel="d", session="other", incarnation=1)
    bench.publish(1, batch(1))
    assert bench.publish("waiting", batch(1), "d") is None
    append = bench.machine.next_append(0)
    assert append is not None
    assert bench.publish("flying", batch(1), "d") is None
    bench.log.append(1, "00000001", 0, append.entries)
    bench.perform(bench.machine.appended())

    assert {ticket: (a.first, a.repeated) for ticket, a in bench.answers.items()} == {
        1: (at(1), False),
        "waiting": (at(1), True),
        "flying": (at(1), True),
    }
    assert len(bench.log.history) == 1


def test_an_old_retry_is_found_in_the_log(bench: Bench) -> None:
    """Beyond what memory keeps, and by a new leader that remembers nothing."""
    for number in range(1, book.RECENT_MAX + 2):
        bench.publish(number, batch(number))
        bench.append()
    assert bench.publish("old", batch(1)) is None
    bench.look()
    assert (bench.answers["old"].first, bench.answers["old"].repeated) == (at(1), True)

    later = Bench(bench.log)
    assert later.open(incarnation=1) == Admit(1, book.RECENT_MAX + 1)
    assert later.publish("older", batch(2)) is None
    later.look()
    assert later.answers["older"].first == at(2)


def test_a_rerun_that_cut_its_lines_elsewhere_gets_the_receipts_of_the_very_bytes(bench: Bench) -> None:
    """Whole groups of one stored batch, byte for byte, wherever they stand in it: stored, flying or in memory."""
    stored = batch(1, "a", "b", "c", "d", "e", sizes=(1, 2, 1, 1))
    bench.publish(1, stored)
    bench.publish("flying", batch(2, "b", "c", sizes=(2,)))
    bench.append()
    assert bench.answers["flying"].first == at(2)
    assert bench.answers["flying"].repeated

    bench.publish("begin", batch(1, "a"))
    bench.publish("inside", batch(4, "d", "e"))
    bench.look()
    assert [bench.answers[ticket].first for ticket in ("begin", "inside")] == [at(1), at(4)]
    assert len(bench.log.history) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        batch(1, "a", "b", "X", sizes=(1, 2)),
        batch(1, "a", "b", "c", sizes=(3,)),
        batch(2, "b"),
        batch(3, "c", "d"),
        batch(2, "b", "X", sizes=(2,)),
        batch(1, "X"),
        batch(1, "a", "b", "c", "d"),
        batch(3, "c", sizes=(1,)),
    ],
    ids=[
        "other bytes",
        "other groups",
        "groups torn",
        "beyond the end",
        "other byte inside",
        "other beginning",
        "longer",
        "group's end",
    ],
)
@pytest.mark.parametrize("where", ["flying", "stored"])
def test_a_number_with_other_bytes_is_refused(bench: Bench, wrong: Batch, where: str) -> None:
    """Never acknowledged with another change's receipt; never cut."""
    bench.publish(1, batch(1, "a", "b", "c", sizes=(1, 2)))
    if where == "stored":
        bench.append()

    assert bench.publish("wrong", wrong) is None
    bench.look()
    bench.settle()

    assert bench.answers["wrong"].code == "number-reused"
    assert len(bench.log.history) == 1


def test_a_skipped_number_that_comes_later_is_refused(bench: Bench) -> None:
    """It was never stored, and cannot be any more: while its neighbours wait, fly, are stored, and after a trim."""
    bench.publish(1, batch(1))
    bench.publish(4, batch(4, after=1))
    bench.publish("waiting", batch(2))
    bench.look()
    bench.settle()
    bench.publish("stored", batch(3, after=1))
    bench.look()
    bench.publish(5, batch(5))
    bench.settle()
    bench.publish(7, batch(7, after=5))
    bench.settle()
    bench.log.trim(2)
    bench.publish("trimmed before", batch(6))
    bench.look()

    refused = {ticket: bench.answers[ticket].code for ticket in ("waiting", "stored", "trimmed before")}
    assert refused == dict.fromkeys(refused, "number-reused")


def test_a_retry_of_what_was_trimmed_has_an_unknown_position(bench: Bench) -> None:
    """It is not stored again, and no receipt is invented."""
    for number in (1, 2, 3):
        bench.publish(number, batch(number))
        bench.append()
    bench.log.trim(2)
    later = Bench(bench.log)
    later.open(incarnation=1)

    later.publish("gone", batch(2))
    later.look()

    assert later.answers["gone"].code == "outcome-unknown"
    assert "trimmed" in later.answers["gone"].message
    assert len(bench.log.history) == 3


# ---- gaps and order


def test_a_gap_is_refused_after_a_look(bench: Bench) -> None:
    """Nothing of it is stored; the publisher resends."""
    assert bench.publish("gap", batch(3)) is None
    assert bench.machine.next_append(0) is None
    bench.look()
    assert bench.answers["gap"].code == "number-gap"
    assert bench.machine.refused == 1


def test_a_gap_that_closed_meanwhile_is_accepted(bench: Bench) -> None:
    """What is judged after the look is the state after the look."""
    bench.open(channel="d", session="other", incarnation=1)
    bench.publish("early", batch(2))
    bench.publish("first", batch(1), "d")
    bench.look()
    bench.append()
    assert bench.answers["early"].first == at(2)


def test_answers_of_a_channel_keep_its_order(bench: Bench) -> None:
    """An answer that is known at once waits for those before it."""
    bench.publish(1, batch(1))
    bench.append()
    bench.publish(2, batch(2))
    bench.publish("known", batch(1))
    bench.publish("bad", batch(3, publisher="q"))
    assert "known" not in bench.answers
    bench.append()
    assert bench.order == [1, 2, "known", "bad"]


# ---- malformed


@pytest.mark.parametrize(
    "wrong",
    [
        batch(1, publisher="q"),
        batch(1, incarnation=2),
        batch(1, "a", sizes=()),
        batch(1, "a", sizes=(0, 1)),
        batch(1, "a", sizes=(1000,)),
        batch(0),
        batch(2, after=2),
        batch(SEQ_MAX, "a", "b"),
    ],
)
def test_a_malformed_batch_is_refused(bench: Bench, wrong: Batch) -> None:
    """With a sentence, and without a look: it says nothing about the log."""
    answer = bench.publish("wrong", wrong)
    assert answer is not None
    assert answer.code == "bad-message"
    assert answer.message
    assert bench.machine.queue_bytes == 0


def test_a_batch_over_a_channel_that_is_not_open_is_not_current(bench: Bench) -> None:
    """The publisher opens again."""
    bench.machine.close("c")
    answer = bench.publish("late", batch(1))
    assert answer is not None
    assert answer.code == "not-current"


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


# ---- what the log says to an append


def test_a_full_log_refuses_and_the_term_goes_on(bench: Bench) -> None:
    """All batches of that append; what waited behind them has a gap; other publishers' batches do not care."""
    bench.open("q", "d")
    bench.open(channel="e", session="copy", incarnation=1)
    bench.publish(1, batch(1))
    bench.publish("copy", batch(1), "e")
    append = bench.machine.next_append(0)
    assert append is not None
    bench.publish(2, batch(2))
    bench.publish("q1", batch(1, publisher="q", incarnation=2), "d")
    bench.perform(bench.machine.append_failed(LogFull("the disk is full")))

    assert [bench.answers[ticket].code for ticket in (1, "copy")] == ["log-full", "log-full"]
    assert bench.log.history == []
    bench.look()
    assert bench.answers[2].code == "number-gap"
    bench.settle()
    assert bench.answers["q1"].first == at(1)

    bench.publish("1 again", batch(1))
    bench.publish("2 again", batch(2))
    bench.settle()
    assert [bench.answers[ticket].first for ticket in ("1 again", "2 again")] == [at(2), at(3)]
    assert bench.machine.queue_bytes == 0


def test_orphans_of_a_closed_channel_are_dropped(bench: Bench) -> None:
    """Nobody waits for their answers."""
    bench.publish(1, batch(1))
    bench.machine.next_append(0)
    bench.publish(2, batch(2))
    bench.publish("looked up", batch(9))
    bench.machine.close("c")
    bench.perform(bench.machine.append_failed(LogFull("the disk is full")))
    bench.look()
    assert bench.answers == {}
    assert bench.machine.idle
    assert bench.machine.queue_bytes == 0


def test_an_append_that_the_log_could_not_take_is_tried_again(bench: Bench) -> None:
    """The very same entries, a little later each time, for as long as the term lives."""
    bench.publish(1, batch(1))
    first = bench.machine.next_append(0)
    assert first is not None
    assert (first.tries, first.delay_s) == (0, 0.0)
    bench.publish(2, batch(2))
    delays = []
    for tries in range(1, 2000):
        assert bench.machine.append_failed(LogUnavailable("away")) == []
        again = bench.machine.next_append(999)
        assert again is not None
        assert (again.entries, again.tries) == (first.entries, tries)
        delays.append(again.delay_s)
    assert delays == sorted(delays)
    assert 0 < delays[0] < delays[-1] <= 1.0
    bench.log.append(1, "00000001", 0, first.entries)
    bench.perform(bench.machine.appended())
    bench.append()
    assert bench.order == [1, 2]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Fenced("another leads"), "fenced"),
        (TailMoved("another tail"), "tail-moved"),
        (AppendOutcomeUnknown("lost"), "outcome-unknown"),
        (LogDamaged("torn"), "log-damaged"),
        (TooManyPublishers("no error of an append"), "too-many-publishers"),
    ],
)
def test_an_append_that_is_not_known_to_have_failed_ends_the_term(
    bench: Bench, error: ChangefeedError, why: str
) -> None:
    """Nothing more is answered, whatever comes afterwards."""
    bench.publish(1, batch(1))
    bench.publish("looked up", batch(9))
    bench.machine.next_append(0)
    bench.publish(2, batch(2))

    assert bench.machine.append_failed(error) == [End(why)]

    assert bench.machine.ended == why
    assert bench.machine.appended() == []
    assert bench.machine.append_failed(error) == []
    assert bench.machine.next_append(0) is None
    assert bench.machine.end("again") == []
    bench.look()
    assert bench.answers == {}
    assert isinstance(bench.open(channel="z"), NotCurrent)


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
