"""What bars from leading, a log that does not answer, a frozen holder of its lock, and what status says of it all."""

from __future__ import annotations

import pytest
from election_bench import FEED, Bench, beat, look, record

from changefeed.coordination import View
from changefeed.election import effects as fx
from changefeed.errors import LogDamaged, LogFormatUnknown, LogReplaced


def bench_own(epoch: int) -> View:
    return View(FEED, epoch, epoch, record("a", epoch))


# ---- what bars from leading


@pytest.mark.parametrize("error", [LogDamaged("x"), LogReplaced("x"), LogFormatUnknown("x")])
def test_a_damaged_log_ends_the_term_and_every_candidacy(error: Exception) -> None:
    bench = Bench().leading()
    bench.wait(1.0)
    bench.failed(fx.LookLog, error)
    assert bench.only(fx.EndTerm).epoch == 1
    assert bench.only(fx.Resign).epoch == 1
    assert (bench.status.role, bench.status.broken) == ("broken", error.code)
    bench.wrote(None).read(View(FEED, 1, 1, None)).wait(60)
    bench.none(fx.Write, fx.LookLog)


def test_a_log_of_a_newer_format_is_not_led() -> None:
    bench = Bench().started(found=look(3, format=99))
    bench.none(fx.Write)
    assert bench.status.hindrance == "log-format-unknown"
    assert any("upgrade" in note for note in bench.status.notes)


def test_a_living_fence_of_another_coordinator_is_refused_loudly() -> None:
    """Review 26: both sides would depose each other for ever."""
    bench = Bench().started(found=look(3, coordinator="deadbeef", renewed=99_000))
    bench.none(fx.Write)
    assert bench.status.hindrance == "two-coordinators"
    assert "two coordinators: b leads epoch 3 under coordinator deadbeef" in bench.status.notes[0]
    for second in range(30):  # its clock is wrong by an hour, but its stamp moves
        bench.wait(1.0)
        bench.quiet(look(3, coordinator="deadbeef", renewed=3_600_000 + second * 1000))
    assert not [effect for effect in bench.all if isinstance(effect, fx.Write)]


def test_a_fence_of_another_coordinator_that_is_no_longer_renewed_is_overcome() -> None:
    """The data of the coordinator was lost together with the leader: ten seconds later life goes on."""
    bench = Bench().started(found=look(3, coordinator="deadbeef", renewed=99_000))
    began = bench.now
    while bench.idle(fx.RaiseEpoch):
        bench.wait(0.5).quiet(look(3, coordinator="deadbeef", renewed=99_000))
        assert bench.now - began <= 11
    assert bench.now - began >= 8.5


def test_a_foreign_fence_met_while_fencing_gives_the_epoch_back() -> None:
    bench = Bench().started().wrote(bench_own(1))
    bench.refused(3, coordinator="deadbeef").read(bench_own(1)).wait(0.05)
    bench.looked(look(3, coordinator="deadbeef", renewed=100_000))
    assert bench.only(fx.Resign).epoch == 1
    assert bench.status.hindrance == "two-coordinators"


# ---- the log is slow


def test_the_log_is_slow_for_all_and_nobody_moves() -> None:
    """Ten seconds without an answer, heartbeats of followers that wait as well: no election, but status says so."""
    bench = Bench().leading()
    bench.wait(1.0)
    for tenth in range(100):
        ok = tenth < 30  # their looks time out as mine does, up to an interval later
        bench.tell("follower_beat", beat("b", "following", log_ok=ok))
        bench.wait(0.1).none(fx.EndTerm)
    assert bench.status.role == "leading" and not bench.status.log_ok
    assert any("log slow since 10.0 s" in note for note in bench.status.notes)


def test_the_log_is_slow_for_the_leader_alone_and_it_resigns() -> None:
    """Review 21: cut off from the log only. It does not stand again before its own look succeeds."""
    bench = Bench().leading()
    bench.wait(1.0)
    lost = bench.now
    while bench.status.role == "leading":
        bench.tell("follower_beat", beat("b", "following", log_ok=True))
        bench.wait(0.1)
        assert bench.now - lost < 5
    assert [e.why for e in bench.all if isinstance(e, fx.EndTerm)] == ["log-slow"]
    assert bench.flying(fx.Resign).epoch == 1
    bench.wrote(None).read(View(FEED, 1, 1, None)).none(fx.Take)
    bench.failed(fx.LookLog).wait(2.0).none(fx.Take)
    bench.looked(look(1, "00000001")).only(fx.Take)


