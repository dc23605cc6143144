"""The election's machine, rule by rule: candidacy, evidence, fence, refusal, what ends a term."""

from __future__ import annotations

from dataclasses import replace

import pytest
from election_bench import COORDINATOR, FEED, Bench, beat, look, member, record

from changefeed.coordination import View
from changefeed.election import effects as fx
from changefeed.errors import AppendOutcomeUnknown, LogDamaged, LogUnavailable

# ---- candidacy


def test_nobody_leads_and_a_candidate_takes() -> None:
    """With no leader record and a look into the log, the lead is taken with the synced view."""
    bench = Bench().started()
    take = bench.only(fx.Take)
    assert (take.seen, take.why) == (View(FEED, 0, 0, None), "start")
    bench.wrote(bench.own(1, 1))
    fence = bench.only(fx.FenceLog)
    assert (fence.fence.epoch, fence.fence.term, fence.clean) == (1, "00000001", False)
    assert (fence.fence.instance, fence.fence.process, fence.fence.url) == ("a", "process-a", "ws://a:1")
    assert (fence.fence.pid, fence.fence.pid_started, fence.fence.coordinator) == (1000, 7, COORDINATOR)
    bench.fenced()
    start = bench.only(fx.StartTerm)
    assert start.fence == fence.fence and start.look.fence == fence.fence and start.why == "start"
    assert (bench.status.role, bench.status.epoch, bench.status.term, bench.status.leader) == (
        "leading", 1, "00000001", "a"
    )  # fmt: skip


def test_no_candidacy_before_the_first_look() -> None:
    """Who has not seen the log does not stand: it may be damaged, newer, or another coordinator's."""
    bench = Bench().tell("tick").read(View(FEED, 0, 0, None))
    bench.none(fx.Take)
    assert bench.status.hindrance == "log-unanswered"
    bench.looked(look()).only(fx.Take)


def test_taking_rests_on_a_synced_read_not_on_a_watch() -> None:
    """A watch says what was true once: an empty seat is read again before it is taken."""
    bench = Bench().following()
    bench.wait(3.0)
    bench.quiet(look(5))
    gone = View(FEED, 5, 50, None)
    bench.view(gone)
    bench.none(fx.Take)
    bench.read(gone)
    assert bench.only(fx.Take).seen == gone


def test_the_take_lost_the_race_and_the_winner_is_followed() -> None:
    """None from take: somebody was faster. Read, and follow whoever it is."""
    bench = Bench().started().wrote(None)
    bench.only(fx.Read)
    bench.read(View(FEED, 1, 1, record("b", 1)))
    assert bench.only(fx.Follow).record == record("b", 1)
    bench.none(fx.Write)


def test_the_loser_of_a_race_sees_the_record_vanish_again_and_takes() -> None:
    bench = Bench().started().wrote(None).read(View(FEED, 1, 1, None))
    assert bench.only(fx.Take).seen.version == 1


def test_a_member_that_is_no_candidate_never_stands() -> None:
    """It follows, looks into the log and reports, nothing more."""
    bench = Bench(candidate=False).started()
    bench.none(fx.Write)
    bench.view(View(FEED, 5, 50, record("b", 5)))
    assert bench.only(fx.Follow).record == record("b", 5)
    bench.tell("link_refused", "process-b").wait(30)
    assert not [e for e in bench.all if isinstance(e, fx.Write)]
    assert bench.status.hindrance == "not-a-candidate"


def test_the_coordinator_answers_nothing_and_is_asked_again_ever_slower() -> None:
    """Retries from 0.1 s doubling to 1 s; each failed write is followed by a read before the next write."""
    bench = Bench().started()
    bench.only(fx.Take)
    bench.failed(fx.Take)
    bench.none(fx.Write, fx.Read)
    waits = []
    for _ in range(6):
        before = bench.now
        while bench.idle(fx.Read):
            bench.now = bench.machine.deadline
            bench.tell("tick")
            bench.quiet()
        waits.append(round(bench.now - before, 3))
        bench.failed(fx.Read)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


