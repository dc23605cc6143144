"""A log that is replaced by an older copy, under virtual time: whoever is ahead of it is told so, and nobody guesses.

    python -m simulations.memory_restore [--seeds 100] [--first 0] [--trace]

Each seed runs a cluster for a while, takes a copy of the log, goes on (also through leaders, so that epochs grow), puts
the copy back, and goes on again. Drawn: whether the instances are stopped meanwhile or run; whether the coordinator's
data is kept, lost, or put back too, so that epochs come again. Checked: a subscriber that had seen more than the copy
holds gets a typed reset before anything else, and none gets an event that is not in the log it reads; a publisher whose
last receipt the copy does not hold is told once that acknowledged changes are lost, and what it is told is stored
afterwards is stored; nobody is told anything who is not ahead.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing

from changefeed import Event, Position, open_publisher, open_subscription
from changefeed.errors import AcknowledgedLost, CannotResume, OutcomeUnknown
from changefeed.wire.changes import decode_change, split
from simulations.cluster_clients import FEED, EffectCursor
from simulations.cluster_parts import Freezer, Sightings, seeded_scheduler
from simulations.memory_cluster import NAMES, Cluster

#: How long everything may take after the copy was put back.
PATIENCE_S = 60.0


@dataclass
class Told:
    """What a publisher was told. acks: (id, where) since the start; lost: how often it heard that receipts are lost."""

    acks: list[tuple[str, Position]] = field(default_factory=list)
    lost: int = 0
    unknown: list[str] = field(default_factory=list)


@dataclass
class Seen:
    """What a subscriber saw: a list of events for each stretch between two resets, and the resets."""

    stretches: list[list[Event]] = field(default_factory=lambda: [[]])
    resets: list[str] = field(default_factory=list)


async def publish(cluster: Cluster, who: str, named: bool, stop: trio.Event, told: Told) -> None:
    chance = random.Random(f"{cluster.seed}-{who}")
    number = 0
    async with open_publisher(
        FEED,
        cluster.servers,
        name=who if named else None,
        settings=cluster.settings,
        network=cluster.network.host(who),
        world=cluster.world(who),
    ) as publisher:
        while not stop.is_set():
            number += 1
            try:
                receipt = await publisher.publish("vm", f"{who}-{number}", "update", body={"n": number})
                told.acks.append((f"{who}-{number}", receipt.last))
            except AcknowledgedLost:
                told.lost += 1
                cluster.note("told-lost", who=who)
            except OutcomeUnknown:
                cluster.note("outcome-unknown", who=who)
            await trio.sleep(0.1 * chance.random())


async def subscribe(cluster: Cluster, who: str, stop: trio.Event, seen: Seen) -> None:
    """Applies what comes; after a reset it begins anew, as an application would that lists its source again."""
    cursor = EffectCursor()
    while not stop.is_set():
        try:
            async with open_subscription(
                FEED,
                cluster.servers,
                start="beginning",
                cursor=cursor,
                name=who,
                settings=cluster.settings,
                network=cluster.network.host(who),
                world=cluster.world(who),
            ) as events:
                async for event in events:
                    seen.stretches[-1].append(event)
                    cursor.position = event.position
        except CannotResume as error:
            cluster.note("told-reset", who=who, code=error.code)
            seen.resets.append(error.code)
            seen.stretches.append([])
            cursor.position = None


async def run_restore(cluster: Cluster) -> list[str]:
    chance = random.Random(f"{cluster.seed}-restore")
    stopped, coordinator = chance.random() < 0.6, chance.choice(("kept", "lost", "put back"))
    cluster.note("plan", stopped=stopped, coordinator=coordinator)
    told = {"p0": Told(), "p2": Told()}
    seen = {"s0": Seen(), "s1": Seen()}
    stop, over = trio.Event(), trio.Event()
    problems: list[str] = []
    async with trio.open_nursery() as outer:
        for name in NAMES:
            outer.start_soon(cluster.keep, name, over)
        for who, one in seen.items():
            outer.start_soon(subscribe, cluster, who, over, one)
        async with trio.open_nursery() as publishers:
            for who, one in told.items():
                publishers.start_soon(publish, cluster, who, who == "p2", stop, one)
            await trio.sleep(1 + 2 * chance.random())
            backup, epoch = cluster.place.copy(), cluster.coordination.view(FEED).epoch
            for _ in range(chance.randint(0, 2)):
                await trio.sleep(chance.random())
                cluster.kill(cluster.leader() or "a")
            await trio.sleep(0.3 + 2 * chance.random())
            if stopped:
                for name in NAMES:
                    cluster.kill(name)
                await trio.sleep(0.05)
            old = cluster.place.copy()
            cluster.place.put_back(backup)
            if coordinator != "kept":
                cluster.coordination.wipe()
            if coordinator == "put back":
                cluster.coordination.put_epoch(FEED, epoch)
            cluster.note("put-back", to=backup.feeds[FEED].tail.seq, of=old.feeds[FEED].tail.seq)
            before = {who: len(one.acks) for who, one in told.items()}
            # Who comes late finds a log that has grown past its position again.
            late = [who for who in (*told, *seen) if chance.random() < 0.5]
            for who in late:
                cluster.cut_off(who)
            await trio.sleep(14 * chance.random())
            for who in late:
                cluster.let_in(who)
            await trio.sleep(3 + 3 * chance.random())
            stop.set()
            with trio.move_on_after(PATIENCE_S) as patience:
                # Publishers end first, then readers reach the end.
                while any(task.name.endswith(".publish") for task in publishers.child_tasks):  # noqa: ASYNC110
                    await trio.sleep(0.1)
                end = cluster.place.feeds[FEED].tail.seq
                while any(not one.stretches[-1] or one.stretches[-1][-1].seq < end for one in seen.values()):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            if patience.cancelled_caught:
                problems.append(f"did not converge within {PATIENCE_S:g} s")
            publishers.cancel_scope.cancel()
        problems += check(cluster, backup.feeds[FEED], old.feeds[FEED], told, before, seen)
        over.set()
        outer.cancel_scope.cancel()
    return problems


def ids_of(feed: Any) -> dict[int, str]:
    """seq -> id of what a log holds."""
    return {
        entry.seq + offset: decode_change(data).id
        for entry in feed.entries
        for offset, data in enumerate(split(entry.payload))
    }


def check(
    cluster: Cluster,
    backup: Any,
    old: Any,
    told: dict[str, Told],
    before: dict[str, int],
    seen: dict[str, Seen],
) -> list[str]:
    problems = []
    logs = [ids_of(old), ids_of(cluster.place.feeds[FEED])]
    tail = backup.tail.seq
    for who, one in told.items():
        acked = before[who]
        ahead = bool(acked) and one.acks[acked - 1][1].seq > tail
        if one.lost != ahead:
            problems.append(f"{who} was told {one.lost} times that receipts are lost, and was ahead: {ahead}")
        for id, at in one.acks[acked:]:
            # A receipt of the last moment before may have been on its way: it is of the old log.
            if logs[1].get(at.seq) != id and logs[0].get(at.seq) != id:
                problems.append(f"{who}: {id} acknowledged at {at}, where {logs[1].get(at.seq)} stands")
    for who, reader in seen.items():
        first = reader.stretches[0]
        ahead = bool(first) and first[-1].seq > tail and first[-1].id == logs[0].get(first[-1].seq)
        if ahead and not reader.resets:
            ahead = logs[1].get(first[-1].seq) != first[-1].id
        if len(reader.resets) != ahead:
            problems.append(f"{who} was reset {reader.resets}, and was ahead: {ahead}")
        for number, events in enumerate(reader.stretches):
            log = logs[min(number, 1)] if reader.resets else logs[1]
            wrong = next((event for event in events if log.get(event.seq) != event.id), None)
            seqs = [event.seq for event in events]
            if wrong is not None:
                problems.append(f"{who}: event {wrong.seq} is {wrong.id}, the log has {log.get(wrong.seq)}")
            if seqs != list(range(1, len(seqs) + 1)):
                problems.append(f"{who}: events are missing or repeated in stretch {number}")
    cluster.sightings["a publisher told of lost receipts"] += sum(one.lost for one in told.values())
    for reader in seen.values():
        for code in reader.resets:
            cluster.sightings[f"reset: {code}"] += 1
    return problems


def run_seed(seed: int, sightings: Sightings | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Problems and trace of one seed."""
    sightings = Sightings() if sightings is None else sightings
    freezer = Freezer()

    async def main() -> tuple[list[str], list[tuple[Any, ...]]]:
        cluster = Cluster(seed, sightings, freezer)
        cluster.healed = True  # instances start again soon
        return await run_restore(cluster), cluster.trace

    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded_scheduler(seed), sightings.watching():
        return trio.run(main, clock=clock, instruments=[freezer])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trace", action="store_true", help="print what happened, for one seed")
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    failed, sightings = [], Sightings()
    for seed in range(options.first, options.first + options.seeds):
        problems, trace = run_seed(seed, sightings)
        if options.trace:
            for line in trace:
                print(*line)
        if problems:
            failed.append(seed)
            print(f"seed {seed}: {'; '.join(problems)[:500]}", flush=True)
    for name, count in sorted(sightings.items()):
        print(f"{count:8} x {name}")
    print(f"{options.seeds} seeds, {len(failed)} failed{': ' + ', '.join(map(str, failed)) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
