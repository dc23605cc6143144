"""Failover figures on real processes and a real three-server ensemble: SIGKILL, SIGSTOP, stalls, ensemble loss."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import trio

from changefeed.testing.processes import ServeCluster, ServeProcess
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble
from simulations.proof.load import Load, steady_load
from simulations.proof.rows import Row

FEED = "vmapi"
KILLS, FREEZES, HANDOVERS = 20, 10, 9


def audit(events: list[tuple[int, str]], loads: list[tuple[str, Load]]) -> str:
    """ "" if the feed holds every acknowledged change once, at its receipt's seq, in order; else what is wrong."""
    if [seq for seq, _ in events] != list(range(1, len(events) + 1)):
        return "the feed is not dense"
    ids = [id for _, id in events]
    if len(set(ids)) != len(ids):
        return f"{len(ids) - len(set(ids))} repeated"
    at = dict(events)
    for name, load in loads:
        for number, (_, seq) in enumerate(load.receipts, 1):
            if at.get(seq) != f"{name}-{number}":
                return f"{name}'s change {number} was acknowledged at {seq}, where the feed has {at.get(seq)}"
    return ""


async def survivor_of(cluster: ServeCluster) -> tuple[ServeProcess, ServeProcess]:
    """The leader, and an instance that is not it."""
    leader = await trio.to_thread.run_sync(cluster.wait_leader)
    return leader, next(one for one in cluster.instances if one is not leader and one.running)


async def kill_once(cluster: ServeCluster, number: int) -> tuple[float, tuple[str, Load]]:
    leader, survivor = await survivor_of(cluster)
    name = f"kill{number}"
    async with steady_load(FEED, survivor.url, name=name) as load:
        await load.more(300, 20)
        moment = trio.current_time()
        await trio.to_thread.run_sync(leader.kill)
        # Receipts that had left before the kill may still arrive after it: the gap is the long silence behind them.
        await load.more(500, 30)
        gap = load.longest_gap(moment)
    leader.start()
    await trio.to_thread.run_sync(cluster.wait_ready)
    return gap, (name, load)


async def freeze_once(cluster: ServeCluster, number: int) -> tuple[float, bool, tuple[str, Load]]:
    """Gap of receipts, and whether the frozen leader had to be killed since it held the log's lock."""
    leader, survivor = await survivor_of(cluster)
    name = f"freeze{number}"
    async with steady_load(FEED, survivor.url, name=name) as load:
        await load.more(300, 20)
        moment = trio.current_time()
        leader.freeze()
        # What was on its way when it froze may still arrive; the gap is the long silence after that.
        await load.more(500, 30)
        gap = load.longest_gap(moment)
        killed = not leader.running
        if killed:
            leader.start()
        else:
            leader.thaw()
        await load.more(500, 30)
    await trio.to_thread.run_sync(cluster.wait_ready)
    return gap, killed, (name, load)


def spread(values: list[float]) -> str:
    return f"median {statistics.median(values) * 1000:.0f} ms, worst {max(values) * 1000:.0f} ms of {len(values)}"


def kills_and_freezes() -> Iterator[Row]:
    from simulations.proof.load import whole_feed

    with tempfile.TemporaryDirectory() as folder, ZookeeperEnsemble() as ensemble:
        flags = ()
        with ServeCluster(
            [FEED], count=3, folder=Path(folder) / "serve", coordinator=ensemble.url("/proof"), flags=flags
        ) as cluster:
            cluster.start()
            loads: list[tuple[str, Load]] = []

            async def run_kills() -> list[float]:
                gaps = []
                for number in range(KILLS):
                    gap, load = await kill_once(cluster, number)
                    gaps.append(gap)
                    loads.append(load)
                    print(f"  kill {number + 1}: {gap * 1000:.0f} ms", flush=True)
                return gaps

            gaps = trio.run(run_kills)
            yield Row(
                f"SIGKILL of the leader, {KILLS} times, ZooKeeper session 10 s, 1,000 ev/s through a survivor",
                spread(gaps),
                "median 100 ms, worst 400 ms",
                statistics.median(gaps) <= 0.1 and max(gaps) <= 0.4,
            )

            async def run_freezes() -> tuple[list[float], int]:
                gaps, killed = [], 0
                for number in range(FREEZES):
                    gap, dead, load = await freeze_once(cluster, number)
                    gaps.append(gap)
                    killed += dead
                    loads.append(load)
                    print(
                        f"  freeze {number + 1}: {gap * 1000:.0f} ms{' (held the lock, killed)' if dead else ''}",
                        flush=True,
                    )
                return gaps, killed

            gaps, killed = trio.run(run_freezes)
            yield Row(
                f"SIGSTOP of the leader, {FREEZES} times, thawed after the new leader published",
                f"{spread(gaps)}; {killed} held the log's lock and were killed",
                "suspect_after + 500 ms = 2,000 ms",
                max(gaps) <= 2.0,
            )
            wrong = audit(trio.run(whole_feed, FEED, cluster.servers), loads)
            total = sum(len(load.receipts) for _, load in loads)
            yield Row(
                "audit after kills and freezes: publishers connected only to a follower",
                wrong or f"{total} acknowledged, each there once, at its receipt's place",
                "nothing lost, repeated or moved",
                not wrong,
            )


async def hand_over_once(cluster: ServeCluster, number: int) -> tuple[float, int, tuple[str, Load]]:
    """Gap of receipts around a SIGTERM of the leader, its exit status. The publisher knows all three instances."""
    leader, _ = await survivor_of(cluster)
    name = f"handover{number}"
    # Odd rounds: the publisher is connected to the very instance that goes.
    servers = leader.url + "," + cluster.servers if number % 2 else cluster.servers
    async with steady_load(FEED, servers, name=name) as load:
        await load.more(300, 20)
        moment = trio.current_time()
        leader.terminate()
        await load.more(1000, 30)
        status = await trio.to_thread.run_sync(leader.wait, 40.0)
        await load.more(100, 30)
        gap = load.longest_gap(moment)
    leader.start()
    await trio.to_thread.run_sync(cluster.wait_ready)
    return gap, status, (name, load)


def handovers() -> Iterator[Row]:
    """Every instance in turn told to stop under load: no publish raises, no gap above 300 ms."""
    from simulations.proof.load import whole_feed

    with tempfile.TemporaryDirectory() as folder, ZookeeperEnsemble() as ensemble:
        serve = Path(folder) / "serve"
        with ServeCluster([FEED], count=3, folder=serve, coordinator=ensemble.url("/proof")) as cluster:
            cluster.start()
            loads: list[tuple[str, Load]] = []
            gaps: list[float] = []
            exits: set[int] = set()

            async def run() -> None:
                for number in range(HANDOVERS):
                    gap, status, load = await hand_over_once(cluster, number)
                    gaps.append(gap)
                    exits.add(status)
                    loads.append(load)
                    print(f"  handover {number + 1}: {gap * 1000:.0f} ms", flush=True)

            trio.run(run)
            wrong = audit(trio.run(whole_feed, FEED, cluster.servers), loads)
            yield Row(
                f"planned handover (SIGTERM of the leader) under 1,000 ev/s, {HANDOVERS} times",
                f"{spread(gaps)}; exits {sorted(exits)}; no publish raised; audit {wrong or 'clean'}",
                "300 ms without receipts, exit 0",
                max(gaps) <= 0.3 and exits == {0} and not wrong,
            )
