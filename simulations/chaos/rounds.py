"""One round: build everything, harm it, heal it, drain it, dump it, judge it. And a campaign of rounds."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble
from simulations.chaos import dump, sandbox, shim
from simulations.chaos.kinds import DISK, FILE, KINDS, NETWORK, SHIM, TIME, ZOOKEEPER, available
from simulations.chaos.nemesis import Nemesis
from simulations.chaos.plan import draw
from simulations.chaos.processes import ROOT, Node
from simulations.chaos.sandbox import Network
from simulations.chaos.stage import FEED, SERVERS, Stage
from simulations.chaos.witness import Witness

#: From the healing on, everything must have an outcome and be read within so many seconds.
BOUND_S: Final = 60.0
STOP_S: Final = 15.0
#: A round that lasts longer than planned by so much leaves the rest of its plan out.
LATE: Final = 1.5
DISK_MIB: Final = 600
JUDGE_S: Final = 300.0
#: What a process may say loudly that has no memory or no descriptors left.
STARVED: Final = re.compile(
    r"MemoryError|Too many open files|can't start new thread|Cannot allocate memory|out of memory|did not end within"
    # Trio looks for an idle thread before it starts one, which then fails.
    r"|popitem\(\): dictionary is empty"
)

#: After any fault, also after several at once, nobody waits longer for a receipt or a delivery.
PAUSE_LIMIT_S: Final = 30.0


#: A ZooKeeper server whose quorum was lost may leave an answer out. kazoo's thread ends with this, loudly; the instance
#: goes on with another client, which the checkers see.
KAZOO_GAVE_UP: Final = re.compile(r"xids do not match")


def unexpected(errors: Sequence[str]) -> list[str]:
    """Of the errors that a process printed tracebacks of, those that a lack of memory or descriptors, or kazoo's way to
    give a connection up, does not explain.
    Trio tells of one that met its own insides as an error of its own, right behind it."""
    pairs = zip(["", *errors], errors, strict=False)
    return [
        error
        for before, error in pairs
        if not STARVED.search(error)
        and not KAZOO_GAVE_UP.search(error)
        and not ("TrioInternalError" in error and STARVED.search(before))
    ]


@dataclass
class Result:
    """What a round came to. broken: the checkers' findings; wrong: what the harness saw itself. hits, acked: what is
    known of it before it is judged: faults by kind that had an effect, changes with a receipt."""

    seed: int
    coordinator: str
    seconds: float = 0.0
    broken: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    effects: dict[str, dict[str, int]] = field(default_factory=dict)
    pauses: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: str = ""
    hits: Counter[str] = field(default_factory=Counter)
    acked: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.broken and not self.wrong


@dataclass(frozen=True)
class Options:
    """coordinator: "zk" or "file". only: names of kinds. wanted: kind -> how often in this round. per_s: changes. disk:
    the log is on a small disk of its own. retain: events that the feed keeps (None: all)."""

    seed: int
    seconds: float
    coordinator: str = "zk"
    only: frozenset[str] = frozenset()
    wanted: Mapping[str, int] = field(default_factory=dict)
    per_s: float = 1000.0
    disk: bool = False
    retain: int | None = None


def offered(coordinator: str, disk: bool, library: Path | None) -> frozenset[str]:
    """What this machine has for a round (see kinds.py)."""
    have = {ZOOKEEPER if coordinator == "zk" else FILE}
    if sandbox.inside():
        have.add(NETWORK)
        if sandbox.time_namespaces():
            have.add(TIME)
        if disk:
            have.add(DISK)
    if library is not None:
        have.add(SHIM)
    return frozenset(have)


class Round:
    """One round, in a folder of its own."""

    def __init__(
        self, options: Options, network: Network, ensemble: ZookeeperEnsemble | None, library: Path | None,
        folder: Path,
    ) -> None:  # fmt: skip
        self.options = options
        self.have = offered(options.coordinator, options.disk, library)
        self._folder = folder
        if DISK in self.have:
            sandbox.small_disk(str(folder / "log"), DISK_MIB)
        self.stage = Stage(
            folder, network, self.have, options.seed, ensemble=ensemble, chroot=f"/round-{options.seed}",
            library=library, per_s=options.per_s,
        )  # fmt: skip
        self.result = Result(options.seed, options.coordinator, folder=str(folder))
        self._judge: subprocess.Popen[bytes] | None = None

    async def run(self) -> Result:
        begun = time.monotonic()
        phase = self._phase
        ahead_ns = dump.wall_ahead_ns()
        stage, result = self.stage, self.result
        kinds = available(self.have)
        if self.options.only:
            kinds = {name: kind for name, kind in kinds.items() if name in self.options.only}
        plan = draw(self.options.seed, self.options.seconds, kinds, self.options.wanted)
        (self._folder / "plan.json").write_text(plan.to_json())
        try:
            self._limits(kinds)
            with phase("start"):
                await stage.begin()
            witness = Witness(f"sqlite:{stage.log_folder}", FEED)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.supervise)
                if self.options.retain is not None:
                    await witness.retain(self.options.retain)
                    nursery.start_soon(witness.watch)
                nemesis = Nemesis(stage, plan, kinds, self.options.seconds * LATE)
                with phase("faults"):
                    await nemesis.run()
                with phase("converge"):
                    await self._converge()
                nursery.cancel_scope.cancel()
            with phase("stop"):
                await self._stop()
            with phase("dump"):
                await dump.flip_bytes(stage, random.Random(self.options.seed))
                await dump.dump_log(stage, max(ahead_ns, dump.wall_ahead_ns()), witness.entries)
        except TimeoutError as error:
            result.wrong.append(str(error))
        finally:
            stage.end()
        for node in stage.nodes.values():
            stage.wrong += [f"{node.name} printed a traceback: {line}" for line in unexpected(node.tracebacks())]
        result.wrong += [*stage.crashes, *stage.wrong]
        result.hits = Counter(doing.kind for doing in stage.doings if set(doing.seen) - {"missed"})
        result.acked = stage.acked()
        result.seconds = time.monotonic() - begun
        return result

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.result.phases[name] = round(time.monotonic() - begun, 1)

    def _limits(self, kinds: Mapping[str, Any]) -> None:
        for name in kinds:
            self.stage.records.write("limit", kind=name, receipts_s=PAUSE_LIMIT_S, deliveries_s=PAUSE_LIMIT_S)
        self.stage.records.write("want", name="acks", count=100)
        self.stage.records.write("want", name="events", count=1000)

    async def _converge(self) -> None:
        """Nothing is done any more: every publisher gets its outcomes, every reader reads to the end."""
        stage = self.stage
        stage.closing = True
        stage.held.clear()
        for node in stage.nodes.values():
            node.thaw()
        if stage.ensemble is not None:
            await self._heal_ensemble(stage.ensemble)
        stage.records.write("heal", bound_s=BOUND_S)
        with trio.move_on_after(BOUND_S):
            await stage.until(lambda: all(node.running for node in stage.nodes.values()), BOUND_S)
            await stage.until(lambda: all(stage.ready(node) for node in stage.instances.values()), BOUND_S)
            await self._finish(list(stage.publishers.values()), BOUND_S)
            tail = stage.tail()
            await stage.until(lambda: all(one.gauge.get("seq") >= tail for one in stage.subscribers.values()), BOUND_S)
            if all(one.gauge.get("seq") >= tail for one in stage.subscribers.values()):
                stage.records.write("converged")

    async def _heal_ensemble(self, ensemble: ZookeeperEnsemble) -> None:
        for index in range(ensemble.size):
            ensemble.resume(index)
        with trio.move_on_after(30):
            for index in range(ensemble.size):
                if not await trio.to_thread.run_sync(ensemble.mode, index):
                    await trio.to_thread.run_sync(ensemble.restart, index)

    async def _finish(self, nodes: list[Node], within_s: float) -> None:
        """Tell them to come to their end; status 0, or it is wrong."""
        for node in nodes:
            node.wanted = False
            node.terminate()
        await self.stage.until(lambda: not any(node.running for node in nodes), within_s)
        for node in nodes:
            if node.running:
                self.stage.wrong.append(f"{node.name} did not end within {within_s:g} s of SIGTERM; {node.said()}")
                node.kill()
            elif node.status != 0:
                self.stage.wrong.append(f"{node.name} ended with status {node.status}; {node.said()}")

    async def _stop(self) -> None:
        await self._finish(list(self.stage.subscribers.values()), STOP_S)
        await self._finish(list(self.stage.instances.values()), STOP_S)

    def begin_judging(self) -> None:
        """In a process of its own, beside the next round: a history takes a gigabyte of memory."""
        command = [sys.executable, "-m", "simulations.chaos.judge", str(self.stage.history), str(self._verdict)]
        with (self._folder / "judge.log").open("wb") as said:
            self._judge = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)

    @property
    def _verdict(self) -> Path:
        return self._folder / "verdict.json"

    def end_judging(self) -> Result:
        """The verdict is in the result then, and what was clean is gone from the disk."""
        result, judge = self.result, self._judge
        assert judge is not None, "nobody judges"
        try:
            status = judge.wait(JUDGE_S)
        except subprocess.TimeoutExpired:
            result.wrong.append(f"the history was not judged within {JUDGE_S:g} s")
        else:
            if status:
                said = (self._folder / "judge.log").read_text(errors="replace")
                result.wrong.append(f"the judge failed: {said[-800:]}")
            else:
                found = json.loads(self._verdict.read_text())
                result.broken, result.effects, result.pauses = found["broken"], found["effects"], found["pauses"]
                result.counts = Counter(found["counts"])
        self.stop_judging()
        self._tidy()
        return result

    def stop_judging(self) -> None:
        if self._judge is not None:
            self._judge.kill()
            self._judge.wait()

    def _tidy(self) -> None:
        """Forget a round that was clean; keep one that was not."""
        if DISK in self.have:
            if not self.result.ok:
                shutil.copytree(self._folder / "log", self._folder / "log-kept")
            sandbox.unmount(str(self._folder / "log"))
        if self.result.ok:
            shutil.rmtree(self._folder, ignore_errors=True)


class Campaign:
    """Rounds, one after the other, with one network and (for "zk") one ensemble; each is judged while the next runs.

    folder: of rounds that were not clean. judged: told each round's result.
    """

    def __init__(self, *, folder: Path | None = None, judged: Callable[[Result], None] = lambda result: None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="changefeed-chaos-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results: list[Result] = []
        self.hits: Counter[str] = Counter()
        self.network = Network(sandbox.inside())
        self.network.begin()
        self.own_clocks = sandbox.inside() and sandbox.time_namespaces()
        self.library: Path | None = None
        self.no_shim = ""
        try:
            self.library = shim.build(self.folder)
        except RuntimeError as error:
            self.no_shim = str(error)
        self._ensemble: ZookeeperEnsemble | None = None
        self._judging: Round | None = None
        self._judged = judged

    def close(self) -> None:
        if self._judging is not None:
            self._judging.stop_judging()
        if self._ensemble is not None:
            self._ensemble.close()
        if all(result.ok for result in self.results):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _ready_ensemble(self) -> ZookeeperEnsemble:
        if self._ensemble is None:
            hosts = [self.network.add(name) for name in SERVERS]
            self._ensemble = ZookeeperEnsemble(
                3, tick_ms=500, hosts=hosts, within=lambda index: self.network.within(SERVERS[index])
            )
            self._ensemble.start()
        return self._ensemble

    def run_round(self, options: Options) -> None:
        """One round; it is counted at once, and judged later."""
        folder = self.folder / f"round-{options.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ensemble = self._ready_ensemble() if options.coordinator == "zk" else None
        one = Round(options, self.network, ensemble, self.library, folder)
        try:
            result = trio.run(one.run)
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is not None:
                raise KeyboardInterrupt from None
            raise
        finally:
            one.stage.end()
        self.hits.update(result.hits)
        self.hits["acked-events"] += result.acked
        self.wait_judged()
        self._judging = one
        one.begin_judging()

    def wait_judged(self) -> None:
        """Until the newest round has its verdict."""
        if self._judging is not None:
            judging, self._judging = self._judging, None
            self.results.append(judging.end_judging())
            self._judged(self.results[-1])

    def missing(self, targets: Mapping[str, int]) -> dict[str, int]:
        """What is still wanted."""
        return {name: count - self.hits[name] for name, count in targets.items() if self.hits[name] < count}


def unavailable(campaign: Campaign, coordinators: set[str]) -> dict[str, str]:
    """Fault kinds that no round of this campaign can have, and why."""
    have: set[str] = set()
    for coordinator in coordinators:
        have |= offered(coordinator, True, campaign.library)
    why = {
        NETWORK: "no network namespaces of our own", TIME: "no time namespaces", DISK: "no mounts of our own",
        SHIM: campaign.no_shim, ZOOKEEPER: "no round with ZooKeeper was asked for",
        FILE: "no round with the file coordinator was asked for",
    }  # fmt: skip
    return {
        name: "; ".join(why[need] for need in sorted(kind.needs - have))
        for name, kind in KINDS.items()
        if not kind.needs <= have
    }