# ---- evidence that the process is gone


def test_refused_challenges_at_once_with_the_suspects_view() -> None:
    """No time passes between the evidence and the challenge, and it names the term that was seen to die."""
    bench = Bench().following(version=50)
    bench.tell("tick").none(fx.Write)  # a link that closed is nothing by itself
    bench.tell("link_refused", "process-b")
    challenge = bench.only(fx.Challenge)
    assert (challenge.seen.version, challenge.seen.epoch, challenge.why, challenge.clean) == (
        50, 5, "process-gone", False
    )  # fmt: skip


def test_refused_without_an_earlier_link_is_evidence_too() -> None:
    """First contact after a restart of everything: the record outlived its process."""
    bench = Bench().started(View(FEED, 5, 50, record("b", 5)), look(5))
    bench.none(fx.Write)
    assert bench.tell("link_refused", "process-b").only(fx.Challenge).seen.version == 50


def test_another_process_at_the_leaders_url_is_evidence() -> None:
    bench = Bench().following()
    assert bench.tell("link_foreign", "process-b", "process-c").only(fx.Challenge).why == "process-gone"


def test_my_own_url_names_a_process_that_is_gone() -> None:
    """Restarted under the same URL: I answer there, so the recorded process does not; no link is needed to know."""
    bench = Bench().started(View(FEED, 5, 50, record("old", 5, url="ws://a:1")), look(5))
    assert bench.only(fx.Challenge).why == "process-gone"


def test_evidence_about_another_process_than_the_records_is_ignored() -> None:
    """The successor has been read already: what is told of its predecessor concerns a term that is over."""
    bench = Bench().following()
    bench.view(View(FEED, 6, 60, record("c", 6)))
    assert bench.only(fx.Follow).record == record("c", 6)
    bench.tell("link_refused", "process-b").none(fx.Write)
    bench.tell("link_foreign", "process-b", "x").none(fx.Write)


def test_a_new_epoch_of_the_same_process_needs_new_evidence() -> None:
    """A non-candidate's old evidence must not carry over: the process took a new term after it."""
    bench = Bench(candidate=False).following()
    bench.tell("link_refused", "process-b")
    assert bench.machine.gone(record("b", 5)) == "refused"
    bench.view(View(FEED, 6, 60, record("b", 6)))
    assert bench.machine.gone(record("b", 6)) == ""


def test_a_word_of_the_process_takes_the_evidence_back() -> None:
    bench = Bench().following()
    bench.tell("link_refused", "process-b").failed(fx.Challenge)
    bench.tell("link_up", "process-b").wait(0.2)
    bench.read(View(FEED, 5, 50, record("b", 5))).none(fx.Write)


def test_a_time_out_is_no_evidence() -> None:
    """Unreachable, silent, closed: nothing happens before suspect_after has passed."""
    bench = Bench().following()
    for _ in range(4):
        bench.wait(0.3).quiet(look(5))
        bench.tell("tick").none(fx.Write, fx.AskMembers)


def test_a_bad_version_means_that_the_term_is_over_and_the_new_leader_is_followed() -> None:
    bench = Bench().following()
    bench.tell("link_refused", "process-b").wrote(None)
    bench.read(View(FEED, 6, 60, record("c", 6)))
    bench.none(fx.Write)
    assert bench.status.leader == "c"


def test_a_read_that_overlapped_a_write_is_not_believed() -> None:
    """Its view may be older than what the write did; it is asked for again."""
    bench = Bench().leading()
    bench.tell("follower_beat", beat("b", "following", epoch=9))  # a rumour of a higher epoch starts a read
    old = bench.only(fx.Read)
    bench.tell("hand_over").tell("term_ended", 1, "handover")
    bench.tell("did_list", bench.flying(fx.ListMembers).id, {"b": member("b")}).only(fx.MarkLeaving)
    bench.wrote(True)
    bench.tell("did_read", old.id, View(FEED, 9, 9, None), False)
    assert bench.machine.views.view == bench_own(1)
    bench.only(fx.Read)


