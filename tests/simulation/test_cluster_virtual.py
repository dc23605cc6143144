"""The simulation's own parts: virtual time, frozen processes, tripwires, the log as an instance reaches it."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid

import pytest
import trio

from changefeed.errors import LogUnavailable
from changefeed.log.memory import MemoryPlace
from changefeed.simulation.cluster.distant import DistantLog
from changefeed.simulation.cluster.recording import Archive, Recorder
from changefeed.simulation.cluster.tripwires import Undetermined, tripwires
from changefeed.simulation.cluster.virtual import PROCESS, Freezer, run_virtually, virtual_clock


def test_time_jumps_to_what_is_due_next() -> None:
    seen: list[tuple[str, float]] = []

    async def wait(who: str, seconds: float) -> None:
        await virtual_clock().sleep(seconds)
        seen.append((who, trio.current_time()))

    async def main() -> None:
        virtual_clock().at(1.5, lambda: seen.append(("timer", trio.current_time())))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "a", 2)
            nursery.start_soon(wait, "b", 1)
            await trio.sleep(1.2)
            seen.append(("main", trio.current_time()))
            with trio.move_on_after(10) as scope:
                await virtual_clock().sleep(100)
            assert scope.cancelled_caught

    begun = time.monotonic()
    run_virtually("x", main)
    assert seen == [("b", 1), ("main", 1.2), ("timer", 1.5), ("a", 2)]
    assert time.monotonic() - begun < 5


def test_a_run_in_which_nothing_can_happen_any_more_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("changefeed.simulation.cluster.virtual.STUCK_MAX", 0)
    with pytest.raises(trio.TrioInternalError):
        run_virtually("x", trio.sleep_forever)


def test_the_order_of_steps_is_drawn_from_the_seed() -> None:
    async def steps() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            await trio.lowlevel.checkpoint()
            order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, number)
        return order

    orders = [tuple(run_virtually(str(seed), steps)) for seed in range(20)]
    assert len(set(orders)) > 10
    assert orders == [tuple(run_virtually(str(seed), steps)) for seed in range(20)]


def test_a_frozen_process_runs_no_step_until_it_is_thawed() -> None:
    """Not even when its sleep is over or it is cancelled; the others go on."""
    steps: list[tuple[str, float]] = []

    async def walk(who: str) -> None:
        PROCESS.set(who)
        while True:
            steps.append((who, trio.current_time()))
            await trio.sleep(1)

    async def main() -> None:
        freezer = Freezer()
        async with trio.open_nursery() as nursery:
            for who in ("a", "b"):
                nursery.start_soon(walk, who)
            await trio.sleep(1.5)
            freezer.freeze("a")
            assert freezer.is_frozen("a") and not freezer.is_frozen("b")
            await trio.sleep(3)
            freezer.thaw("a")
            await trio.sleep(0.9)
            nursery.cancel_scope.cancel()

    run_virtually("x", main)
    assert [at for who, at in steps if who == "a"] == [0, 1, 4.5]
    assert [at for who, at in steps if who == "b"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "asks",
    [
        lambda: time.time(),
        lambda: time.monotonic(),
        lambda: random.random(),
        lambda: os.urandom(8),
        lambda: uuid.uuid4(),
        lambda: threading.Thread(target=print).start(),
    ],
)
def test_what_is_not_determined_cannot_be_asked_for(asks: object) -> None:
    with tripwires(), pytest.raises(Undetermined, match="in a simulated run"):
        asks()  # type: ignore[operator]
    time.time()


@pytest.mark.parametrize("lands", [True, False])
def test_a_call_on_its_way_when_its_process_dies_lands_or_is_lost(lands: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is asked after the kill gets anywhere."""
    monkeypatch.setattr("changefeed.simulation.cluster.distant.LANDS_CHANCE", 1.0 if lands else 0.0)

    async def main() -> list[str]:
        log = DistantLog(MemoryPlace(), Archive(Recorder()), random.Random(1), 0.5, (), lambda point: None)
        outcomes = []

        async def call() -> None:
            try:
                await log("append", "vmapi")
            except LogUnavailable:
                outcomes.append("lost")
            else:
                outcomes.append("landed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(0.001)
            log.killed = True
            await call()
        return outcomes

    assert run_virtually("x", main) == ["lost", "landed" if lands else "lost"]
