"""changefeed simulate: whole clusters under virtual time with drawn faults, judged by checkers; replays and shrinks."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from changefeed.cli.command import Command, Values
from changefeed.cli.output import Output, printable
from changefeed.config import Option, hint, parse_count, parse_version
from changefeed.errors import BadConfig
from changefeed.settings import parse_duration

if TYPE_CHECKING:
    from changefeed.simulation.case import Case
    from changefeed.simulation.plan import Plan
    from changefeed.simulation.runner import Order, Run
    from changefeed.simulation.workers import Result

TIERS = ("cluster", "stack", "explorer")
#: What runs where nothing is said of how much.
SEEDS = 100
MINUTES_MAX = 7 * 24 * 60
JOBS_MAX = 1_024
#: So many runs shrink a plan that hangs.
HANGS = 60
#: Progress is told so often: on a terminal, and into a pipe or file.
LIVE_S, NOTE_S = 0.5, 30.0


async def run(values: Values, output: Output) -> int:
    output = output.for_people()
    case, order = choose(values)
    show = Show(values, output, case)
    async with trio.open_nursery() as nursery:
        await nursery.start(show.watch_signals)
        try:
            status = await show.run(order)
        finally:
            nursery.cancel_scope.cancel()
    return 128 + show.caught[0] if show.caught else status


class Show:
    """One run of the command: what was asked for, and where it is told."""

    def __init__(self, values: Values, output: Output, case: Case | None) -> None:
        self.values, self.output, self.case = values, output, case
        self.caught: list[int] = []
        self._run: Run | None = None
        self._scope = trio.CancelScope()

    async def run(self, order: Order) -> int:
        with self._scope:
            if self.values.trace:
                return await self._trace(order)
            return await self._many(order)
        return 1  # a signal ended it: the exit status says so

    async def watch_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The first signal ends the seeds and lets the table be printed, the second one ends everything."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                self.caught.append(number)
                if self._run is not None and len(self.caught) == 1:
                    self._run.stop("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
                else:
                    self._scope.cancel()

    # ---- many seeds

    async def _many(self, order: Order) -> int:
        from changefeed.simulation import report
        from changefeed.simulation.runner import Run

        self._run = run = Run(order)
        if order.seeds != 1:
            many = f"{order.seeds:,} seeds" if order.seeds is not None else "seeds"
            await self.output.note(f"tier {order.tier}, {many} from {order.first}, {order.jobs} at a time")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._progress, run)
            await run.go(self._failed)
            nursery.cancel_scope.cancel()
        await self.output.progress("")
        self._run = None  # from here on the first signal ends everything
        summary = run.summary
        if self.values.shrink and summary.failed and not self.caught:
            await self._shrink(order, summary.failed[0])
        await self.output.line(report.summary_record(summary), "\n".join(report.summary_lines(summary)))
        return 1 if summary.problems() else 0

    async def _failed(self, result: Result) -> None:
        from changefeed.simulation import report

        plan = self.values.plan
        record = report.failure_record(result, self._tier, plan)
        await self.output.line(record, printable_lines(report.failure_lines(result, self._tier, plan)))

    async def _progress(self, run: Run) -> None:
        from changefeed.simulation import report

        told, live = trio.current_time(), self.output.live
        while True:
            await trio.sleep(LIVE_S if live else NOTE_S)
            if self.output.json:
                await self.output.line(report.progress_record(run.summary), "")
            elif live:
                await self.output.progress(report.progress_text(run.summary))
            elif trio.current_time() - told >= NOTE_S:
                told = trio.current_time()
                await self.output.note(report.progress_text(run.summary))

    # ---- one seed

    async def _trace(self, order: Order) -> int:
        from changefeed.simulation import report
        from changefeed.simulation.runner import run_one

        result = await run_one(order.tier, order.first, order.plan)
        if self.output.json:
            for record in result.history:
                await self.output.line(record, "")
        else:
            lines = report.trace_lines(result.history, result.left_out)
            await self.output.raw(printable_lines([*report.plan_lines(result.plan), "", *lines]) + "\n")
        if result.broken:
            await self._failed(result)
        else:
            record = {
                "event": "outcome",
                "seed": result.seed,
                "digest": result.digest,
                "left_out": result.left_out,
                "virtual_seconds": round(result.virtual_s, 3),
                "sightings": dict(sorted(result.sightings.items())),
            }
            text = f"\nseed {result.seed}: every promise held; {result.virtual_s:.1f} virtual s; digest {result.digest}"
            await self.output.line(record, text)
        return 1 if result.broken else 0

    async def _shrink(self, order: Order, failed: Result) -> None:
        """Make the failed plan smaller, write it into a file, and say how to run that."""
        from changefeed.simulation import report
        from changefeed.simulation.case import Case
        from changefeed.simulation.runner import open_pool
        from changefeed.simulation.shrink import RUNS, Shrinker, signature
        from changefeed.simulation.worker import find_tier

        promise, same = failed.broken[0].promise, signature(failed.broken[0])
        if promise == "determinism":
            await self.output.note("a run that is not the same twice cannot be shrunk")
            return
        plan = failed.plan or order.plan or find_tier(order.tier).draw(failed.seed)
        # Each run that hangs is waited for to the limit: only few, and not for long.
        limit_s, runs = (min(order.limit_s, 30.0), HANGS) if promise == "hang" else (order.limit_s, RUNS)

        async def say(sentence: str) -> None:
            await self.output.line({"event": "shrinking", "says": sentence}, f"  {sentence}")

        async with open_pool(order.tier, order.jobs, limit_s) as pool:

            async def judge(plans: Sequence[Plan]) -> list[bool]:
                found = await pool.ask_all([(failed.seed, plan) for plan in plans])
                return [any(signature(item) == same for item in result.broken) for result in found]

            await self.output.line(
                {"event": "shrinking", "says": f"{promise} of seed {failed.seed}"},
                f"shrinking the plan of seed {failed.seed} while {promise} is broken:",
            )
            shrunk = await Shrinker(plan, judge, width=order.jobs, runs=runs, say=say).run()
            result = await pool.ask(failed.seed, shrunk.plan, history=True)
        path = Path(f"simulate-{order.tier.replace(':', '-')}-{failed.seed}.json")
        says = next((item.says for item in result.broken if item.promise == promise), failed.broken[0].says)
        rest = {"promise": promise, "says": says, **report.build()}
        Case(shrunk.plan, order.tier, failed.seed, rest).write(path)
        record = report.failure_record(result, order.tier, str(path))
        record |= {"event": "shrunk", "file": str(path), "runs": shrunk.runs, "tried": shrunk.tried}
        head = [f"the smallest plan that {shrunk.runs} runs found is in {path}; what it does:"]
        await self.output.line(record, printable_lines([*head, *report.failure_lines(result, order.tier, str(path))]))

    @property
    def _tier(self) -> str:
        assert self._run is not None or self.values.trace
        return self._run.order.tier if self._run is not None else chosen_tier(self.values, self.case)


def printable_lines(lines: list[str]) -> str:
    return "\n".join(printable(line) for line in lines)


def chosen_tier(values: Values, case: Case | None) -> str:
    named: str | None = values.tier
    return named or (case.tier if case is not None and case.tier else None) or "cluster"


def choose(values: Values) -> tuple[Case | None, Order]:
    """What the flags and the file ask for. Raises BadConfig where they contradict one another."""
    from changefeed.simulation.case import read_case
    from changefeed.simulation.runner import Order, cores, new_first

    given = values.given
    case = None if values.plan is None else read_case(Path(values.plan))
    tier = parse_tier(chosen_tier(values, case))
    for one, other in (("seed", "first"), ("seed", "seeds"), ("seed", "minutes"), ("trace", "shrink")):
        if one in given and other in given and (one != "trace" or (values.trace and values.shrink)):
            raise BadConfig(f"--{one} and --{other} exclude each other")
    seed = values.seed
    if seed is None and case is not None and not {"first", "seeds", "minutes"} & given:
        seed = case.seed
    if values.trace and seed is None:
        if values.seeds != 1:
            raise BadConfig("--trace prints one seed: name it with --seed")
        seed = 0 if values.first is None else values.first
    plan = None if case is None else case.plan
    jobs = cores() if values.jobs is None else values.jobs
    if seed is not None:
        return case, Order(tier, seed, 1, plan, None, jobs if values.shrink else 1, values.limit)
    first = new_first() if values.first == "new" else values.first or 0
    seconds = None if values.minutes is None else values.minutes * 60
    seeds = values.seeds if values.seeds is not None or seconds is not None else SEEDS
    return case, Order(tier, first, seeds, plan, seconds, jobs, values.limit)


def parse_tier(text: str) -> str:
    """A tier's name, or MODULE:NAME for one that is not of this package. Raises BadConfig."""
    if text in TIERS or (":" in text and all(part.isidentifier() for part in text.replace(":", ".").split("."))):
        return text
    raise BadConfig(f"there is no tier {text!r:.60}{hint(text, TIERS)}; there are {', '.join(TIERS)}")