def test_a_read_that_a_watch_overtook_is_not_believed() -> None:
    """Its answer was on the way when somebody took the lead; believing it would leave me with that view for ever."""
    bench = Bench(candidate=False).started()
    bench.tell("link_beat", beat("b", epoch=1)).only(fx.Read)
    bench.view(View(FEED, 1, 1, record("b", 1)))
    bench.read(View(FEED, 0, 0, None))
    assert bench.status.leader == "b"
    bench.read(View(FEED, 1, 1, record("b", 1)))
    assert bench.idle(fx.Read)


def test_the_reply_of_a_take_that_came_after_its_successors_news_wins_nothing() -> None:
    bench = Bench().started()
    bench.view(View(FEED, 2, 2, record("b", 2)))
    bench.wrote(bench_own(1)).none(fx.FenceLog)
    assert bench.status.leader == "b"


def test_a_watch_with_an_older_epoch_is_not_believed() -> None:
    """Late watches are read again; only a synced read may take an epoch back (the coordinator was wiped)."""
    bench = Bench().following(epoch=5)
    bench.view(View(FEED, 4, 40, record("c", 4)))
    assert bench.machine.views.view == View(FEED, 5, 50, record("b", 5))
    bench.read(View(FEED, 4, 99, record("c", 4)))
    assert bench.only(fx.Follow).record == record("c", 4)


# ---- the fence


def test_a_slow_fence_is_waited_for() -> None:
    """Log slow for all: the winner waits, says fencing, and nobody moves."""
    bench = Bench().started().wrote(bench_own(1))
    for _ in range(20):
        bench.wait(0.5)
    assert bench.status.role == "fencing"
    assert [e for e in bench.all if isinstance(e, fx.FenceLog)] == [bench.flying(fx.FenceLog)]
    assert any("waited for the log's fence" in note for note in bench.status.notes)


def bench_own(epoch: int) -> View:
    return View(FEED, epoch, epoch, record("a", epoch))


def test_a_fence_that_fails_is_tried_again_under_the_same_epoch_and_term() -> None:
    bench = Bench().started().wrote(bench_own(1))
    first = bench.flying(fx.FenceLog).fence
    bench.failed(fx.FenceLog, LogUnavailable("locked")).none(fx.FenceLog)
    bench.wait(0.02)
    assert bench.only(fx.FenceLog).fence == first


def test_a_fence_of_unknown_outcome_is_never_tried_again_under_its_epoch() -> None:
    """An epoch is fenced once: the next try is another epoch, won by a challenge of my own record."""
    bench = Bench().started().wrote(bench_own(1))
    bench.failed(fx.FenceLog, AppendOutcomeUnknown("io"))
    assert (bench.only(fx.Challenge).seen, bench.only(fx.Challenge).why) == (bench_own(1), "outcome-unknown")


def test_a_fence_that_stands_already_as_mine_is_not_used() -> None:
    """The first try was written, its answer lost: the same epoch would be fenced twice."""
    bench = Bench().started().wrote(bench_own(1))
    bench.refused(1, "00000001").none(fx.FenceLog)
    assert bench.only(fx.Challenge).seen == bench_own(1)


def test_refused_and_the_coordinator_is_ahead_means_overtaken() -> None:
    """Review 18: C won 7, was frozen before its fence; D leads 8. C must follow, and raise nothing."""
    bench = Bench().started().wrote(bench_own(7))
    bench.refused(8)
    bench.none(fx.Write)
    bench.read(View(FEED, 8, 80, record("d", 8)))
    bench.none(fx.Write)
    assert bench.only(fx.Follow).record == record("d", 8)


def test_refused_by_an_equal_epoch_resigns_what_is_still_mine() -> None:
    """A restored coordinator gave an epoch that the log knows: overtaken; my record must not stand in the way."""
    bench = Bench().started(found=look(7)).wrote(True)
    bench.read(View(FEED, 7, 70, None)).wrote(bench_own(8))
    bench.refused(8)
    bench.read(bench_own(8))
    assert bench.only(fx.Resign).epoch == 8