def test_a_winner_whose_log_alone_does_not_answer_gives_the_epoch_back() -> None:
    bench = Bench().started().wrote(bench_own(1))
    for _ in range(60):
        bench.tell("follower_beat", beat("b", "following", log_ok=True))
        bench.wait(0.1)
    assert bench.flying(fx.Resign).epoch == 1


def test_looks_fail_quickly_and_still_take_log_timeout_to_count() -> None:
    bench = Bench().leading()
    bench.wait(1.0)
    for _ in range(3):
        bench.failed(fx.LookLog).wait(1.0)
    assert not bench.status.log_ok
    bench.looked(look(1, "00000001"))
    assert bench.status.log_ok and bench.status.log_slow_s == 0


# ---- a frozen holder of the log's lock


def held(epoch: int = 0, **fence: object) -> object:
    return look(epoch, "bbbbbbbb", **{"pid": 4711, "pid_started": 99, "process": "process-b", **fence})


def test_a_held_up_fence_names_the_holder_and_kills_it_only_if_told_to() -> None:
    """Review 16: after 200 ms the fence row says who; killing is an option."""
    for kill in (False, True):
        bench = Bench(kill_frozen=kill).following(epoch=5)
        bench.tell("link_refused", "process-b").wrote(bench_own(6))
        bench.wait(0.19).none(fx.KillHolder)
        bench.wait(0.02).quiet(held(5))  # type: ignore[arg-type]
        if not kill:
            bench.none(fx.KillHolder).wait(0.1)
            assert any("b (pid 4711" in note for note in bench.status.notes)
            continue
        holder = bench.only(fx.KillHolder).holder
        assert (holder.pid, holder.pid_started) == (4711, 99)
        bench.tell("did_kill", bench.flying(fx.KillHolder).id, "killed")
        bench.fenced().only(fx.StartTerm)
        assert bench.status.kills == 1


def test_a_holder_that_is_not_frozen_yet_is_looked_at_again() -> None:
    bench = Bench(kill_frozen=True).following(epoch=5)
    bench.tell("link_refused", "process-b").wrote(bench_own(6)).wait(0.21).quiet(held(5))  # type: ignore[arg-type]
    bench.tell("did_kill", bench.flying(fx.KillHolder).id, "not-frozen").none(fx.KillHolder)
    bench.wait(0.2).only(fx.KillHolder)
    assert bench.status.kills == 0


@pytest.mark.parametrize(
    "fence",
    [{"process": "process-a"}, {"pid": 1000}, {"pid": 0}, {"epoch": 6}],
    ids=["me", "my pid", "no pid", "newer"],
)
def test_whom_a_held_up_fence_never_kills(fence: dict[str, object]) -> None:
    """Not myself, nobody unnamed, and nobody whose epoch is not below the one that I won."""
    bench = Bench(kill_frozen=True).following(epoch=5)
    bench.tell("link_refused", "process-b").wrote(bench_own(6)).wait(0.21)
    bench.quiet(held(**{"epoch": 5, **fence})).wait(5)  # type: ignore[arg-type]
    assert not [e for e in bench.all if isinstance(e, fx.KillHolder)]


# ---- status


def test_status_tells_why_another_leads_and_keeps_the_last_events() -> None:
    bench = Bench().following(epoch=5)
    assert (bench.status.leader, bench.status.url, bench.status.why) == ("b", "ws://b:1", "start")
    assert bench.status.term == "bbbbbbbb"
    for epoch in range(6, 106):
        bench.view(View(FEED, epoch, epoch * 10, record("bc"[epoch % 2], epoch)))
    events = bench.status.events
    assert len(events) == 64 and (events[-1].epoch, events[-1].who) == (105, "c")
