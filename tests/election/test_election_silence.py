"""A leader that is silent: who is asked, what the log must show, and how often one may be challenged for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from election_bench import FEED, Bench, beat, look, record

from changefeed.coordination import View
from changefeed.election import effects as fx


def run(bench: Bench, seconds: float, *, tail: int = 0, beats: bool = False, heard: float | None = None) -> list[str]:
    """Let time pass in tenths; answer looks at once with this tail, asks with what the members say. Returns why of
    every challenge on the way, which stays unanswered."""
    why: list[str] = []
    for _ in range(round(seconds * 10)):
        bench.wait(0.1)
        while True:
            why += [effect.why for effect in bench.new if isinstance(effect, fx.Challenge)]
            if not bench.idle(fx.LookLog):
                bench.looked(look(5, "bbbbbbbb", tail=tail))
            elif not bench.idle(fx.AskMembers):
                bench.said(*([] if heard is None else [heard]))
            else:
                break
        if beats:
            bench.tell("link_beat", beat("b", epoch=5))
    return why


def test_a_silent_leader_is_challenged_after_suspect_after_and_not_before() -> None:
    """Frozen: nothing more arrives. 1.5 s, one round of questions, one look."""
    bench = Bench().following()
    assert run(bench, 1.4) == []
    assert run(bench, 0.3) == ["silent"]
    assert bench.flying(fx.Challenge).seen == View(FEED, 5, 50, record("b", 5))


def test_heartbeats_keep_suspicion_away() -> None:
    bench = Bench().following()
    assert run(bench, 30, beats=True) == []


def test_a_leader_that_another_member_heard_is_left_alone() -> None:
    """Cut off from me only: I serve from the log, and status says so."""
    bench = Bench().following()
    assert run(bench, 20, heard=0.2) == []
    assert "b is not heard here, but another instance hears it" in bench.status.notes


def test_a_member_that_heard_it_a_moment_earlier_delays_by_that_moment_only() -> None:
    """Two followers of a frozen leader heard their last heartbeats at different times."""
    bench = Bench().following()
    run(bench, 1.5, heard=1.3)
    assert run(bench, 0.4, heard=1.6) == ["silent"]


def test_a_leader_whose_log_moves_is_left_alone() -> None:
    """Silent here, but it appends: it lives, and its publishers are served."""
    bench = Bench().following()
    for tail in range(1, 60):
        assert run(bench, 0.5, tail=tail) == []
    assert run(bench, 3.0, tail=59) == ["silent"]


def test_what_was_appended_just_before_it_froze_does_not_acquit_it() -> None:
    """It wrote until it froze, up to one heartbeat after its last word: tails of that time prove nothing."""
    bench = Bench().following()
    run(bench, 0.8, beats=True)
    assert run(bench, 0.3, tail=100) == []  # the look of each second falls 0.2 s into the silence
    assert bench.machine.log.look is not None and bench.machine.log.look.tail.seq == 100
    assert run(bench, 1.3, tail=200) == ["silent"]


def test_no_challenge_for_silence_while_the_log_does_not_answer() -> None:
    """Who cannot see the log cannot know that it stood still; and moving the lead would help nobody."""
    bench = Bench().following()
    bench.wait(1.0)
    bench.flying(fx.LookLog)
    for _ in range(100):
        bench.wait(0.1).none(fx.Challenge)
        if not bench.idle(fx.AskMembers):
            bench.said()
    bench.failed(fx.LookLog)
    assert run(bench, 1.5) == ["silent"]


def test_no_member_can_be_reached_and_it_is_challenged() -> None:
    """Asking fails or nobody answers: no reachable member heard it."""
    bench = Bench().following()
    bench.wait(0.7).looked(look(5)).wait(0.4).quiet(look(5)).wait(0.5).quiet(look(5))
    bench.failed(fx.AskMembers, RuntimeError("members cannot be listed"))
    assert run(bench, 0.5) + [e.why for e in bench.all if isinstance(e, fx.Challenge)] == ["silent"]


def test_a_leader_that_answers_but_does_not_serve_its_epoch_is_challenged_like_a_silent_one() -> None:
    """Review 19: it lost its reply, or its term ended and it cannot contend. Members hear it too, so none is asked."""
    bench = Bench().following()
    found: list[str] = []
    for _ in range(20):
        found += run(bench, 0.1)
        bench.tell("link_beat", beat("b", "following"))
    assert set(found) == {"not-serving"}
    assert not [e for e in bench.all if isinstance(e, fx.AskMembers)]


def test_a_leader_that_waits_for_the_logs_fence_is_not_suspected() -> None:
    """It says fencing: moving the stall would help nobody."""
    bench = Bench().following()
    for _ in range(100):
        assert run(bench, 0.1) == []
        bench.tell("link_beat", beat("b", "fencing", epoch=5))


def test_a_leader_that_serves_an_older_epoch_than_its_record_is_suspected() -> None:
    bench = Bench().started(View(FEED, 6, 60, record("b", 6)), look(5, "bbbbbbbb"))
    found: list[str] = []
    for _ in range(20):
        found += run(bench, 0.1)
        bench.tell("link_beat", beat("b", epoch=5))
    assert set(found) == {"not-serving"}


def test_a_leader_that_serves_a_newer_epoch_than_my_view_is_alive() -> None:
    bench = Bench().following()
    for _ in range(30):
        assert run(bench, 0.1) == []
        bench.tell("link_beat", beat("b", epoch=6))


def test_a_word_during_the_inquiry_ends_it() -> None:
    """The answers that were collected belong to a silence that is over."""
    bench = Bench().following()
    bench.wait(0.7).looked(look(5)).wait(0.4).quiet(look(5)).wait(0.5).quiet(look(5))
    bench.flying(fx.AskMembers)
    bench.tell("link_beat", beat("b", epoch=5))
    bench.said().none(fx.Challenge)
    assert run(bench, 1.3) == []


def test_my_own_stall_is_not_the_leaders_silence() -> None:
    """I was frozen for a minute: the heartbeats lie unread, and what I did not hear proves nothing."""
    bench = Bench().following()
    bench.now += 60
    bench.tell("tick")
    assert run(bench, 1.3) == []


def win_for_silence(bench: Bench, epoch: int) -> None:
    """Wait until the silent leader is challenged, win, lead for a moment, and be deposed by it again."""
    assert any(run(bench, 0.1) for _ in range(1000)), "never challenged"
    mine = View(FEED, epoch, epoch * 10, record("a", epoch))
    bench.wrote(mine).fenced()
    bench.only(fx.StartTerm)
    theirs = View(FEED, epoch + 1, epoch * 10 + 1, record("b", epoch + 1))
    bench.view(theirs).only(fx.EndTerm)


def test_challenges_for_silence_back_off_from_one_second_doubling_to_sixty() -> None:
    """Review 27: two instances that cannot see each other would take turns for ever."""
    bench = Bench().following(epoch=5)
    times = []
    for n in range(9):
        win_for_silence(bench, 6 + 2 * n)
        times.append(bench.now)
    gaps = [round(b - a) for a, b in pairwise(times)]
    assert gaps == [2, 2, 4, 8, 16, 32, 60, 60]


def test_a_term_of_a_minute_resets_the_back_off() -> None:
    bench = Bench().following(epoch=5)
    for n in range(5):
        win_for_silence(bench, 6 + 2 * n)
    for _ in range(250):
        bench.tell("link_beat", beat("b", epoch=15))
        run(bench, 0.3)
    began = bench.now
    win_for_silence(bench, 100)
    win_for_silence(bench, 102)
    assert bench.now - began < 6


def test_a_vanished_process_is_challenged_at_once_whatever_the_back_off() -> None:
    bench = Bench().following(epoch=5)
    for n in range(5):
        win_for_silence(bench, 6 + 2 * n)
    assert bench.tell("link_refused", "process-b").only(fx.Challenge).why == "process-gone"


def test_a_storm_of_elections_is_slowed_down() -> None:
    """Two instances that advertise one URL would depose each other without end: eight wins in 10 s, then rest."""
    bench = Bench().following(epoch=5)
    epoch, began = 6, bench.now
    for _ in range(8):
        bench.tell("link_refused", "process-b").wrote(View(FEED, epoch, epoch, record("a", epoch))).fenced()
        bench.wait(0.01).view(View(FEED, epoch + 1, epoch + 1, record("b", epoch + 1)))
        epoch += 2
    bench.tell("link_refused", "process-b").none(fx.Challenge)
    assert bench.status.hindrance == "too-many-elections"
    while bench.idle(fx.Challenge) and bench.now < began + 20:
        bench.wait(0.1).quiet(look(5))
    assert 9.9 < bench.now - began < 10.5


# ---- a record that vanished under a leader that serves


def test_others_wait_a_moment_for_a_serving_leader_to_come_back() -> None:
    """Its session expired, or somebody deleted the record: half a second saves a needless change, no more."""
    bench = Bench().following()
    gone = View(FEED, 5, 50, None)
    bench.view(gone).none(fx.Take)
    bench.wait(0.3).tell("link_beat", beat("b", epoch=5)).none(fx.Take)
    if not bench.idle(fx.Read):
        bench.read(gone)
    bench.wait(0.25)
    if not bench.idle(fx.Read):
        bench.read(gone)
    bench.only(fx.Take)


def test_nobody_waits_for_a_leader_that_resigned_or_died() -> None:
    for state in ("following", "dead", "closed"):
        bench = Bench().following()
        if state == "closed":
            bench.view(View(FEED, 5, 50, None)).none(fx.Read)
            bench.tell("link_closed", "process-b").read(View(FEED, 5, 50, None))
            assert bench.only(fx.Take).why == "vacant"
        elif state == "dead":
            bench.tell("link_refused", "process-b").failed(fx.Challenge).wait(0.1)
            bench.read(View(FEED, 5, 50, None))
            assert bench.only(fx.Take).why == "process-gone"
        else:
            bench.tell("link_beat", beat("b", "following"))
            bench.view(View(FEED, 5, 50, None)).read(View(FEED, 5, 50, None))
            assert bench.only(fx.Take).why == "vacant"


def test_the_link_is_kept_while_the_record_is_gone() -> None:
    """Publishes go on through it meanwhile."""
    bench = Bench().following()
    bench.view(View(FEED, 5, 50, None)).none(fx.Follow)
    bench.view(View(FEED, 6, 60, record("b", 6)))
    assert bench.only(fx.Follow).record == record("b", 6)


def test_the_successor_of_a_leaver_is_not_part_of_whom_to_follow() -> None:
    """The mark changes nothing for the link: it is not torn down and set up again."""
    bench = Bench().following()
    leaving = replace(record("b", 5), leaving=True, successor="c")
    bench.view(View(FEED, 5, 50, leaving)).none(fx.Follow)
