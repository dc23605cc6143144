"""Opens a log that a loss of power has left, with the production store, and says what is wrong with it."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

from changefeed.errors import ChangefeedError
from changefeed.log import Look
from changefeed.log.memory import MemoryFeedLog, MemoryPlace
from changefeed.log.sqlite import SqliteFeedLog, SqliteLogStore
from changefeed.log.verify import verify_log
from changefeed.ports import SeededEntropy, World
from changefeed.simulation.disk.in_place import run_in_place
from changefeed.simulation.disk.model import Manner, draw_manner
from changefeed.simulation.disk.recorded import RecordedDisk, lay_out, survived
from changefeed.simulation.disk.workload import FEED, SETTINGS, Act, Life, Timeline, Witness
from changefeed.testing.log_scribe import everything

Allowed = Sequence[MemoryPlace | None]


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong. promise: "C1" an acknowledged thing is gone, "C12" something that was shown is gone, "damaged" the
    log does not open or does not verify, "atomic" half of something is there, "onwards" it cannot be gone on with."""

    promise: str
    says: str


@dataclass(frozen=True, slots=True)
class Point:
    """A loss of power that was judged. again: the boundary, within the recovery, of a second one; -1: none."""

    at: int
    manner: Manner
    wrong: tuple[Wrong, ...]
    again: int = -1


async def judge_point(
    disk: RecordedDisk, timeline: Timeline, at: int, seed: str, scratch: str, *, again: bool = True
) -> Point:
    """Rebuild the folder as after a loss of power at boundary `at` (under `scratch`), open it, and judge it; then, if
    `again`, once more with a second loss of power somewhere in the recovery."""
    chance = random.Random(f"{seed} {at}")
    state = disk.at(at)
    manner = draw_manner(chance)
    content = survived(disk.folder, state, chance, manner)
    folder = tempfile.mkdtemp(prefix="point-", dir=scratch)
    try:
        first = os.path.join(folder, "first")
        lay_out(first, content)
        with RecordedDisk(first, keep=again) as recovering:
            wrong, life = await recover(recovering, timeline.allowed(at), timeline.shown_at(at), f"{seed} {at}")
        if wrong or not again or life is None:
            return Point(at, manner, tuple(wrong))
        inner = chance.randrange(0, recovering.count + 1)
        second = os.path.join(folder, "second")
        lay_out(second, survived(first, recovering.at(inner), chance))
        with RecordedDisk(second) as finally_:
            allowed = life.timeline.allowed(inner)
            wrong, _ = await recover(finally_, allowed, life.timeline.shown_at(inner), f"{seed} {at} {inner}")
        return Point(at, manner, tuple(wrong), inner)
    finally:
        shutil.rmtree(folder)


async def recover(disk: RecordedDisk, allowed: Allowed, shown: int, seed: str) -> tuple[list[Wrong], Life | None]:
    """Open the log that lies on a disk, hold it against what it may hold, and go on as the next leaders do.

    shown: up to where a reader was shown the log. The life: what was done on this disk, ended; None if the log is not
    what it must be.
    """
    create = None in allowed
    world = World(entropy=SeededEntropy(seed))
    store = SqliteLogStore("sqlite:", disk.folder, SETTINGS, world=world, run_sync=run_in_place)
    try:
        log = await store.open(FEED, create=create)
    except ChangefeedError as error:
        return [Wrong("C1" if error.code == "unknown-feed" else "damaged", f"the log does not open: {error}")], None
    opened = disk.count
    try:
        wrong, place = await compare(log, allowed, shown)
    except ChangefeedError as error:
        wrong, place = [Wrong("damaged", f"the log cannot be read: {error}")], None
    if wrong or place is None:
        await log.aclose()
        return wrong, None
    life = Life(disk, seed, place.copy())
    if create:
        # It may have been made by the opening above; until that was over there need not have been one.
        life.timeline.before = None
        life.timeline.acts.append(Act("open", 0, opened, place.copy(), changes=True))
    try:
        # Some open the log and go on with it; others only look, close it, and two processes open it after them.
        if life.chance.random() < 0.5:
            await life.take_over([log])
        else:
            await log.aclose()
            await life.begin()
        await go_on(life)
    except (ChangefeedError, AssertionError) as error:
        wrong.append(Wrong("onwards", f"the log cannot be gone on with: {error}"))
    finally:
        await life.end()
    return wrong, life


