"""The leader's machine, case by case. The model test beside this one looks for what no case thought of."""

from __future__ import annotations

import pytest
from leader_bench import LINEAGE, Bench, batch

from changefeed.batch import Batch
from changefeed.change import SEQ_MAX, Position
from changefeed.errors import (
    AppendOutcomeUnknown,
    ChangefeedError,
    Fenced,
    LogDamaged,
    LogFull,
    LogUnavailable,
    NotCurrent,
    TailMoved,
    TooManyPublishers,
)
from changefeed.leader import book
from changefeed.leader.effects import Admit, End, Reply, Visible


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


def test_a_rerun_over_several_stored_batches_is_answered_as_far_as_their_positions_are_a_run(bench: Bench) -> None:
    """So that a rerun may ask for many lines at once; the rest is asked for again. Whole groups only."""
    bench.open("q", channel="q")
    bench.publish(1, batch(1, "a", "b", "c", sizes=(1, 2)))
    bench.publish(2, batch(4, "d", "e"))
    bench.append()
    bench.publish("foreign", batch(1, publisher="q", incarnation=2), channel="q")
    bench.publish(3, batch(6, "f"))
    bench.append()

    bench.publish("from inside", batch(2, "b", "c", "d", sizes=(2, 1)))
    bench.publish("up to a foreign one", batch(4, "d", "e", "f"))
    bench.publish("the rest", batch(6, "f"))
    bench.publish("other bytes", batch(1, "a", "b", "c", "d", "X", sizes=(1, 2, 1, 1)))
    bench.publish("its rest", batch(5, "X"))
    bench.publish("beyond the end", batch(6, "f", "g"))
    bench.look()

    told = {ticket: (answer.count, answer.first, answer.code) for ticket, answer in bench.answers.items()}
    assert told["from inside"] == (3, at(2), "")
    assert told["up to a foreign one"] == (2, at(4), "")
    assert told["the rest"] == (1, at(7), "")
    assert told["other bytes"] == (4, at(1), "")
    assert told["its rest"][2] == told["beyond the end"][2] == "number-reused"
    assert [bench.answers[ticket].repeated for ticket in ("from inside", "up to a foreign one", "the rest")] == [
        True
    ] * 3
    assert len(bench.log.history) == 4


def test_positions_of_two_terms_are_no_run(bench: Bench) -> None:
    """One answer names one term: what the next leader stored is asked for by itself."""
    bench.publish(1, batch(1))
    bench.append()
    later = Bench(bench.log)
    later.open(incarnation=1)
    later.publish(2, batch(2))
    later.append()

    later.publish("both", batch(1, "p-1", "p-2"))
    later.look()

    assert (later.answers["both"].count, later.answers["both"].first) == (1, at(1))


def test_a_rerun_over_what_was_trimmed_finds_what_is_left(bench: Bench) -> None:
    """Unknown is only what is gone: all of a batch whose end is gone too, else its first group."""
    for number in (1, 3, 5):
        bench.publish(number, batch(number, f"p-{number}", f"p-{number + 1}"))
        bench.append()
    bench.log.trim(4)
    bench.publish("all gone", batch(1, "p-1", "p-2", "p-3"))
    bench.publish("partly", batch(3, "p-3", "p-4", "p-5", "p-6"))
    bench.look()

    gone, partly = bench.answers["all gone"], bench.answers["partly"]
    assert (gone.code, gone.count) == ("outcome-unknown", 3)
    assert (partly.code, partly.count) == ("outcome-unknown", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        batch(1, "X", "b", "c", sizes=(1, 2)),
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
    assert refused == dict.fromkeys(refused, "number-skipped")


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


def test_a_batch_that_reaches_beyond_the_last_number_is_not_what_was_trimmed(bench: Bench) -> None:
    """Batches are stored whole: one that begins at a known number and ends at a new one holds other changes."""
    for number in (1, 2, 3):
        bench.publish(number, batch(number))
        bench.append()
    bench.log.trim(3)

    bench.publish("longer", batch(3, "p-3", "p-4"))
    bench.look()

    assert bench.answers["longer"].code == "number-reused"


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
    assert bench.publish("late", batch(3)) is None
    assert bench.answers == {}
    assert isinstance(bench.open(channel="z"), NotCurrent)
