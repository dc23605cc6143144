"""The conformance suite of coordinators: what every `changefeed.coordination.Coordinator` must do.

    from changefeed.testing.coordinator_suite import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_it(check):
        await check(MyPlace())

Each check is an async function that takes a fresh `Place` (see coordinator_place.py: an empty coordinator and the means
to hurt it) and raises AssertionError with what went wrong. Checks wait for what must happen, at most LIMIT_S; none
depends on how long a thing takes. They need no test framework.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from changefeed.coordination import Coordinator, Member, View
from changefeed.errors import CoordinatorUnavailable, InvalidName, NameTaken
from changefeed.testing.coordinator_place import (
    FEED,
    LIMIT_S,
    Place,
    change_after,
    eventually,
    insist,
    lead,
    member,
    participants,
)

Check = Callable[[Place], Awaitable[None]]

# ---- epochs and compare-and-set


async def a_new_feed_has_epoch_0_and_no_leader(place: Place) -> None:
    async with participants(place, "a") as [a]:
        view = await a.read(FEED)
        assert (view.feed, view.epoch, view.leader) == (FEED, 0, None)
        assert not a.mine(view)
        assert a.state().connected and a.state().session and a.state().id


async def taking_gives_the_next_epoch_and_all_see_it(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        assert taken.epoch == 1 and taken.leader is not None
        assert (taken.leader.name, taken.leader.process) == ("a", "process-of-a")
        assert taken.leader.url == "ws://127.0.0.1:1/a" and taken.leader.epoch == 1 and not taken.leader.leaving
        assert await b.read(FEED) == taken == await a.read(FEED)
        assert a.mine(taken) and not b.mine(taken)
        assert taken.leader.session == a.state().session


async def feeds_are_apart(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        await lead(a)
        other = await b.take("napi", await b.read("napi"))
        assert other is not None and other.epoch == 1 and b.mine(other)
        assert a.mine(await b.read(FEED)) and b.mine(await a.read("napi"))


async def taking_fails_while_somebody_leads(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        assert await b.take(FEED, taken) is None
        assert await a.take(FEED, taken) is None, "not by the leader itself either: that would be a challenge"
        assert await b.read(FEED) == taken


async def an_old_version_fails(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        before = await b.read(FEED)
        first = await lead(a)
        assert await b.take(FEED, before) is None
        assert await b.challenge(FEED, before) is None
        assert not await b.raise_epoch(FEED, before, 7)
        second = await b.challenge(FEED, first)
        assert second is not None and second.epoch == 2
        for stale in (before, first):
            assert await a.challenge(FEED, stale) is None
            assert await a.take(FEED, stale) is None
            assert not await a.raise_epoch(FEED, stale, 9)
        assert await a.read(FEED) == second


async def a_challenge_replaces_the_leader_at_once(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        first = await lead(a)
        second = await b.challenge(FEED, first)
        assert second is not None and second.epoch == 2 and b.mine(second)
        assert second.leader is not None and second.leader.name == "b"
        now = await a.read(FEED)
        assert now == second and not a.mine(now) and not a.mine(second)


async def a_challenge_needs_no_leader_record(place: Place) -> None:
    """After a resignation, and also of a feed that nobody ever led."""
    async with participants(place, "a", "b") as [a, b]:
        first = await b.challenge(FEED, await b.read(FEED))
        assert first is not None and first.epoch == 1 and b.mine(first)
        await b.resign(FEED, 1)
        second = await a.challenge(FEED, await a.read(FEED))
        assert second is not None and second.epoch == 2 and a.mine(second)


async def a_leader_can_challenge_itself(place: Place) -> None:
    """So that an instance which finds a record of its own session without a term can begin a new one."""
    async with participants(place, "a") as [a]:
        second = await a.challenge(FEED, await lead(a))
        assert second is not None and second.epoch == 2 and a.mine(second)


async def of_two_challengers_one_wins(place: Place) -> None:
    async with participants(place, "a", "b", "c") as [a, b, c]:
        for _ in range(5):
            view = await a.read(FEED)
            won: list[View] = []

            async def challenge(who: Coordinator, seen: View = view, won: list[View] = won) -> None:
                result = await who.challenge(FEED, seen)
                if result is not None:
                    assert who.mine(result)
                    won.append(result)

            async with trio.open_nursery() as nursery:
                for who in (a, b, c):
                    nursery.start_soon(challenge, who)
            assert len(won) == 1 and won[0].epoch == view.epoch + 1
            assert await a.read(FEED) == won[0]


async def epochs_are_never_given_twice(place: Place) -> None:
    """Three participants take, challenge, raise and resign at will: each epoch and each version is won once."""
    won: list[View] = []

    async def go_on(who: Coordinator, turns: int) -> None:
        for turn in range(turns):
            view = await who.read(FEED)
            result = await (who.challenge if turn % 3 else who.take)(FEED, view)
            if result is not None:
                assert result.epoch == view.epoch + 1
                won.append(result)
                if turn % 4 == 0:
                    await who.resign(FEED, result.epoch)
            elif turn % 5 == 0:
                await who.raise_epoch(FEED, view, view.epoch + 3)

    async with participants(place, "a", "b", "c") as all_three:
        async with trio.open_nursery() as nursery:
            for who in all_three:
                nursery.start_soon(go_on, who, 12)
        assert len(won) >= 6
        assert len({view.epoch for view in won}) == len(won), "an epoch was given twice"
        assert len({view.version for view in won}) == len(won), "a version came again"
        assert (await all_three[0].read(FEED)).epoch >= max(view.epoch for view in won)


async def raising_the_epoch_leaves_the_leader_alone(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        assert await a.raise_epoch(FEED, await a.read(FEED), 40)
        raised = await b.read(FEED)
        assert raised.epoch == 40 and raised.leader is None
        taken = await lead(a)
        assert taken.epoch == 41
        assert await b.raise_epoch(FEED, taken, 99)
        now = await b.read(FEED)
        assert now.epoch == 99 and now.leader == taken.leader and a.mine(now)
        assert await b.challenge(FEED, taken) is None, "the version must change with the epoch"
        after = await b.challenge(FEED, now)
        assert after is not None and after.epoch == 100
        for epoch in (100, 5):
            try:
                await a.raise_epoch(FEED, after, epoch)
            except ValueError:
                pass
            else:
                raise AssertionError(f"raising from 100 to {epoch} must be a ValueError")


# ---- leaving


async def resigning_frees_the_lead_and_keeps_the_epoch(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        await b.resign(FEED, 1)
        await a.resign(FEED, 2)
        assert await b.read(FEED) == taken, "only the holder resigns, and only the epoch it means"
        await a.resign(FEED, 1)
        free = await b.read(FEED)
        assert (free.epoch, free.leader, free.version) == (1, None, taken.version)
        await a.resign(FEED, 1)
        second = await b.take(FEED, free)
        assert second is not None and second.epoch == 2
        await a.resign(FEED, 1)
        assert await a.read(FEED) == second


async def marking_as_leaving_keeps_term_and_version(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        assert not await b.mark_leaving(FEED, 1, "b"), "only the holder marks its record"
        assert not await a.mark_leaving(FEED, 2, "b"), "and only that of the epoch it means"
        assert await a.mark_leaving(FEED, 1, "b")
        now = await b.read(FEED)
        assert now.leader is not None and now.leader.leaving and now.leader.successor == "b"
        assert (now.epoch, now.version, now.leader.session) == (1, taken.version, a.state().session)
        assert a.mine(now)
        second = await b.challenge(FEED, taken)
        assert second is not None, "a view from before the mark names the same term"
        assert second.leader is not None and not second.leader.leaving and second.leader.successor == ""
        assert not await a.mark_leaving(FEED, 1, "b")


async def closing_takes_membership_and_lead_along(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        await a.aclose()
        free = await b.read(FEED)
        assert (free.epoch, free.version, free.leader) == (1, taken.version, None)
        assert list(await b.members()) == ["b"]
        assert not a.mine(taken)
        await a.aclose()
        assert (await lead(b)).epoch == 2


# ---- sessions


async def a_dead_leader_is_nobody(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        await place.crash(a)

        async def gone() -> bool:
            return (await b.read(FEED)).leader is None

        await eventually("the record of a dead leader goes", gone)
        assert (await b.read(FEED)).version == taken.version
        assert (await lead(b)).epoch == 2
        await eventually("a dead member goes", lambda: _names(b, ["b"]))


async def _names(who: Coordinator, names: list[str]) -> bool:
    return list(await who.members()) == names


async def a_lost_session_loses_the_lead_and_joins_again(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        old = a.state().session
        await place.end_session(a)

        async def anew() -> bool:
            view = await a.read(FEED)
            return a.state().session not in ("", old) and view.leader is None

        await eventually("a has a new session, and nobody leads", anew)
        assert not a.mine(taken), "a record of the old session is not mine"
        assert not await a.mark_leaving(FEED, 1, "")
        await eventually("a is a member again", lambda: _names(b, ["a", "b"]))
        assert (await lead(a)).epoch == 2
        assert a.mine(await b.read(FEED))


async def a_record_of_an_old_session_is_not_mine(place: Place) -> None:
    """Whatever a coordinator remembers of the epoch that it had: after a lost session it leads only by a new epoch."""
    async with participants(place, "a", "b") as [a, b]:
        await lead(a)
        await place.end_session(a)

        async def act() -> View | None:
            return await b.challenge(FEED, await b.read(FEED))

        second = await insist(act)
        assert second is not None and b.mine(second)

        async def not_mine() -> bool:
            return not a.mine(await a.read(FEED))

        await eventually("a sees that it does not lead", not_mine)
        await a.resign(FEED, second.epoch)
        assert b.mine(await b.read(FEED))


# ---- waiting


async def wait_change_returns_at_once_without_a_known_view(place: Place) -> None:
    async with participants(place, "a") as [a]:
        with trio.fail_after(LIMIT_S):
            assert await a.wait_change(FEED, None) == await a.read(FEED)
            taken = await lead(a)
            assert await a.wait_change(FEED, View(FEED, 0, taken.version, None)) == taken


async def wait_change_wakes_for_whatever_happens_to_the_lead(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        view = await b.read(FEED)
        view = await change_after(b, view, lambda: lead(a))
        assert view.epoch == 1 and a.mine(view)
        view = await change_after(b, view, lambda: a.mark_leaving(FEED, 1, "b"))
        assert view.leader is not None and view.leader.successor == "b"
        known = view
        view = await change_after(a, known, lambda: b.challenge(FEED, known))
        assert view.epoch == 2 and b.mine(view) and not a.mine(view)
        seen = view
        view = await change_after(b, seen, lambda: a.raise_epoch(FEED, seen, 5))
        assert view.epoch == 5 and b.mine(view)
        view = await change_after(a, view, lambda: b.resign(FEED, 2))
        assert view.leader is None


async def wait_change_wakes_when_the_leader_dies(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        taken = await lead(a)
        view = await change_after(b, taken, lambda: place.crash(a))
        assert view == View(FEED, 1, taken.version, None)


async def wait_change_wakes_when_my_session_changes(place: Place) -> None:
    """Even if nothing else does: the view is the same, but what was mine is not any more."""
    async with participants(place, "a") as [a]:
        view, old = await a.read(FEED), a.state().session
        assert await change_after(a, view, lambda: place.end_session(a)) == view
        assert a.state().session not in ("", old)


async def a_cancelled_wait_leaves_nothing_behind(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        view = await b.read(FEED)
        for _ in range(3):
            with trio.move_on_after(0.02) as scope:
                await b.wait_change(FEED, view)
            assert scope.cancelled_caught
        view = await change_after(b, view, lambda: lead(a))
        assert a.mine(view)


# ---- members


async def members_are_those_who_live(place: Place) -> None:
    async with participants(place, "a") as [a]:
        b, c = place.open(), place.open()
        try:
            quiet = Member("b/ü", "p2", "ws://[::1]:7/", False, ("napi", FEED))
            await b.start(quiet)
            await c.start(member("c"))
            assert await a.members() == {"a": member("a"), "b/ü": quiet, "c": member("c")} == await b.members()
            await b.aclose()
            assert list(await a.members()) == ["a", "c"]
            await place.crash(c)
            await eventually("a crashed member goes", lambda: _names(a, ["a"]))
        finally:
            await b.aclose()
            await c.aclose()


async def a_live_name_is_taken_and_a_dead_one_is_not(place: Place) -> None:
    async def yes(other: Member) -> bool:
        assert other == member("a")
        return True

    async with participants(place, "a", "b") as [a, b]:
        second = place.open(alive=yes)
        try:
            await second.start(member("a", process="another"))
        except NameTaken as error:
            assert "'a'" in str(error) and member("a").url in str(error)
        else:
            raise AssertionError("the name of a live process must be refused")
        finally:
            await second.aclose()
        assert (await b.members())["a"].process == "process-of-a"
        await place.crash(a)
        third = place.open()
        try:
            with trio.fail_after(LIMIT_S):
                await third.start(member("a", process="another"))
            assert (await b.members())["a"].process == "another"
        finally:
            await third.aclose()


async def who_has_not_joined_reads_and_does_not_lead(place: Place) -> None:
    """A status command looks without being a member."""
    async with participants(place, "a") as [a]:
        reader = place.open()
        try:
            taken = await lead(a)
            assert await reader.read(FEED) == taken and not reader.mine(taken)
            assert list(await reader.members()) == ["a"]
            view = await change_after(reader, taken, lambda: a.resign(FEED, 1))
            assert view.leader is None
            try:
                await reader.take(FEED, view)
            except CoordinatorUnavailable:
                pass
            else:
                raise AssertionError("only a member takes the lead")
            assert list(await reader.members()) == ["a"]
        finally:
            await reader.aclose()


async def bad_names_are_refused(place: Place) -> None:
    async with participants(place, "a") as [a]:
        for feed in ("", "VMAPI", "../x", "a/b", "x" * 65):
            for call in (a.read, lambda name: a.wait_change(name, None)):
                try:
                    await call(feed)
                except InvalidName:
                    continue
                raise AssertionError(f"{feed!r} must not name a feed")
        nameless = place.open()
        try:
            await nameless.start(member(""))
        except InvalidName:
            pass
        else:
            raise AssertionError("an instance needs a name")
        finally:
            await nameless.aclose()


# ---- loss of everything, and cancellation


async def a_wiped_coordinator_begins_at_0_under_another_id(place: Place) -> None:
    async with participants(place, "a", "b") as [a, b]:
        old_id = a.state().id
        first = await lead(a)
        second = await b.challenge(FEED, first)
        assert second is not None
        await place.wipe()

        async def empty() -> bool:
            view = await a.read(FEED)
            return view.epoch == 0 and view.leader is None and a.state().id not in ("", old_id)

        await eventually("epoch 0, nobody leads, another id", empty)

        async def joined() -> bool:
            assert not b.mine(await b.read(FEED))
            return await _names(a, ["a", "b"])

        await eventually("all join again", joined)

        async def stale() -> View | None:
            assert not await a.raise_epoch(FEED, second, 7)
            return await a.challenge(FEED, second)

        assert await insist(stale) is None, "a view from before the loss must not match"
        fresh = await a.read(FEED)
        assert await a.raise_epoch(FEED, fresh, 17), "a candidate brings it up to the log's epoch"
        third = await lead(b)
        assert third.epoch == 18
        for seen in (first, second):
            assert await a.challenge(FEED, seen) is None
        await eventually("both know the same id", lambda: _same_id(a, b))


async def _same_id(a: Coordinator, b: Coordinator) -> bool:
    await a.read(FEED)
    await b.read(FEED)
    return a.state().id == b.state().id != ""


async def a_cancelled_write_happened_or_not(place: Place) -> None:
    """Whenever it is cancelled: the next read tells, and the coordinator can be used on."""
    async with participants(place, "a", "b") as [a, b]:
        for delay in (0.0, 0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016):
            view = await a.read(FEED)
            with trio.move_on_after(delay):
                await a.challenge(FEED, view)
            # A write behind it in the same session, so that nothing of the cancelled one is still on its way.
            await a.resign(FEED, 0)
            now = await b.read(FEED)
            assert now.epoch in (view.epoch, view.epoch + 1)
            assert now.epoch == view.epoch or a.mine(now)
        view = await b.read(FEED)
        last = await b.challenge(FEED, view)
        assert last is not None and last.epoch == view.epoch + 1


CHECKS: Final[tuple[Check, ...]] = (
    a_new_feed_has_epoch_0_and_no_leader,
    taking_gives_the_next_epoch_and_all_see_it,
    feeds_are_apart,
    taking_fails_while_somebody_leads,
    an_old_version_fails,
    a_challenge_replaces_the_leader_at_once,
    a_challenge_needs_no_leader_record,
    a_leader_can_challenge_itself,
    of_two_challengers_one_wins,
    epochs_are_never_given_twice,
    raising_the_epoch_leaves_the_leader_alone,
    resigning_frees_the_lead_and_keeps_the_epoch,
    marking_as_leaving_keeps_term_and_version,
    closing_takes_membership_and_lead_along,
    a_dead_leader_is_nobody,
    a_lost_session_loses_the_lead_and_joins_again,
    a_record_of_an_old_session_is_not_mine,
    wait_change_returns_at_once_without_a_known_view,
    wait_change_wakes_for_whatever_happens_to_the_lead,
    wait_change_wakes_when_the_leader_dies,
    wait_change_wakes_when_my_session_changes,
    a_cancelled_wait_leaves_nothing_behind,
    members_are_those_who_live,
    a_live_name_is_taken_and_a_dead_one_is_not,
    who_has_not_joined_reads_and_does_not_lead,
    bad_names_are_refused,
    a_wiped_coordinator_begins_at_0_under_another_id,
    a_cancelled_write_happened_or_not,
)
