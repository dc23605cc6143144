"""The cluster of a run: the cluster tier's, with websockets over byte streams and SQLite files in place of memory."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any, cast

import trio

from changefeed import Change
from changefeed.change import FeedSettings
from changefeed.history.facts import submit_facts
from changefeed.log import LogStore
from changefeed.log.sqlite import SqliteLogStore
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.simulation.cluster.clients import Group, Writer
from changefeed.simulation.cluster.cluster import Cluster
from changefeed.simulation.cluster.distant import ProcessFaults
from changefeed.simulation.cluster.recording import Recorder, key_of
from changefeed.simulation.cluster.sightings import Sightings
from changefeed.simulation.disk import RecordedDisk
from changefeed.simulation.plan import Plan
from changefeed.simulation.stack.flow import Weather
from changefeed.simulation.stack.network import StackNetwork
from changefeed.simulation.stack.store import SqlitePlace, Threads
from changefeed.simulation.stack.streams import StreamNetwork


class PaddedWriter(Writer):
    """A publisher whose changes may be larger than what buffers and packets hold."""

    def _draw(self) -> Group:
        group = super()._draw()
        pad: int = self.cluster.plan.option("pad", 0)
        if pad:
            changes = [self._padded(change, pad) for change in group.changes]
            group.changes[:] = changes
            group.facts = submit_facts(group.op, changes, self.name, key_of)
        return group

    def _padded(self, change: Change, pad: int) -> Change:
        size = int(pad * 2 * self._chance.random() ** 2)
        return replace(change, body={"id": key_of(change), "pad": "x" * size})


class StackCluster(Cluster):
    """See cluster.Cluster. place: the log's files; disk: what records their writes, in runs that need it."""

    def __init__(
        self,
        seed: int,
        plan: Plan,
        recorder: Recorder,
        sightings: Sightings,
        place: SqlitePlace,
        disk: RecordedDisk | None,
    ) -> None:
        super().__init__(seed, plan, recorder, sightings)
        weather = Weather(
            latency_s=plan.option("way_s", 0.002),
            bytes_s=plan.option("bytes_s", 1e8),
            buffer_bytes=plan.option("buffer_bytes", 65536),
            splits=plan.option("splits", 1),
            short_reads=plan.option("short_reads", 0.05),
        )
        self.streams = StreamNetwork(f"{seed}-stack", weather, sightings)
        self.sqlite = place
        self.disk = disk
        # Both have what the cluster and its faults ask of the ones in memory.
        self.network = cast(Any, StackNetwork(self.streams, self.settings, plan.option("json", ())))
        self.place = cast(Any, place)
        self.threads: dict[str, Threads] = {}
        writers = [PaddedWriter(self, writer.who) for writer in self.writers]
        self.writers = list(writers)
        self.clients |= {writer.who: writer for writer in writers}

    def _settings(self) -> Settings:
        return replace(super()._settings(), stall_after_s=1.5)

    async def start(self, nursery: trio.Nursery) -> None:
        self.sqlite.begin()
        keep = self.plan.option("keep")
        if keep is not None or self.listers:
            self.sqlite.set(FeedSettings(retention_count=keep, snapshot=bool(self.listers)))
        for name in self.names:
            nursery.start_soon(self.keep, name)
        for reader in self.followers:
            nursery.start_soon(reader.run)

    def store(self, name: str, life: int, world: World) -> tuple[LogStore, ProcessFaults[Any]]:
        threads = self.threads[name] = Threads(
            self.sqlite,
            self.archive,
            random.Random(f"{self.seed}-log-{name}-{life}"),
            self.plan.option("log_s", 0.0),
            self.plan.option("pauses", ()),
            partial(self.passed, name),
        )
        store = SqliteLogStore("sqlite:", self.sqlite.folder, self.settings, world=world, run_sync=threads.run_sync)
        return store, threads

    async def _run_instance(self, name: str) -> None:
        """One process: until it is killed or has drained."""
        while name in self.streams.gone:  # noqa: ASYNC110  # its machine is away; virtual time
            await trio.sleep(0.05)
        await super()._run_instance(name)

    def kill(self, name: str) -> bool:
        if not super().kill(name):
            return False
        self.threads[name].kill()
        return True

    def lose_power(self, name: str) -> bool:
        """As `kill`, but its machine is silent: nobody is told, and what was under way is lost."""
        self.streams.vanish(name)
        return self.kill(name)

    def heal(self) -> None:
        for name in sorted(self.streams.gone):
            self.streams.return_(name)
        self.streams.extra_latency_s = 0.0
        super().heal()