def test_whoever_was_refused_looks_who_holds_the_log_before_it_stands_again() -> None:
    """Its last look did not show that fence, so it may be of another coordinator, whose leader lives."""
    bench = Bench().started().wrote(bench_own(1))
    bench.refused(1, coordinator="deadbeef")
    bench.read(bench_own(1)).wrote(None).read(View(FEED, 1, 1, None)).none(fx.Take)
    bench.wait(1.0).quiet(look(1, coordinator="deadbeef", renewed=100_500)).none(fx.Take)
    assert bench.status.hindrance == "two-coordinators"


def test_a_record_of_an_older_session_cannot_be_resigned() -> None:
    """It is not mine any more; it goes with its session."""
    bench = Bench().leading().wait(1.0)
    bench.session = "session-a2"
    bench.failed(fx.LookLog, LogDamaged("x")).none(fx.Resign)


def test_refused_and_the_coordinator_is_behind_raises_it_to_the_log_and_stands_ordinarily() -> None:
    """A wiped coordinator is lifted by a versioned set, never above the log, and then comes a challenge."""
    bench = Bench().started().wrote(bench_own(1))
    bench.refused(7)
    bench.read(bench_own(1)).none(fx.Write)  # whose fence that is only a look tells
    bench.wait(0.05).looked(look(7))
    raised = bench.only(fx.RaiseEpoch)
    assert (raised.seen, raised.epoch) == (bench_own(1), 7)
    bench.wrote(True)
    lifted = View(FEED, 7, 70, record("a", 1))
    bench.read(lifted)
    assert (bench.only(fx.Challenge).seen, bench.only(fx.Challenge).why) == (lifted, "coordinator-behind")
    bench.wrote(bench_own(8)).fenced().only(fx.StartTerm)


def test_the_raise_lost_the_race_and_the_coordinator_is_read_again() -> None:
    bench = Bench().started().wrote(bench_own(1)).refused(7).read(bench_own(1))
    bench.wait(0.05).looked(look(7)).wrote(False)
    bench.read(View(FEED, 8, 80, record("d", 8)))
    assert bench.status.leader == "d" and bench.status.role == "following"


def test_a_coordinator_behind_the_log_is_raised_before_an_epoch_is_won_in_vain() -> None:
    """The look told the log's epoch already: raise first, then take."""
    bench = Bench().started(found=look(7, process="process-x"))
    assert bench.only(fx.RaiseEpoch).epoch == 7
    bench.wrote(True).read(View(FEED, 7, 70, None))
    assert bench.only(fx.Take).seen.epoch == 7


def test_an_overtaken_winner_does_not_wait_for_its_fence() -> None:
    bench = Bench().started().wrote(bench_own(1))
    bench.view(View(FEED, 2, 2, record("b", 2)))
    assert bench.only(fx.Follow).record == record("b", 2)
    bench.fenced().none(fx.StartTerm)
    assert bench.status.role == "following"


def test_the_fence_of_an_epoch_given_up_starts_no_term() -> None:
    """The call runs on in the log; its answer comes to another epoch and is dropped."""
    bench = Bench().started().wrote(bench_own(1))
    old = bench.flying(fx.FenceLog)
    bench.view(View(FEED, 2, 2, record("b", 2))).tell("link_refused", "process-b").wrote(bench_own(3))
    bench.none(fx.FenceLog)  # one fence at a time
    bench.tell("did_fence", old.id, replace(look(1, "00000001"), fence=old.fence)).none(fx.StartTerm)
    assert bench.only(fx.FenceLog).fence.epoch == 3


# ---- a term and its end


def test_a_lost_reply_leaves_a_record_of_mine_that_is_replaced_by_a_challenge() -> None:
    """Review 19: the take happened, its reply did not arrive; nobody else could ever contend."""
    bench = Bench().started()
    bench.failed(fx.Take).wait(0.1)
    bench.read(bench_own(1))
    assert (bench.only(fx.Challenge).seen, bench.only(fx.Challenge).why) == (bench_own(1), "reply-lost")


