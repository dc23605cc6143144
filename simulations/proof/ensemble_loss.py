"""ZooKeeper lost and wiped while publishing: publishing goes on, a later kill fails over, the epoch still grows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import trio

from changefeed.testing.processes import ServeCluster
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble
from simulations.proof.failover import FEED, audit, survivor_of
from simulations.proof.load import Load, steady_load, whole_feed
from simulations.proof.rows import Row


def epoch_of(cluster: ServeCluster) -> int:
    leader = cluster.wait_leader(FEED)
    return int(leader.get("/status")["feeds"][FEED]["epoch"])


def lost_and_wiped() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder, ZookeeperEnsemble() as ensemble:
        serve = Path(folder) / "serve"
        with ServeCluster([FEED], count=3, folder=serve, coordinator=ensemble.url("/proof")) as cluster:
            cluster.start()
            loads: list[tuple[str, Load]] = []
            before = epoch_of(cluster)

            async def lost() -> float:
                _, survivor = await survivor_of(cluster)
                async with steady_load(FEED, survivor.url, name="lost") as load:
                    loads.append(("lost", load))
                    since = trio.current_time()
                    await trio.to_thread.run_sync(ensemble.kill_all)
                    await load.more(15_000, 60)
                    return load.longest_gap(since)

            gap = trio.run(lost)
            yield Row(
                "all three ZooKeeper servers killed while publishing 1,000 ev/s, for 15 s",
                f"publishing went on, longest time without a receipt {gap * 1000:.0f} ms",
                "1,000 ms",
                gap <= 1.0,
            )

            async def fails_over(name: str) -> float:
                leader, survivor = await survivor_of(cluster)
                async with steady_load(FEED, survivor.url, name=name) as load:
                    loads.append((name, load))
                    await load.more(300, 20)
                    moment = trio.current_time()
                    await trio.to_thread.run_sync(leader.kill)
                    await load.more(500, 60)
                    gap = load.longest_gap(moment)
                leader.start()
                return gap

            ensemble.restart_all()
            wait_connected(cluster)
            gap = trio.run(fails_over, "restarted")
            yield Row(
                "ensemble restarted: a kill of the leader fails over",
                f"{gap * 1000:.0f} ms",
                "15 s (the slow path)",
                gap <= 15,
            )
            cluster.wait_ready()

            ensemble.kill_all()
            ensemble.wipe()
            ensemble.restart_all()
            wait_connected(cluster)
            gap = trio.run(fails_over, "wiped")
            after = epoch_of(cluster)
            yield Row(
                "ZooKeeper's data wiped, then the leader killed: the epoch still grows",
                f"epoch {before} before, {after} after; {gap * 1000:.0f} ms without receipts",
                "grows",
                after > before,
            )
            cluster.wait_ready()
            wrong = audit(trio.run(whole_feed, FEED, cluster.servers), loads)
            total = sum(len(load.receipts) for _, load in loads)
            yield Row(
                "audit of all that was acknowledged meanwhile", wrong or f"{total}, each there once", "clean", not wrong
            )


def wait_connected(cluster: ServeCluster, timeout_s: float = 60.0) -> None:
    """Until every instance has a ZooKeeper session again."""
    import time

    deadline = time.monotonic() + timeout_s
    for instance in cluster.instances:
        while not instance.get("/status")["coordinator"]["connected"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{instance.name} has no session after {timeout_s} s:\n{instance.tail()}")
            time.sleep(0.05)