def parse_first(text: str) -> int | str:
    return text if text == "new" else parse_version(text)


def parse_minutes(text: str) -> float:
    """More than 0 and at most a week; 1.5 and 90s are understood. Raises ValueError."""
    minutes = parse_duration(text) / 60 if text[-1:].isalpha() else float(text)
    if not 0 < minutes <= MINUTES_MAX:
        raise ValueError(f"write minutes, more than 0 and at most {MINUTES_MAX:,}")
    return minutes


def parse_limit(text: str) -> float:
    limit = parse_duration(text)
    if limit <= 0:
        raise ValueError("write a time, more than 0")
    return limit


def parse_jobs(text: str) -> int:
    jobs = parse_count(text)
    if jobs > JOBS_MAX:
        raise ValueError(f"write a whole number from 1 to {JOBS_MAX:,}")
    return jobs


COMMAND = Command(
    name="simulate",
    run=run,
    options=(
        Option(
            "tier",
            "what is simulated: cluster (the production code on a simulated network, coordinator, store and clock; the "
            "default), stack (with real websockets over byte streams and real SQLite on a simulated disk) or explorer "
            "(the pure machines, all orders of a few steps)",
            parse_tier,
            metavar="TIER",
        ),
        Option("seeds", f"run so many seeds (default {SEEDS}, or as many as --minutes allow)",
               parse_count, metavar="N"),
        Option("seed", "run this seed only", parse_version, metavar="S"),
        Option("first", "the first of the seeds (default 0); new: one that was most likely never run",
               parse_first, metavar="S"),
        Option("plan", "run the faults of this file instead of the drawn ones; a file that --shrink wrote names its "
               "tier and seed too", metavar="FILE"),
        Option("minutes", "begin no seed after so many minutes", parse_minutes, metavar="M"),
        Option("jobs", "run so many seeds at a time, each in a process (default: one per processor)",
               parse_jobs, metavar="J"),
        Option("limit", "a seed that takes longer, in real time, counts as hanging (default 2m)",
               parse_limit, default=120.0, metavar="DURATION"),
        Option("trace", "print the whole history of one seed", kind="flag"),
        Option("shrink", "make the plan of the first failed seed smaller, and write it into a file in this folder",
               kind="flag"),
    ),
    about="Each seed draws faults, runs a whole cluster under virtual time, heals everything, and has its history "
    "judged: nothing lost, nothing twice, nothing out of order, everybody gets to the end. The same seed is the same "
    "run, in any process. A failure says which promise broke, shows the last steps, and names the command that replays "
    "it; ten failures end the run. Exit status 1 if a seed failed, or if something that must be met now and then was "
    "not (from 2,000 seeds on).",
    own_signals=True,
)  # fmt: skip