def test_a_watch_that_overtakes_the_reply_of_a_take_does_not_start_a_second_candidacy() -> None:
    bench = Bench().started()
    bench.only(fx.Take)
    bench.view(bench_own(1)).none(fx.Write)
    bench.wrote(bench_own(1)).only(fx.FenceLog)


@pytest.mark.parametrize("why", ["outcome-unknown", "tail-moved", "log-unavailable"])
def test_a_term_that_ended_by_itself_contends_again_by_challenging_its_own_record(why: str) -> None:
    bench = Bench().leading()
    bench.wait(2.0)
    bench.tell("term_ended", 1, why)
    assert (bench.only(fx.Challenge).seen, bench.only(fx.Challenge).why) == (bench_own(1), why)


def test_a_term_that_was_fenced_reads_the_coordinator_before_it_contends() -> None:
    """Another fenced the log, so another leads, most likely: challenging at once would depose it."""
    bench = Bench().leading()
    bench.tell("term_ended", 1, "fenced").none(fx.Write)
    bench.read(View(FEED, 2, 2, record("b", 2))).none(fx.Write)
    assert bench.status.leader == "b"


def test_the_end_of_an_old_term_ends_no_new_one() -> None:
    bench = Bench().leading()
    bench.tell("term_ended", 0, "fenced")
    assert bench.status.role == "leading"


def test_an_idle_leader_learns_from_the_logs_fence_within_a_look() -> None:
    """It appends nothing, its watch is late: the look each second tells."""
    bench = Bench().leading()
    bench.wait(1.0)
    assert bench.flying(fx.LookLog).renew == (1, "00000001")
    bench.looked(look(2, "bbbbbbbb"))
    assert bench.only(fx.EndTerm) == fx.EndTerm(1, "fenced")
    bench.read(View(FEED, 2, 2, record("b", 2)))
    assert bench.only(fx.Follow).record == record("b", 2)


def test_a_look_that_began_before_my_fence_proves_nothing_about_it() -> None:
    bench = Bench().started().wait(1.0)
    old = bench.flying(fx.LookLog)
    bench.wrote(bench_own(1)).fenced().only(fx.StartTerm)
    bench.tell("did_look", old.id, look(0)).none(fx.EndTerm)
    assert bench.status.role == "leading"
    assert bench.machine.log.look is not None and bench.machine.log.look.fence.epoch == 1


def test_a_higher_epoch_of_another_ends_the_term_at_once() -> None:
    bench = Bench().leading()
    bench.view(View(FEED, 2, 2, record("b", 2)))
    assert [type(effect) for effect in bench.new if not isinstance(effect, fx.Read)] == [fx.EndTerm, fx.Follow]


def test_a_lower_epoch_of_another_ends_nothing() -> None:
    """A wiped coordinator let somebody win epoch 1: the log decides, and the coordinator is asked again."""
    bench = Bench().following(epoch=7, version=70).tell("link_refused", "process-b").wrote(bench_own(8)).fenced()
    bench.view(View(FEED, 1, 99, record("c", 1)))
    bench.read(View(FEED, 1, 99, record("c", 1))).none(fx.EndTerm, fx.Write)
    assert bench.status.role == "leading"
    bench.wait(1.0)
    bench.flying(fx.Read)


def test_a_lower_epoch_of_another_that_never_serves_is_challenged_by_who_serves() -> None:
    """It won in a wiped coordinator and died before it could raise it; others would look for it for ever."""
    bench = Bench().leading()
    stale = View(FEED, 1, 99, record("c", 1))
    bench.view(stale)
    for _ in range(30):
        bench.wait(0.1).quiet(look(1, "00000001"))
        if not bench.idle(fx.Read):
            bench.read(stale)
        if not bench.idle(fx.Challenge):
            break
    assert bench.flying(fx.Challenge).seen == stale
    assert bench.status.role == "leading"


