"""The planned end: finish, name a successor, wait for its fence; and how everything on that way may fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from election_bench import FEED, Bench, beat, look, member, record

from changefeed.change import NO_TERM
from changefeed.coordination import View
from changefeed.election import effects as fx
from changefeed.log import Look


def bench_own(epoch: int) -> View:
    return View(FEED, epoch, epoch, record("a", epoch))


def listed(bench: Bench, *names: str) -> Bench:
    members = {name: member(name) for name in ("a", *names)}
    return bench.tell("did_list", bench.flying(fx.ListMembers).id, members)


def finished(bench: Bench) -> Bench:
    """The term appended and answered everything, and said so."""
    bench.tell("did_finish", bench.flying(fx.FinishTerm).id)
    return bench.tell("term_ended", 1, "handover")


def how(bench: Bench) -> list[str]:
    return [effect.how for effect in bench.all if isinstance(effect, fx.HandedOver)]


def marked() -> Bench:
    bench = Bench().leading().tell("hand_over")
    listed(bench, "b")
    finished(bench).only(fx.MarkLeaving)
    return bench.wrote(True)


def leaving_view(successor: str = "a") -> View:
    return View(FEED, 5, 50, replace(record("b", 5), leaving=True, successor=successor))


# ---- the leaver


def test_the_term_is_finished_before_the_record_is_marked() -> None:
    """Review 38: stop reading publishes, append, receipts; only then may a successor come."""
    bench = Bench().leading().tell("hand_over")
    bench.only(fx.FinishTerm)
    listed(bench, "b").none(fx.MarkLeaving, fx.EndTerm)
    bench.tell("did_finish", bench.flying(fx.FinishTerm).id).none(fx.MarkLeaving)
    bench.tell("term_ended", 1, "handover")
    assert bench.only(fx.MarkLeaving).successor == "b"
    assert bench.status.role == "leaving"


def test_the_handover_is_over_when_the_successors_fence_stands() -> None:
    bench = marked()
    bench.wait(0.1).quiet(look(1, "00000001")).wait(0.1)
    assert how(bench) == []
    bench.looked(look(2, "bbbbbbbb"))
    assert how(bench) == ["fenced"]
    assert not [e for e in bench.all if isinstance(e, fx.EndTerm)]


def test_the_leaver_never_contends_again_and_follows_its_successor() -> None:
    bench = marked()
    bench.view(View(FEED, 2, 2, record("b", 2)))
    assert bench.only(fx.Follow).record == record("b", 2)
    bench.wait(0.1).looked(look(2, "bbbbbbbb"))
    bench.tell("link_refused", "process-b").wait(30)
    bench.none(fx.Take, fx.Challenge)
    assert bench.status.hindrance == "leaving"


def test_the_successor_is_a_live_candidate_that_is_heard_and_whose_log_answers() -> None:
    """Of those the one that is furthest; members that are no candidates, or of other feeds, are none."""
    bench = Bench().leading()
    bench.tell("follower_beat", beat("c", "following", log_ok=False))
    bench.tell("follower_beat", beat("d", "following"))
    bench.tell("hand_over")
    members = {name: member(name) for name in ("a", "b", "c", "d")}
    members["b"] = member("b", candidate=False)
    members["e"] = replace(member("e"), feeds=("napi",))
    bench.tell("did_list", bench.flying(fx.ListMembers).id, members)
    assert finished(bench).only(fx.MarkLeaving).successor == "d"


def test_nobody_else_can_lead_and_the_record_is_resigned() -> None:
    bench = Bench().leading().tell("hand_over")
    listed(bench)
    assert finished(bench).only(fx.Resign).epoch == 1
    bench.wrote(None)
    assert how(bench) == ["resigned"]


def test_nothing_to_hand_over_is_over_at_once() -> None:
    bench = Bench().following().tell("hand_over")
    assert how(bench) == ["nothing-to-hand-over"]
    bench.tell("link_refused", "process-b").none(fx.Write)


def test_a_candidacy_under_way_is_resigned_if_it_wins() -> None:
    bench = Bench().started()
    bench.only(fx.Take)
    bench.tell("hand_over")
    assert how(bench) == []
    bench.wrote(bench_own(1))
    assert bench.only(fx.Resign).epoch == 1
    bench.wrote(None)
    assert how(bench) == ["nothing-to-hand-over"]


def test_an_epoch_won_but_not_fenced_is_given_back() -> None:
    bench = Bench().started().wrote(bench_own(1)).tell("hand_over")
    assert bench.only(fx.Resign).epoch == 1
    bench.wrote(None)
    assert how(bench) == ["nothing-to-hand-over"]
    bench.fenced().none(fx.StartTerm)


@pytest.mark.parametrize("why", ["outcome-unknown", "log-unavailable"])
def test_a_term_that_did_not_end_cleanly_is_resigned_not_handed_over(why: str) -> None:
    """The mark promises that nothing is in flight; here that is not known, so the successor must checkpoint."""
    bench = Bench().leading().tell("hand_over")
    listed(bench, "b")
    bench.tell("term_ended", 1, why).none(fx.MarkLeaving)
    bench.only(fx.Resign)
    bench.wrote(None)
    assert how(bench) == ["resigned"]


def test_a_term_that_is_too_slow_is_ended_by_force_and_resigned() -> None:
    bench = Bench().leading().tell("hand_over")
    listed(bench, "b")
    for _ in range(120):
        bench.wait(0.1).quiet(look(1, "00000001"))
    assert [e.why for e in bench.all if isinstance(e, fx.EndTerm)] == ["handover-too-slow"]
    bench.flying(fx.Resign)


def test_a_term_that_finished_but_never_said_so_is_not_marked() -> None:
    bench = Bench().leading().tell("hand_over")
    listed(bench, "b").tell("did_finish", bench.flying(fx.FinishTerm).id)
    bench.wait(0.6)
    assert [e.why for e in bench.all if isinstance(e, fx.EndTerm)] == ["handover-too-slow"]
    bench.flying(fx.Resign)


def test_fenced_meanwhile_there_is_nothing_left_to_hand_over() -> None:
    bench = Bench().leading().tell("hand_over")
    bench.tell("term_ended", 1, "fenced").wait(0.1)
    assert not [e for e in bench.all if isinstance(e, fx.MarkLeaving)]
    bench.wrote(None)
    assert how(bench) == ["overtaken"]


def test_the_mark_came_too_late() -> None:
    """Somebody challenged me between the end of the term and the mark."""
    bench = Bench().leading().tell("hand_over")
    listed(bench, "b")
    finished(bench).wrote(False)
    assert how(bench) == ["overtaken"]


def test_a_successor_that_never_comes_is_not_waited_for_for_ever() -> None:
    bench = marked()
    for _ in range(45):
        bench.wait(0.1).quiet(look(1, "00000001"))
    assert bench.flying(fx.Resign).epoch == 1
    bench.wrote(None)
    assert how(bench) == ["resigned"]


def test_the_coordinator_is_away_and_the_handover_gives_up_in_time() -> None:
    bench = Bench().leading().tell("hand_over")
    bench.failed(fx.ListMembers)
    finished(bench)
    began = bench.now
    while not how(bench) and bench.now - began < 20:
        bench.wait(0.1).quiet(look(1, "00000001"))
        for kind in (fx.ListMembers, fx.Write, fx.Read):
            if not bench.idle(kind):
                bench.failed(kind)
    assert how(bench) == ["gave-up"]
    assert bench.now - began < 6


def test_a_candidacy_beside_the_running_term_does_not_cut_it_off() -> None:
    """The record was deleted by hand, taken again, and then the process is told to stop: the term still finishes."""
    bench = Bench().leading()
    bench.view(View(FEED, 1, 1, None)).read(View(FEED, 1, 1, None)).only(fx.Take)
    bench.tell("hand_over").wrote(bench_own(2)).none(fx.EndTerm, fx.FenceLog)
    listed(bench, "b")
    finished(bench).only(fx.MarkLeaving)
    bench.wrote(False).read(bench_own(2))
    assert bench.only(fx.Resign).epoch == 2


def test_asking_twice_hands_over_once() -> None:
    bench = Bench().leading().tell("hand_over").tell("hand_over")
    listed(bench)
    finished(bench).wrote(None)
    bench.tell("hand_over").wait(1)
    assert how(bench) == ["resigned"]


# ---- the others


def clean_of(look_epoch: int) -> tuple[bool, str]:
    found: Look = look(look_epoch, "bbbbbbbb" if look_epoch else NO_TERM)
    bench = Bench().following(found=found)
    bench.view(leaving_view())
    challenge = bench.only(fx.Challenge)
    return challenge.clean, challenge.why


def test_the_successor_challenges_at_once_and_fences_clean() -> None:
    assert clean_of(5) == (True, "handover")
    bench = Bench().following()
    bench.view(leaving_view()).wrote(View(FEED, 6, 60, record("a", 6)))
    assert bench.only(fx.FenceLog).clean and bench.only(fx.FenceLog).why == "handover"


def test_a_leaver_that_never_fenced_its_epoch_vouches_for_nothing() -> None:
    """The log's last term is another one's: it did not end by this handover."""
    assert clean_of(4) == (False, "handover")


def test_others_leave_the_successor_its_time_and_then_anybody_may_come() -> None:
    bench = Bench().following()
    bench.view(leaving_view("c")).none(fx.Write)
    for _ in range(14):
        bench.wait(0.1).quiet(look(5, "bbbbbbbb")).none(fx.Write)
        bench.tell("link_beat", beat("b", "following", leaving=True))
    bench.wait(0.2)
    assert (bench.only(fx.Challenge).why, bench.only(fx.Challenge).clean) == ("handover-late", False)


def test_a_leaver_that_dies_is_challenged_by_anybody_at_once() -> None:
    bench = Bench().following()
    bench.view(leaving_view("c"))
    assert bench.tell("link_refused", "process-b").only(fx.Challenge).why == "process-gone"


def test_a_successor_that_may_not_lead_does_not_challenge() -> None:
    bench = Bench(candidate=False).following()
    bench.view(leaving_view()).wait(10)
    assert not [e for e in bench.all if isinstance(e, fx.Write)]


def test_a_leaver_without_a_successor_is_anybodys() -> None:
    bench = Bench().following()
    bench.view(leaving_view(""))
    assert bench.only(fx.Challenge).why == "handover"
