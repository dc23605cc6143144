"""Worker processes, seen from the program that wants seeds run: asked, timed, replaced; never left behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from changefeed.errors import BadConfig
from changefeed.history import Broken
from changefeed.simulation.case import plan_from
from changefeed.simulation.plan import Plan

#: The longest answer: a failed seed's history.
ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
#: What is kept of what a worker writes to stderr: where it hangs, why it died.
STDERR_BYTES: Final = 16 * 1024
#: A worker is replaced after so many seeds: another hash seed, and nothing that piled up.
SEEDS_OF_A_WORKER: Final = 2_000
#: Importing everything on a busy machine.
START_LIMIT_S: Final = 120.0
#: After SIGABRT, for the traceback.
LAST_WORDS_S: Final = 5.0
#: Workers import what this process would, whatever its path is made of.
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from changefeed.simulation.worker import main; main(sys.argv[2])"
)


@dataclass(slots=True)
class Result:
    """What one run of a seed came to.

    broken: empty if all promises held. Beside C1 … C16: "crash" (an error left the simulation, or its process died),
    "hang" (no answer within the limit), "determinism" (the same seed and plan came to another digest). plan, history:
    of a seed that failed, or where they were asked for; left_out: records that came before those. hash_seed: the
    worker's PYTHONHASHSEED, which must not matter. reproduced: whether a second worker saw the same; None: not tried.
    """

    seed: int
    digest: str = ""
    broken: tuple[Broken, ...] = ()
    sightings: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    took_s: float = 0.0
    plan: Plan | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    hash_seed: int = 0
    reproduced: bool | None = None

    def breaks(self, promise: str) -> bool:
        return any(item.promise == promise for item in self.broken)


def result_from(answer: dict[str, Any], hash_seed: int) -> Result:
    """An answer of a worker. Raises BadConfig where the tier refused the plan."""
    if "refused" in answer:
        raise BadConfig(f"the plan cannot be run: {answer['refused']}")
    return Result(
        seed=answer["seed"],
        digest=answer["digest"],
        broken=tuple(Broken(item["promise"], item["says"], item["about"]) for item in answer.get("broken", ())),
        sightings=Counter(answer["sightings"]),
        virtual_s=answer["virtual_s"],
        took_s=answer["took_s"],
        plan=plan_from(answer["plan"], "the worker's plan") if answer.get("plan") else None,
        history=answer.get("history", []),
        left_out=answer.get("left_out", 0),
        hash_seed=hash_seed,
    )


class Worker:
    """One process. Made by `start`; `aclose` ends it, whatever it does."""

    def __init__(self, process: trio.Process, hash_seed: int) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._process = process
        self._asks, self._answers, self._errors = process.stdin, process.stdout, process.stderr
        self._buffer = bytearray()
        self._last_words = b""
        self._drained = trio.Event()
        self.hash_seed = hash_seed
        self.wanted: tuple[str, ...] = ()
        self.ran = 0
        self._busy = False

    @classmethod
    async def start(cls, nursery: trio.Nursery, tier: str, hash_seed: int | None = None) -> Worker:
        """A worker that is ready. The nursery reads its stderr. hash_seed: drawn if it is None. Raises BadConfig if
        there is no such tier."""
        hash_seed = secrets.randbelow(2**32) if hash_seed is None else hash_seed
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), tier],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is told by us, when it is time
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        )
        worker = cls(process, hash_seed)
        nursery.start_soon(worker._read_errors)
        ready = False
        try:
            with trio.move_on_after(START_LIMIT_S):
                line = await worker._answer()
                if line is None:
                    raise BadConfig(f"a worker for the tier {tier!r} did not start: {await worker._epitaph()}")
                hello = json.loads(line)
                if "refused" in hello:
                    raise BadConfig(hello["refused"])
                worker.wanted = tuple(hello["wanted"])
                ready = True
                return worker
            raise BadConfig(f"a worker for the tier {tier!r} was not ready within {START_LIMIT_S:g} s")
        finally:
            if not ready:
                await worker.aclose()

    @property
    def usable(self) -> bool:
        """Whether it waits for the next seed and may have it."""
        return not self._busy and self._process.returncode is None and self.ran < SEEDS_OF_A_WORKER

    async def ask(self, seed: int, plan: Plan | None, *, history: bool, limit_s: float) -> Result:
        """Run one seed. A worker that dies or does not answer in time is a result too, and of no more use.

        Raises BadConfig where the tier refuses the plan. Cancellation leaves the worker unusable: close it.
        """
        self._busy = True
        self.ran += 1
        begun = trio.current_time()
        asked = {"seed": seed, "plan": None if plan is None else json.loads(plan.to_json()), "history": history}
        line: bytes | None = None
        with trio.move_on_after(limit_s) as patience:
            try:
                await self._asks.send_all(json.dumps(asked).encode() + b"\n")
                line = await self._answer()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it has died: its end is told below
        if line is not None:
            self._busy = False
            return result_from(json.loads(line), self.hash_seed)
        took_s = trio.current_time() - begun
        if patience.cancelled_caught:
            broken = Broken("hang", f"no answer within {limit_s:g} s: the run hangs", {"stack": await self._stack()})
        else:
            broken = Broken("crash", f"the process that ran the seed died: {await self._epitaph()}", {})
        return Result(seed, broken=(broken,), took_s=took_s, plan=plan, hash_seed=self.hash_seed)

    async def aclose(self) -> None:
        """Kill the process and wait until it is gone. Not cancelled by anything: SIGKILL takes a moment only."""
        with trio.CancelScope(shield=True):
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            for stream in (self._asks, self._answers, self._errors):
                await stream.aclose()

    async def _answer(self) -> bytes | None:
        """The next line; None when the process has closed its end."""
        while (end := self._buffer.find(b"\n")) < 0:
            chunk = await self._answers.receive_some()
            if not chunk or len(self._buffer) + len(chunk) > ANSWER_BYTES_MAX:
                return None
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _read_errors(self) -> None:
        try:
            while chunk := await self._errors.receive_some():
                self._last_words = (self._last_words + chunk)[-STDERR_BYTES:]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # closed beside us
        finally:
            self._drained.set()

    async def _stack(self) -> str:
        """Where a process hangs: SIGABRT makes faulthandler say it."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGABRT)
        with trio.move_on_after(LAST_WORDS_S):
            await self._drained.wait()
        return self._last_words.decode(errors="replace")

    async def _epitaph(self) -> str:
        """How a process ended: its exit status, and the last that it wrote to stderr."""
        with trio.move_on_after(LAST_WORDS_S):
            await self._drained.wait()
            await self._process.wait()
        status = self._process.returncode
        if status is None:
            how = "it closed its output and goes on"
        elif status < 0:
            how = f"signal {signal.Signals(-status).name}"
        else:
            how = f"exit status {status}"
        lines = [line for line in self._last_words.decode(errors="replace").splitlines() if line.strip()]
        return f"{how}; {lines[-1].strip()}" if lines else how


