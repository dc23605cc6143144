"""What a term does for its feed's snapshot: folds beside its appends, keeps retention back, takes over."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import trio
from leader_office import Office, in_office
from snapshot_bench import batch_of, vm
from trio.testing import MockClock, wait_all_tasks_blocked

from changefeed.batch import Entry
from changefeed.change import Change, FeedSettings
from changefeed.errors import AppendOutcomeUnknown, ChangefeedError, Fenced, LogFull, LogUnavailable, TailMoved
from changefeed.leader.folding import fold
from changefeed.log import OUTBOX, Latest, Look
from changefeed.wire.messages import Open

ON = FeedSettings(snapshot=True)
KEEP_NOTHING = FeedSettings(snapshot=True, retention_age_s=None, retention_bytes=None, retention_count=0)


async def rows(office: Office) -> dict[str, Latest]:
    """Of all objects, tombstones too."""
    names = [("vm", f"{letter}{number}") for letter in "abcdxy" for number in ("", *range(20))]
    return {row.id: row for row in await office.log.latest(names)}


async def folded(office: Office) -> int | None:
    return (await office.log.look()).folded


async def switched_on(office: Office) -> None:
    """And noticed by the term."""
    office.declared = ON
    await trio.sleep(1.5)


# ---- folding


async def test_a_term_folds_once_a_while(autojump_clock: MockClock) -> None:
    """What is durable is in the snapshot snapshot_every_s later; an idle feed is left alone."""
    async with in_office(snapshot_every_s=5, retention_every_s=10_000) as office:
        office.declared = ON
        await trio.sleep(6)
        await office.publish(batch_of(1, vm("a"), vm("b", 3)))
        await office.publish(batch_of(3, vm("a", op="delete"), vm("b", 4, "delete")))
        await office.settled(2)
        assert await folded(office) == 0
        assert (office.term.stats()["folded"], office.term.stats()["unfolded"]) == (0, 4)
        await trio.sleep(5)
        assert await folded(office) == 4
        assert (office.term.stats()["folded"], office.term.stats()["unfolded"]) == (4, 0)
        found = await rows(office)
        assert {id: (row.seq, row.version, row.payload) for id, row in found.items()} == {"b": (4, 4, None)}
        assert (await office.log.look()).versioned
        office.calls.clear()
        await trio.sleep(60)
        assert {"fold", "look"}.isdisjoint(office.calls)


async def test_much_is_folded_at_once(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In stretches, each a transaction; what many stretches wrote is what one would have written."""
    monkeypatch.setattr("changefeed.leader.folder.FOLD_BYTES", 20_000)
    monkeypatch.setattr("changefeed.leader.folder.STRETCH_BYTES", 2000)
    async with in_office(snapshot_every_s=1000) as office:
        office.declared = ON
        await trio.sleep(1001)
        random = Random(5)
        for number in range(1, 401, 2):
            one, other = (f"{random.choice('abc')}{random.randrange(20)}" for _ in "12")
            changes = (vm(f"x{one[1:]}", number, random.choice(["update", "delete"])), vm(f"y{other[1:]}"))
            await office.publish(batch_of(number, *changes))
        await office.settled(200)
        await wait_all_tasks_blocked()
        look = await office.log.look()
        assert office.calls.count("fold") >= 10
        assert office.term.stats()["folds"] == office.calls.count("fold") - 1, "it was begun before"
        assert look.folded is not None
        assert look.tail.seq - look.folded < 200
        await trio.sleep(1000)
        whole = fold(0, await office.log.read(0, 1 << 30), ())
        assert await rows(office) == {row.id: row for row in whole.rows}