async def compare(log: SqliteFeedLog, allowed: Allowed, shown: int) -> tuple[list[Wrong], MemoryPlace | None]:
    """What is wrong with an open log, and which of the allowed states it is in. Raises what reading it raises."""
    look = _bare(await log.look())
    fault = (await verify_log(log)).fault
    if fault is not None:
        return [Wrong("damaged", f"the log does not verify: seq {fault.seq}: {fault.what}")], None
    if look.tail.seq < shown:
        return [Wrong("C12", f"a reader was shown seq {shown}; the log ends at {look.tail.seq}")], None
    for place in allowed:
        if place is None:
            if not look.fence.epoch:
                # A log that nobody was told of: it may be any new one.
                fresh = MemoryPlace()
                await Witness(fresh, World()).log()
                data = fresh.feeds[FEED]
                data.lineage, data.tail, data.floor = look.lineage, look.tail, look.floor
                return [], fresh
            continue
        witness = await Witness(place.copy(), World()).log()
        if _bare(await witness.look()) == look:
            return await _differences(log, witness), place
    return [_missing(look, [_bare(await Witness(p, World()).look()) for p in allowed if p is not None])], None


async def _differences(log: SqliteFeedLog, witness: MemoryFeedLog) -> list[Wrong]:
    """Whether entries, publishers and settings are those of the witness whose look is the same."""
    wrong = []
    if await everything(log) != await everything(witness):
        wrong.append(Wrong("atomic", "the entries are not those that were stored"))
    if await log.settings() != await witness.settings():
        wrong.append(Wrong("C1", "the settings are not those that were stored"))
    for name in [f"p{number}" for number in range(8)]:
        found, expected = await log.publisher_state(name), await witness.publisher_state(name)
        if found != expected:
            wrong.append(Wrong("C1", f"publisher {name}: the log holds {found}, it was told {expected}"))
    return wrong


def _missing(look: Look, expected: list[Look]) -> Wrong:
    """What a look lacks that is none of those expected; the first of these is what was acknowledged."""
    least = expected[0]
    if look.lineage != least.lineage:
        return Wrong("C1", f"the log is another one: lineage {look.lineage}, not {least.lineage}")
    if look.tail.seq < least.tail.seq:
        return Wrong("C1", f"acknowledged up to seq {least.tail.seq}; the log ends at {look.tail.seq}")
    if look.fence.epoch < least.fence.epoch:
        return Wrong("C1", f"fenced for epoch {least.fence.epoch}; the log says {look.fence.epoch}")
    if look.incarnations < least.incarnations:
        return Wrong("C1", f"{least.incarnations} incarnations were given; the counter stands at {look.incarnations}")
    if look.floor.seq < least.floor.seq:
        return Wrong("C1", f"trimmed up to seq {least.floor.seq}; the floor is at {look.floor.seq}")
    if look.settings_version < least.settings_version:
        return Wrong("C1", f"settings of version {least.settings_version} were stored; found {look.settings_version}")
    return Wrong("atomic", f"the log is at seq {look.tail.seq}: neither before nor after what was under way ({look})")


def _bare(look: Look) -> Look:
    # The stamp "its leader was alive at" lies in FEED.turn, which a loss of power may leave in any state.
    return replace(look, fence=replace(look.fence, renewed=0))


async def go_on(life: Life) -> None:
    """What the first leader after the loss does: fence, recover, take publishes; and the next one after it."""
    await life.lead(clean=False)
    await life.open_publisher("p0", named=False)
    await life.append(2)
    await life.read()
    await life.maintain()
    await life.lead(clean=True)
    await life.append(1)
    await life.trim()