class Pool:
    """Up to `jobs` workers of a tier at work at once; new ones are started as they are needed.

    limit_s: real seconds that a seed may take. Open it with `async with`; leaving ends every process.
    """

    def __init__(self, tier: str, jobs: int, limit_s: float) -> None:
        self.tier = tier
        self.limit_s = limit_s
        self.jobs = jobs
        self.wanted: tuple[str, ...] = ()
        self._room = trio.Semaphore(jobs)
        self._idle: list[Worker] = []
        self._nursery: trio.Nursery | None = None

    def entered(self, nursery: trio.Nursery) -> Pool:
        """Use this nursery for the workers' stderr; it ends when they have ended."""
        self._nursery = nursery
        return self

    async def ask(self, seed: int, plan: Plan | None = None, *, history: bool = False, unlike: int = -1) -> Result:
        """Run one seed when there is room. unlike: a hash seed that the worker must not have.

        Raises BadConfig for a tier that does not exist and a plan that it refuses. Cancellation kills the worker.
        """
        async with self._room:
            worker = await self._take(unlike)
            try:
                return await worker.ask(seed, plan, history=history, limit_s=self.limit_s)
            finally:
                if worker.usable and len(self._idle) < self.jobs:
                    self._idle.append(worker)
                else:
                    await worker.aclose()

    async def ask_all(self, asks: Sequence[tuple[int, Plan | None]]) -> list[Result]:
        """All of them at once, as far as there is room; the answers in the order of the questions. A plan that the
        tier refuses breaks nothing."""
        answers: dict[int, Result] = {}

        async def one(index: int, seed: int, plan: Plan | None) -> None:
            try:
                answers[index] = await self.ask(seed, plan)
            except BadConfig:
                answers[index] = Result(seed, plan=plan)

        async with trio.open_nursery() as nursery:
            for index, (seed, plan) in enumerate(asks):
                nursery.start_soon(one, index, seed, plan)
        return [answers[index] for index in range(len(asks))]

    async def aclose(self) -> None:
        """End the workers that wait. Those at work end with their `ask`."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _take(self, unlike: int) -> Worker:
        for index in reversed(range(len(self._idle))):
            if self._idle[index].hash_seed != unlike:
                return self._idle.pop(index)
        if self._idle:
            await self._idle.pop().aclose()  # make room for another one
        assert self._nursery is not None, "entered() comes first"
        worker = await Worker.start(self._nursery, self.tier)
        self.wanted = worker.wanted
        return worker