async def test_a_truncated_table_leaves_the_snapshot(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its rows and tombstones, in bounded transactions; other resources stay, and what is inserted behind it."""
    monkeypatch.setattr("changefeed.leader.folder.STRETCH_OBJECTS", 4)
    async with in_office(snapshot_every_s=5) as office:
        office.declared = ON
        opened = await office.term.open(Open("f", OUTBOX, "o", named=True), "o", own=True)
        number = 1
        net = Change("net", "a", "create", body=1)
        for changes in (
            (*(vm(f"x{index}") for index in range(10)), vm("b", 3), vm("b", 4, "delete"), net),
            (Change("vm", "*", "truncate"), vm("y1", 1)),
        ):
            batch = batch_of(number, *changes, publisher=OUTBOX, incarnation=opened.incarnation)
            await office.publish(batch, channel="o")
            number += len(changes)
            await trio.sleep(6)
            if number == 14:
                assert len(await rows(office)) == 11
        assert list(await rows(office)) == ["y1"]
        assert [row.key for row in await office.log.list_latest(None, 1 << 20)] == [("net", "a"), ("vm", "y1")]


async def test_a_stretch_has_not_too_many_objects(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a single entry has."""
    monkeypatch.setattr("changefeed.leader.folder.STRETCH_OBJECTS", 3)
    monkeypatch.setattr("changefeed.leader.folder.LATEST_MAX", 2)
    monkeypatch.setattr("changefeed.leader.folder.VERSIONS_MAX", 0)
    async with in_office(snapshot_every_s=5) as office:
        office.declared = ON
        await office.publish(batch_of(1, vm("a", 1), vm("b", 2)))
        await office.publish(batch_of(3, vm("c", 3)))
        await office.publish(batch_of(4, vm("d", 4), vm("a", 0), vm("b", 0), vm("c", 0)))
        await office.settled(3)
        office.calls.clear()
        await trio.sleep(6)
        assert office.calls.count("fold") == 3, "begun anew, then two stretches"
        assert {id: row.version for id, row in (await rows(office)).items()} == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert office.calls.count("latest") == 1 + 2, "four objects, two at a time; and once by the test"


async def test_versions_that_were_just_written_are_not_asked_for(autojump_clock: MockClock) -> None:
    """Only of objects that did not change lately, and of those that are gone."""
    async with in_office(snapshot_every_s=5) as office:
        office.declared = ON
        await trio.sleep(6)
        for number in range(1, 10, 2):
            await office.publish(batch_of(number, vm("a", 50 - number), vm("b", number)))
            await trio.sleep(6)
        assert office.calls.count("latest") == 0
        await office.publish(batch_of(11, vm("b", 60, "delete"), vm("c", 1)))
        await trio.sleep(6)
        await office.publish(batch_of(13, vm("b", 59), vm("c", 0)))
        await trio.sleep(6)
        assert office.calls.count("latest") == 2
        found = {id: (row.seq, row.version, row.payload is not None) for id, row in (await rows(office)).items()}
        assert found == {"a": (1, 49, True), "b": (11, 60, False), "c": (12, 1, True)}


async def test_a_feed_without_the_option_pays_nothing(autojump_clock: MockClock) -> None:
    async with in_office(retention_every_s=10_000) as office:
        for number in range(1, 20):
            await office.publish(batch_of(number, vm("a", number % 2 or None, body=None)))
        await office.settled(19)
        await trio.sleep(10)
        assert all(not answer.code for answer in office.answers)
        assert {"fold", "look", "latest", "read"}.isdisjoint(office.calls)
        assert "folded" not in office.term.stats()
        assert await folded(office) is None


async def test_nothing_is_folded_before_it_is_durable(autojump_clock: MockClock) -> None:
    """An append whose answer is late may be read in the log, and is not visible yet."""
    async with in_office(snapshot_every_s=1) as office:
        office.declared = ON
        await trio.sleep(2)
        office.faults.plan("append done", delay_s=10)
        await office.publish(batch_of(1, vm("a")))
        await trio.sleep(5)
        assert [entry.seq for entry in await office.log.read(0, 1000)] == [1]
        assert await folded(office) == 0
        await trio.sleep(8)
        assert await folded(office) == 1


# ---- switched on, off, on again


async def test_a_snapshot_begins_at_the_floor(autojump_clock: MockClock) -> None:
    """What was trimmed before is not in it. Off, it stands still; on again, it goes on where it stood, or, if retention
    has overtaken it, begins anew."""
    async with in_office(snapshot_every_s=1, retention_every_s=10_000) as office:
        for number, id in enumerate("abc", 1):
            await office.publish(batch_of(number, vm(id)))
        await office.settled(3)
        await office.log.trim(1, office.term.term, 1)
        await switched_on(office)
        assert (await folded(office), set(await rows(office))) == (3, {"b", "c"})

        office.declared = FeedSettings()
        await trio.sleep(2)
        await office.publish(batch_of(4, vm("d", 7)))
        await office.settled(4)
        await trio.sleep(10)
        assert await folded(office) == 3
        office.declared = ON
        await trio.sleep(2)
        assert (await folded(office), set(await rows(office))) == (4, {"b", "c", "d"})

        office.declared = FeedSettings()
        await trio.sleep(2)
        await office.publish(batch_of(5, vm("a")))
        await office.publish(batch_of(6, vm("b")))
        await office.settled(6)
        await office.log.trim(1, office.term.term, 5)
        await switched_on(office)
        assert (await folded(office), set(await rows(office))) == (6, {"b"})
        assert not (await office.log.look()).versioned


async def test_a_publisher_is_told_at_its_opening(autojump_clock: MockClock) -> None:
    async with in_office() as office:
        assert not (await office.term.open(Open("f", "q", "s"), "d")).snapshot
        office.declared = ON
        assert (await office.term.open(Open("f", "r", "s"), "e")).snapshot


# ---- retention


async def test_retention_waits_for_the_snapshot(autojump_clock: MockClock) -> None:
    """Rows and the entries behind them are always everything, whatever the bound says."""
    async with in_office(snapshot_every_s=50, retention_every_s=1) as office:
        office.declared = KEEP_NOTHING
        await trio.sleep(51)
        for number in range(1, 11):
            await office.publish(batch_of(number, vm(f"a{number}")))
        await office.settled(10)
        await trio.sleep(20)
        assert (await office.log.look()).floor.seq == 0
        await trio.sleep(40)
        await trio.sleep(20)
        look = await office.log.look()
        assert (look.folded, look.floor.seq) == (10, 10)
        assert len(await rows(office)) == 10
        for number in range(11, 16):
            await office.publish(batch_of(number, vm(f"a{number}")))
        office.faults.plan("fold", LogUnavailable("away"))
        await trio.sleep(40)
        assert (await office.log.look()).floor.seq == 10
        office.declared = replace(KEEP_NOTHING, snapshot=False)
        await trio.sleep(20)
        assert (await office.log.look()).floor.seq == 15


async def test_tombstones_go_with_retention(autojump_clock: MockClock) -> None:
    """And then the object may come back without a version."""
    async with in_office(snapshot_every_s=1, retention_every_s=10) as office:
        office.declared = ON
        await trio.sleep(2)
        await office.publish(batch_of(1, vm("a", 1), vm("a", 2, "delete")))
        await trio.sleep(2)
        assert (await rows(office))["a"].payload is None
        await office.publish(batch_of(3, vm("a")))
        assert (await office.settled(2))[1].code == "version-missing"
        office.declared = KEEP_NOTHING
        await trio.sleep(15)
        assert await rows(office) == {}
        await office.publish(batch_of(4, vm("a"), after=2))
        assert (await office.settled(3))[2].code == ""


# ---- what goes wrong


@pytest.mark.parametrize("error", [LogUnavailable("away"), LogFull("full"), TailMoved("elsewhere")])
async def test_a_fold_that_fails_is_tried_again(autojump_clock: MockClock, error: ChangefeedError) -> None:
    """Publishing goes on meanwhile."""
    async with in_office(snapshot_every_s=1) as office:
        office.declared = ON
        await trio.sleep(2)
        office.faults.plan("fold", error)
        await office.publish(batch_of(1, vm("a", 1)))
        await office.settled(1)
        await trio.sleep(1.5)
        await office.publish(batch_of(2, vm("a")))
        assert (await office.settled(2))[1].code == "version-missing"
        await trio.sleep(3)
        assert await folded(office) == 1
        assert not office.term.lost.is_set()


@pytest.mark.parametrize(
    ("point", "error", "why"),
    [("fold done", AppendOutcomeUnknown("lost"), "outcome-unknown"), ("fold", Fenced("another leads"), "fenced")],
)
async def test_some_errors_end_the_term(
    autojump_clock: MockClock, point: str, error: ChangefeedError, why: str
) -> None:
    async with in_office(snapshot_every_s=1) as office:
        office.declared = ON
        await trio.sleep(2)
        office.faults.plan(point, error)
        await office.publish(batch_of(1, vm("a")))
        await office.term.lost.wait()
        await wait_all_tasks_blocked()
        assert office.why == why


async def test_a_leader_that_was_overtaken_folds_nothing(autojump_clock: MockClock) -> None:
    """Its transaction is fenced like an append."""
    async with in_office(snapshot_every_s=5) as office:
        office.declared = ON
        await trio.sleep(6)
        await office.publish(batch_of(1, vm("a")))
        await office.settled(1)
        other = Office()
        other.place, other.store = office.place, office.store
        await other.elect()
        await office.term.lost.wait()
        await wait_all_tasks_blocked()
        assert (office.why, await folded(office)) == ("fenced", 0)


# ---- takeover


async def taken_over(office: Office, nursery: trio.Nursery) -> None:
    """A second term on the same log, with the publisher open over channel d."""
    office.term.end("killed")
    await wait_all_tasks_blocked()
    await office.elect()
    await nursery.start(office.run)
    await office.term.open(Open("f", "p", "s", incarnation=1), "d")
    office.steps.clear()


async def test_the_next_leader_refuses_what_the_last_one_would_have(autojump_clock: MockClock) -> None:
    """Versions that no fold has reached count before anything is judged; receipts of before are given."""
    async with in_office(snapshot_every_s=1000) as office, trio.open_nursery() as nursery:
        office.declared = ON
        await trio.sleep(1001)
        await office.publish(batch_of(1, vm("b")))
        await office.publish(batch_of(2, vm("a", 5)))
        await office.settled(2)
        assert await folded(office) == 0
        await taken_over(office, nursery)
        await office.publish(batch_of(1, vm("b")), "d")
        await office.publish(batch_of(3, vm("a")), "d")
        first, second = await office.settled(2)
        assert (first.code, first.repeated, second.code) == ("", True, "version-missing")
        await trio.sleep(1)
        assert await folded(office) == 2, "and folds at once what was left"
        office.calls.clear()
        await office.publish(batch_of(4, vm("a"), after=2), "d")
        assert (await office.settled(3))[2].code == "version-missing"
        assert "latest" in office.calls
        nursery.cancel_scope.cancel()


async def test_too_much_to_read_is_folded_first(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the option was switched on late, publishers do not wait until everything is read: what is not folded yet
    does not count until it is."""
    monkeypatch.setattr("changefeed.leader.folder.BUILD_BYTES", 500)
    monkeypatch.setattr("changefeed.leader.folder.STRETCH_BYTES", 300)
    async with in_office(snapshot_every_s=1) as office:
        for number in range(1, 11):
            await office.publish(batch_of(number, vm(f"a{number}", 1)))
        await office.settled(10)
        office.faults.plan("fold", LogUnavailable("away"))
        office.declared = ON
        await trio.sleep(1.2)
        await office.publish(batch_of(11, vm("a1"), vm("b")))
        await office.publish(batch_of(11, vm("a9"), after=10))
        known, unknown = (await office.settled(12))[10:]
        assert (known.code, unknown.code) == ("version-missing", "")
        await trio.sleep(2)
        await office.publish(batch_of(12, vm("a8")))
        assert (await office.settled(13))[12].code == "version-missing"


async def test_what_waits_for_its_check_is_answered_before_a_handover(autojump_clock: MockClock) -> None:
    async with in_office(snapshot_every_s=1) as office:
        office.declared = ON
        await trio.sleep(2)
        await office.publish(batch_of(1, vm("x", 1)))
        await trio.sleep(2)
        office.faults.plan("latest", delay_s=1)
        await office.publish(batch_of(2, vm("a")))
        await office.publish(batch_of(3, vm("x")))
        await office.term.finish()
        assert [answer.code for answer in office.answers] == ["", "", "version-missing"]
        assert office.why == "handover"


async def test_publishers_wait_while_too_many_versions_are_not_folded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded; a fold is due at once then, and they go on."""
    monkeypatch.setattr("changefeed.leader.guard.OBJECTS_MAX", 3)
    async with in_office(snapshot_every_s=1000) as office:
        office.declared = ON
        await trio.sleep(1001)
        began = trio.current_time()
        for number in range(1, 31):
            await office.publish(batch_of(number, vm(f"a{number % 20}", number)))
            assert office.term.stats()["versioned_unfolded"] <= 4
        await office.settled(30)
        assert trio.current_time() - began < 1
        assert office.term.stats()["folds"] >= 5


# ---- all together


@pytest.mark.parametrize("seed", range(6))
async def test_rows_and_the_entries_behind_them_are_everything(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """While publishing, folding, trimming and takeovers go on, at any moment: what the snapshot holds, and what is
    behind it in the log, says of each object what the whole history says."""
    monkeypatch.setattr("changefeed.leader.folder.STRETCH_BYTES", 700)
    monkeypatch.setattr("changefeed.leader.folder.VERSIONS_MAX", 50_000 if seed % 2 else 2)
    random = Random(seed)
    history: dict[int, Entry] = {}
    checked = 0
    async with in_office(snapshot_every_s=0.5, retention_every_s=1) as office, trio.open_nursery() as nursery:
        office.declared = replace(KEEP_NOTHING, retention_count=30)
        channel, number, last = "c", 1, 0
        for _ in range(120):
            changes = [some_change(random, number) for _ in range(random.randrange(1, 4))]
            await office.publish(batch_of(number, *changes, after=last), channel)
            await trio.sleep(random.choice([0, 0, 0.1, 1]))
            while not office.answers:
                await office.answered.wait()
            if not office.answers[-1].code:
                last = number + len(changes) - 1
            number += len(changes)
            office.steps.clear()
            look = await office.log.look()
            history |= {entry.seq: entry for entry in await office.log.read(look.floor.seq, 1 << 30)}
            if look.folded is not None and look.folded >= look.floor.seq:
                checked += await everything_is_there(office, look, list(history.values()))
            if random.random() < 0.05:
                await taken_over(office, nursery)
                channel = "d"
        nursery.cancel_scope.cancel()
    assert checked > 100
    assert look.floor.seq > 20


def some_change(random: Random, number: int) -> Change:
    """Versions come in about the right order: none is as late as a tombstone that has gone."""
    op = random.choice(["create", "update", "update", "delete"])
    id = random.choice("abcd")
    return vm(
        id, number + random.randrange(10) if id in "ab" else None, op, None if op == "delete" else random.random()
    )


async def everything_is_there(office: Office, look: Look, history: list[Entry]) -> int:
    """Tombstones aside that retention has passed."""
    assert look.folded is not None
    behind = await office.log.read(look.folded, 1 << 30)
    held = await rows(office)
    folded = fold(look.folded, behind, held.values())
    now = held | {row.id: row for row in folded.rows}
    for _, id in folded.gone:
        now.pop(id, None)
    whole = {row.id: row for row in fold(0, history, ()).rows}
    expected = {id: row for id, row in whole.items() if row.payload is not None or row.seq > look.floor.seq}
    assert {id: row for id, row in now.items() if row.payload is not None or row.seq > look.floor.seq} == expected
    return 1
