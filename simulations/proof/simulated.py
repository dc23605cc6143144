"""Rows of `make proof-simulation` that run many seeds: a tier's long run, the same seeds under three hash seeds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import trio

from changefeed.nursery import open_owned_nursery
from changefeed.simulation import report
from changefeed.simulation.runner import SHARE, Order, Run, Summary, cores, new_first
from changefeed.simulation.workers import Result, Worker
from simulations.proof.rows import Row

#: What the issue asks for.
CLUSTER_SEEDS = 200_000
STACK_SEEDS = 10_000
#: Seeds per minute and processor that the cluster tier aims at.
AIM = 1_500
CANARY = 100
HASH_SEEDS = (0, 1, 2)
#: A long run tells how far it is so often.
TELL_S = 60.0


def long_run(
    tier: str, wanted: int, seeds: int | None = None, jobs: int | None = None, minutes: float | None = None
) -> Iterator[Row]:
    """Many new seeds of a tier. wanted: as many as the proof needs. seeds, minutes: fewer, for a quick look, which does
    not pass. What fails is printed with all that it takes to look into it."""
    asked = wanted if seeds is None else seeds
    seconds = None if minutes is None else minutes * 60
    order = Order(tier, new_first(), asked, seconds=seconds, jobs=jobs or cores())
    summary = trio.run(_run, order)
    enough = summary.seeds >= wanted
    quick = "" if enough else f" (a quick look: {wanted:,} are asked for)"
    failed = ", ".join(str(result.seed) for result in summary.failed) or "none"
    yield Row(
        f"{tier} tier: new seeds of drawn faults, every history through the checkers{quick}",
        f"{summary.seeds:,} seeds from {order.first}; failed: {failed}; "
        f"{report.minutes(summary.virtual_s)} of virtual time; {summary.twice} run twice, {summary.unequal} unequal",
        f"at least {wanted:,} seeds, 0 failed, 0 unequal",
        enough and not summary.failed and not summary.unequal,
    )
    yield sometimes(summary, quick, enough)
    per_core = summary.per_minute / order.jobs
    aim = f"told; aim {AIM:,}" if tier == "cluster" else "told"
    yield Row(
        f"{tier} tier: seeds per minute and process, {order.jobs} at a time{quick}", f"{per_core:,.0f}", aim, enough
    )


def sometimes(summary: Summary, quick: str, enough: bool) -> Row:
    """Whether what must be met now and then was."""
    seldom = [name for name in summary.wanted if summary.share(name) < SHARE]
    rarest = sorted(summary.wanted, key=lambda name: (summary.reached[name], name))[:3]
    least = ", ".join(f"{name} {summary.share(name):.1%}" for name in rarest)
    return Row(
        f"{summary.order.tier} tier: what must be met now and then{quick}",
        f"{len(summary.wanted) - len(seldom)} of {len(summary.wanted)}; least: {least or 'nothing is wanted'}",
        f"each in at least {SHARE:.0%} of seeds",
        enough and not seldom and bool(summary.wanted),
    )


async def _run(order: Order) -> Summary:
    run = Run(order)

    async def tell(result: Result) -> None:
        await trio.lowlevel.checkpoint()
        print("\n".join(report.failure_lines(result, order.tier)), flush=True)

    async def progress() -> None:
        while True:
            await trio.sleep(TELL_S)
            print(f"  {report.progress_text(run.summary)}", file=sys.stderr, flush=True)

    async with open_owned_nursery() as nursery:
        nursery.start_soon(progress)
        await run.go(tell)
        nursery.cancel_scope.cancel()
    print("\n".join(report.summary_lines(run.summary)), flush=True)
    return run.summary


def cluster(seeds: int | None = None, jobs: int | None = None, minutes: float | None = None) -> Iterator[Row]:
    yield from long_run("cluster", CLUSTER_SEEDS, seeds, jobs, minutes)


def stack(seeds: int | None = None, jobs: int | None = None, minutes: float | None = None) -> Iterator[Row]:
    yield from long_run("stack", STACK_SEEDS, seeds, jobs, minutes)


def determinism(tiers: Sequence[str] = ("cluster", "stack"), seeds: int | None = None) -> Iterator[Row]:
    """The same seeds in three processes with other hash seeds: the same histories, byte for byte."""
    count = CANARY if seeds is None else seeds
    for tier in tiers:
        found = trio.run(all_digests, tier, count)
        unequal = [seed for seed, told in enumerate(zip(*found, strict=True)) if len(set(told)) > 1 or not told[0]]
        yield Row(
            f"{tier} tier: {count} seeds under {len(HASH_SEEDS)} hash seeds, digests of their histories",
            f"{len(unequal)} differ" + (f": seeds {unequal[:10]}" if unequal else ""),
            f"0 differ, at least {CANARY} seeds",
            not unequal and count >= CANARY,
        )


async def all_digests(tier: str, count: int) -> list[list[str]]:
    """Of seeds 0 … count - 1, for each hash seed; in processes beside each other."""
    found: dict[int, list[str]] = {}

    async def one(nursery: trio.Nursery, hash_seed: int) -> None:
        worker = await Worker.start(nursery, tier, hash_seed)
        try:
            found[hash_seed] = [
                (await worker.ask(seed, None, history=False, limit_s=120)).digest for seed in range(count)
            ]
        finally:
            await worker.aclose()

    async with open_owned_nursery() as nursery:
        for hash_seed in HASH_SEEDS:
            nursery.start_soon(one, nursery, hash_seed)
    return [found[hash_seed] for hash_seed in HASH_SEEDS]
