"""Everybody leaves at once: a leaver does not wait for a successor that is leaving itself."""

from __future__ import annotations

from election_bench import Bench, beat, look, member

from changefeed.election import effects as fx


def listed(bench: Bench, *names: str) -> Bench:
    members = {name: member(name) for name in ("a", *names)}
    return bench.tell("did_list", bench.flying(fx.ListMembers).id, members)


def finished(bench: Bench) -> Bench:
    bench.tell("did_finish", bench.flying(fx.FinishTerm).id)
    return bench.tell("term_ended", 1, "handover")


def says(bench: Bench, name: str, *, leaving: bool) -> Bench:
    return bench.tell("follower_beat", beat(name, "following", log_ok=True, leaving=leaving))


def marked_for(*names: str) -> Bench:
    """A leader a that has asked the first of these to take over."""
    bench = Bench().leading().tell("hand_over")
    listed(bench, *names)
    finished(bench)
    assert bench.only(fx.MarkLeaving).successor == names[0]
    return bench.wrote(True)


def how(bench: Bench) -> list[str]:
    return [effect.how for effect in bench.all if isinstance(effect, fx.HandedOver)]


def test_who_is_known_to_be_leaving_is_not_chosen() -> None:
    """Told before or after my own handover began; also one that is heard better than the others."""
    bench = says(Bench().leading(), "b", leaving=True).tell("hand_over")
    says(bench, "d", leaving=True)
    finished(listed(bench, "b", "c", "d"))
    assert bench.only(fx.MarkLeaving).successor == "c"


def test_who_came_back_may_be_chosen() -> None:
    """A new process under the old name is no leaver."""
    bench = Bench().leading().tell("hand_over")
    says(says(bench, "b", leaving=True), "b", leaving=False)
    finished(listed(bench, "b"))
    assert bench.only(fx.MarkLeaving).successor == "b"


def test_a_successor_that_begins_to_leave_is_replaced_at_once() -> None:
    bench = says(marked_for("b", "c"), "b", leaving=True)
    assert how(bench) == []
    listed(bench, "b", "c")
    assert bench.only(fx.MarkLeaving).successor == "c"
    bench.wrote(True).wait(0.1).quiet(look(2, "cccccccc"))
    assert how(bench) == ["fenced"]


def test_where_everybody_leaves_the_record_is_resigned_at_once() -> None:
    bench = listed(says(marked_for("b"), "b", leaving=True), "b")
    assert bench.only(fx.Resign).epoch == 1
    bench.wrote(None)
    assert how(bench) == ["resigned"]


def test_a_successor_that_leaves_while_it_is_being_asked_is_replaced() -> None:
    """The record is marked for it by then; the answer to that is not taken for its promise."""
    bench = Bench().leading().tell("hand_over")
    finished(listed(bench, "b", "c"))
    says(bench, "b", leaving=True)
    listed(bench, "b", "c")
    bench.none(fx.MarkLeaving).wrote(True)
    assert bench.only(fx.MarkLeaving).successor == "c"


def test_a_successor_that_took_the_lead_before_it_left_has_it() -> None:
    """It is its turn to find a successor."""
    bench = says(marked_for("b", "c"), "b", leaving=True)
    listed(bench, "b", "c")
    assert bench.only(fx.MarkLeaving).successor == "c"
    bench.wrote(False)
    assert how(bench) == ["overtaken"]