def test_a_record_deleted_by_hand_is_taken_again_while_the_term_goes_on() -> None:
    """A feed never stays without a leader; publishing goes on until the next epoch is won."""
    bench = Bench().leading()
    gone = View(FEED, 1, 1, None)
    bench.view(gone).none(fx.EndTerm, fx.Write)
    bench.read(gone)
    bench.none(fx.EndTerm)
    assert (bench.only(fx.Take).seen, bench.only(fx.Take).why) == (gone, "session-lost")
    bench.wrote(bench_own(2))
    kinds = [type(effect) for effect in bench.new]
    assert kinds.index(fx.EndTerm) < kinds.index(fx.FenceLog)
    bench.fenced()
    assert bench.only(fx.StartTerm).fence.epoch == 2


def test_a_record_of_an_older_session_of_mine_is_replaced() -> None:
    """The session was lost and a new one joined: the record would go with the old one."""
    bench = Bench().leading()
    bench.session = "session-a2"
    bench.view(bench_own(1))
    assert bench.only(fx.Challenge).why == "session-lost"
    bench.none(fx.EndTerm)


def test_a_wiped_coordinator_is_raised_by_the_leader_before_it_takes_again() -> None:
    """It knows the log's epoch: raise, take, and only then change terms."""
    bench = Bench().following(epoch=7, version=70).tell("link_refused", "process-b").wrote(bench_own(8)).fenced()
    bench.coordinator = "0ther1d0"
    bench.view(View(FEED, 0, 90, None))
    bench.read(View(FEED, 0, 90, None))
    assert bench.only(fx.RaiseEpoch).epoch == 8
    bench.wrote(True).read(View(FEED, 8, 91, None)).none(fx.EndTerm)
    bench.only(fx.Take)
    bench.wrote(View(FEED, 9, 92, record("a", 9)))
    assert bench.only(fx.FenceLog).fence.coordinator == "0ther1d0"


def test_the_coordinator_is_away_and_the_leader_goes_on() -> None:
    """Review 31: it stops when fenced, or when it learns that another leads, and says that it goes on."""
    bench = Bench().leading()
    bench.connected = False
    for _ in range(60):
        bench.wait(1.0).quiet(look(1, "00000001"))
    assert bench.status.role == "leading"
    assert any("goes on leading" in note for note in bench.status.notes)


def test_the_coordinator_is_away_and_the_follower_says_that_nobody_can_be_replaced() -> None:
    bench = Bench().following()
    bench.connected = False
    bench.tell("link_refused", "process-b").failed(fx.Challenge)
    for _ in range(20):
        bench.wait(0.5).quiet(look(5))
        if not bench.idle(fx.Read):
            bench.failed(fx.Read)
    assert "b, which is gone, cannot be replaced meanwhile" in bench.status.notes[0]
    bench.connected = True
    bench.wait(1.0)
    bench.read(View(FEED, 5, 50, record("b", 5)))
    assert bench.only(fx.Challenge).seen.version == 50


def test_a_rumour_of_a_higher_epoch_makes_the_leader_ask() -> None:
    """A follower that serves or follows a newer term knows more than my watch."""
    bench = Bench().leading()
    bench.tell("follower_beat", beat("b", epoch=9)).only(fx.Read)
    bench.read(View(FEED, 9, 9, record("b", 9)))
    bench.only(fx.EndTerm)


def test_terms_that_end_as_soon_as_they_begin_are_rested_from() -> None:
    """A disk that fails every append: from the third term on I resign and rest, so that another may try."""
    bench = Bench().leading()
    for epoch in (1, 2):
        bench.tell("term_ended", epoch, "outcome-unknown")
        bench.wrote(bench_own(epoch + 1)).fenced(tail=0)
    bench.tell("term_ended", 3, "outcome-unknown")
    assert bench.only(fx.Resign).epoch == 3
    assert bench.status.hindrance == "too-many-elections"
    bench.wrote(None).read(View(FEED, 3, 3, None)).none(fx.Write)
    bench.wait(0.1).only(fx.Take)
