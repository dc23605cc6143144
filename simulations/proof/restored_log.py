"""The log replaced by an older copy, in every way an operator might: typed answers, no silence, no wrong events."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from changefeed import (
    AcknowledgedLost,
    CannotResume,
    ChangefeedError,
    open_publisher,
    open_subscription,
)
from changefeed.testing.processes import ServeCluster
from simulations.proof.rows import Row

FEED = "vmapi"
TYPED_LOG_ERRORS = {"log-damaged", "log-replaced"}


@dataclass
class Seen:
    publisher: str = "silence"
    subscriber: str = "silence"
    events: list[tuple[int, str]] = field(default_factory=list)
    told: trio.Event = field(default_factory=trio.Event)

    def subscriber_got(self, code: str) -> None:
        self.subscriber = code
        self.told.set()


@dataclass(frozen=True)
class Variant:
    """stopped: replaced while nothing runs. wal: the newer -wal stays beside the older file. coordinator: its data is
    restored too, so that epochs come again. term: another leader writes between the copy and the loss."""

    name: str
    stopped: bool
    wal: bool = False
    coordinator: bool = False


VARIANTS = (
    Variant("while stopped, without its -wal", stopped=True),
    Variant("while stopped, the newer -wal left beside it", stopped=True, wal=True),
    Variant("while stopped, with the coordinator's data (epochs come again)", stopped=True, coordinator=True),
    Variant("while stopped, both, the newer -wal left", stopped=True, wal=True, coordinator=True),
    Variant("while running", stopped=False),
)


def stop_all(cluster: ServeCluster, number: int) -> None:
    for instance in cluster.instances:
        instance.send(number)
    for instance in cluster.instances:
        instance.wait(40)


def copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def put_back(saved: Path, log: Path, variant: Variant) -> None:
    """The older file takes the newer one's place; -wal and -shm go or stay as the variant says."""
    for old in saved.glob("*.db"):
        staged = log / (old.name + ".restored")
        shutil.copyfile(old, staged)
        if not variant.wal:
            for suffix in ("-wal", "-shm"):
                (log / (old.name + suffix)).unlink(missing_ok=True)
        os.replace(staged, log / old.name)


async def one_variant(variant: Variant, folder: Path, seen: Seen) -> None:
    log, coordinator = folder / "log", folder / "coordinator"
    with ServeCluster([FEED], count=2, folder=folder) as cluster:

        async def threaded(function: Callable[[], object]) -> None:
            await trio.to_thread.run_sync(function)

        await threaded(cluster.start)
        async with open_publisher(FEED, cluster.servers) as early:
            for n in range(40):
                await early.publish("vm", f"early-{n}", "update")
        await threaded(lambda: stop_all(cluster, signal.SIGTERM))
        copy(log, folder / "saved-log")
        copy(coordinator, folder / "saved-coordinator")
        await threaded(cluster.start)
        async with trio.open_nursery() as nursery:
            try:
                async with open_publisher(FEED, cluster.servers) as publisher:
                    for n in range(60):
                        await publisher.publish("vm", f"late-{n}", "update")
                    ready = trio.Event()
                    nursery.start_soon(subscribe, cluster.servers, 100, ready, seen)
                    await ready.wait()
                    if variant.stopped:
                        await threaded(lambda: stop_all(cluster, signal.SIGKILL))
                    put_back(folder / "saved-log", log, variant)
                    if variant.coordinator:
                        copy(folder / "saved-coordinator", coordinator)
                    if variant.stopped:
                        for instance in cluster.instances:
                            instance.start()
                    with trio.move_on_after(20) as patience:
                        await publisher.publish("vm", "after", "update")
                        seen.publisher = "accepted without a word"
                    if patience.cancelled_caught and publisher.status.last_error is not None:
                        seen.publisher = publisher.status.last_error.code
                    # Leaving by an exception: what is out cannot be settled any more, and need not.
                    raise _Done
            except* _Done:
                pass
            except* AcknowledgedLost as group:
                seen.publisher = group.exceptions[0].code  # type: ignore[union-attr]
            with trio.move_on_after(20):
                await seen.told.wait()
            nursery.cancel_scope.cancel()


class _Done(Exception):
    pass


async def subscribe(servers: str, head: int, ready: trio.Event, seen: Seen) -> None:
    """Follow from the beginning; say when the head was reached; note how it ended, or what it complains of."""
    try:
        async with open_subscription(FEED, servers, start="beginning") as subscription, trio.open_nursery() as nursery:
            nursery.start_soon(complain, subscription, seen)
            async for event in subscription:
                seen.events.append((event.seq, event.id))
                if event.seq >= head:
                    ready.set()
    except* CannotResume as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, ChangefeedError)
        seen.subscriber_got(error.code)


async def complain(subscription: object, seen: Seen) -> None:
    while True:
        await trio.sleep(0.1)
        error = subscription.state.last_error  # type: ignore[attr-defined]
        if error is not None and error.code in TYPED_LOG_ERRORS:
            seen.subscriber_got(error.code)


def older_copies() -> Iterator[Row]:
    for variant in VARIANTS:
        seen = Seen()
        with tempfile.TemporaryDirectory() as folder:
            trio.run(one_variant, variant, Path(folder), seen)
        want = [(n + 1, f"early-{n}") for n in range(40)] + [(n + 41, f"late-{n}") for n in range(60)]
        wrong = seen.events != want
        typed = seen.publisher in {"acknowledged-lost", *TYPED_LOG_ERRORS} and seen.subscriber in {
            "future-position",
            "other-lineage",
            *TYPED_LOG_ERRORS,
        }
        yield Row(
            f"older copy of the log put back {variant.name}",
            f"publisher: {seen.publisher}; subscriber: {seen.subscriber}; {'wrong' if wrong else 'no wrong'} events",
            "typed answers, no wrong events",
            typed and not wrong,
        )
