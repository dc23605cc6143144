"""What people and programs are told of a run: progress, a table, a failure with all that it takes to look into it.

Lines for people are ordinary text of at most 120 columns; records are what JSON can hold. Nothing here prints.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import trio

from changefeed.simulation.diagram import WIDTH, Diagram, loose
from changefeed.simulation.plan import Plan
from changefeed.simulation.runner import NEVER_FROM, SELDOM_FROM, SHARE, Summary
from changefeed.simulation.workers import Result

#: A failed seed's record (JSON) holds so many of its last history records.
RECORDS_TOLD: Final = 200
PROGRAM: Final = "changefeed simulate"
STEPS_TOLD: Final = 40


@cache
def build() -> dict[str, str]:
    """What was run: the commit where there is one (with + if files differ from it), version, trio, Python."""
    from importlib.metadata import PackageNotFoundError, version

    facts = {"trio": trio.__version__, "python": platform.python_version()}
    try:
        facts["changefeed"] = version("changefeed")
    except PackageNotFoundError:
        pass
    place = Path(__file__).resolve().parents[2]
    if (place / ".git").exists():
        commit = _git(place, "rev-parse", "--short=10", "HEAD")
        if commit:
            dirty = _git(place, "status", "--porcelain", "--untracked-files=no", "--", "changefeed")
            facts["commit"] = commit + ("+" if dirty else "")
    return facts


def _git(place: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(place), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def build_text() -> str:
    """`changefeed 0.1.0, commit 0aee162, trio 0.35.0, Python 3.11.7`."""
    facts = build()
    words = [f"changefeed {facts['changefeed']}"] if "changefeed" in facts else []
    words += [f"commit {facts['commit']}"] if "commit" in facts else []
    return ", ".join([*words, f"trio {facts['trio']}", f"Python {facts['python']}"])


def replay_command(tier: str, seed: int, plan: str | None = None) -> str:
    """The command that runs a seed again. plan: the file that its plan is read from."""
    command = f"{PROGRAM} --tier {shlex.quote(tier)} --seed {seed}"
    return command + (f" --plan {shlex.quote(plan)}" if plan else "")


def minutes(seconds: float) -> str:
    """A time for people: 8.3 s, 4:05, 2:11:40."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:0{2 if hours else 1}}:{whole % 60:02}"


# ---- while it runs


def progress_record(summary: Summary) -> dict[str, Any]:
    return {
        "event": "progress",
        "tier": summary.order.tier,
        "seeds": summary.seeds,
        "failed": len(summary.failed),
        "seconds": round(summary.took_s, 1),
        "seeds_per_minute": round(summary.per_minute, 1),
        "wanted": {name: round(summary.share(name), 4) for name in summary.wanted},
    }


def progress_text(summary: Summary) -> str:
    """One line: how many, how fast, what of that which must be met was met, and what was met least."""
    of = f" of {summary.order.seeds:,}" if summary.order.seeds is not None else ""
    words = [f"{summary.seeds:,}{of} seeds", f"{summary.per_minute:,.0f} a minute", f"{len(summary.failed)} failed"]
    if summary.wanted:
        met = sum(1 for name in summary.wanted if summary.reached[name])
        rarest = min(summary.wanted, key=lambda name: (summary.reached[name], name))
        words.append(f"met {met} of {len(summary.wanted)}, least: {rarest} in {summary.share(rarest):.1%}")
    return "; ".join(words)


# ---- at the end


def summary_record(summary: Summary) -> dict[str, Any]:
    order = summary.order
    return {
        "event": "summary",
        "ok": not summary.problems() and summary.stopped in ("", "time was up"),
        "tier": order.tier,
        "first": order.first,
        "seeds": summary.seeds,
        "asked": order.seeds,
        "failed": [result.seed for result in summary.failed],
        "problems": summary.problems(),
        "stopped": summary.stopped,
        "seconds": round(summary.took_s, 2),
        "seeds_per_minute": round(summary.per_minute, 1),
        "virtual_seconds": round(summary.virtual_s, 1),
        "run_twice": summary.twice,
        "unequal": summary.unequal,
        "slowest": {"seed": summary.slowest_seed, "seconds": round(summary.slowest_s, 2)},
        "seldom": summary.seldom(),
        "wanted": list(summary.wanted),
        "met": {name: {"seeds": summary.reached[name], "times": summary.met[name]} for name in sorted(summary.met)},
        **build(),
    }


def summary_lines(summary: Summary) -> list[str]:
    """The table at the end: what was run, what was met in what share of seeds, the verdict."""
    order, lines = summary.order, [""]
    seeds = f"seed {summary.last}" if summary.seeds == 1 else f"{summary.seeds:,} seeds"
    reach = f" ({order.first} to {summary.last})" if summary.seeds > 1 else ""
    lines.append(f"tier {order.tier}, {seeds}{reach}; {build_text()}")
    processes = f"{order.jobs} processes" if order.jobs > 1 else "1 process"
    lines.append(
        f"{minutes(summary.took_s)} with {processes}, {summary.per_minute:,.0f} seeds a minute; "
        f"{minutes(summary.virtual_s)} of virtual time; slowest: seed {summary.slowest_seed}, {summary.slowest_s:.1f} s"
    )
    if summary.twice:
        same = "all the same" if not summary.unequal else f"{summary.unequal} NOT THE SAME"
        lines.append(f"seeds run twice, under other hash seeds: {summary.twice}, {same}")
    wanted = [name for name in summary.wanted if name not in summary.met and summary.seeds > 1]
    names = sorted(summary.met, key=lambda name: (-summary.reached[name], name)) + wanted
    if names:
        width = min(70, max(len(name) for name in names))
        lines += ["", f"{'met':<{width}}  {'seeds':>9}  {'share':>7}  {'times':>11}"]
    for name in names:
        mark = ""
        if summary.seeds > 1 and name in summary.wanted and summary.share(name) < SHARE:
            mark = "  NEVER" if not summary.reached[name] else "  seldom"
        share = f"{summary.share(name):.2%}"
        lines.append(
            f"{name[:width]:<{width}}  {summary.reached[name]:>9,}  {share:>7}  {summary.met[name]:>11,}{mark}"
        )
    if summary.wanted and 1 < summary.seeds < NEVER_FROM:
        lines.append(f"(below {NEVER_FROM:,} seeds, what was not met counts for nothing; from {SELDOM_FROM:,} on, 1 %)")
    return [*lines, "", verdict(summary)]


def verdict(summary: Summary) -> str:
    stopped = f"; ended early: {summary.stopped}" if summary.stopped else ""
    problems = summary.problems()
    seeds = "1 seed" if summary.seeds == 1 else f"{summary.seeds:,} seeds"
    return (f"FAILED: {'; '.join(problems)}" if problems else f"{seeds}, 0 failed") + stopped


# ---- a failure


def failure_record(result: Result, tier: str, plan_file: str | None = None) -> dict[str, Any]:
    return {
        "event": "failure",
        "tier": tier,
        "seed": result.seed,
        "broken": [{"promise": item.promise, "says": item.says, "about": item.about} for item in result.broken],
        "plan": None if result.plan is None else json.loads(result.plan.to_json()),
        "digest": result.digest,
        "reproduced": result.reproduced,
        "hash_seed": result.hash_seed,
        "command": replay_command(tier, result.seed, plan_file),
        **build(),
        "left_out": result.left_out + max(0, len(result.history) - RECORDS_TOLD),
        "history": result.history[-RECORDS_TOLD:],
    }


def failure_lines(result: Result, tier: str, plan_file: str | None = None) -> list[str]:
    """All that it takes to look into one failed seed."""
    lines = ["", f"SEED {result.seed} of tier {tier} broke a promise ({build_text()})", ""]
    for item in result.broken[:8]:
        lines += _wrapped(f"  {item.promise}: {item.says}")
        for name in ("traceback", "stack"):
            if item.about.get(name):
                lines += [f"      {line}" for line in str(item.about[name]).splitlines()[-30:]]
    if len(result.broken) > 8:
        lines.append(f"  and {len(result.broken) - 8} more")
    lines += ["", *plan_lines(result.plan)]
    if result.history:
        abouts = [item.about for item in result.broken[:8]]
        lines += [
            "",
            "what led there, and the last steps:",
            "",
            *Diagram(result.history, abouts, result.left_out).lines(),
        ]
    lines += ["", f"digest {result.digest or 'none'}; {again(result)}", ""]
    return [*lines, f"replay it:  {replay_command(tier, result.seed, plan_file)}", ""]


def again(result: Result) -> str:
    """Whether a second process saw the same."""
    if result.reproduced is None:
        return f"run once, under PYTHONHASHSEED={result.hash_seed}"
    if result.reproduced:
        return "a second process with another hash seed saw the same"
    return (
        f"A SECOND PROCESS SAW SOMETHING ELSE: the run is not deterministic; this was PYTHONHASHSEED={result.hash_seed}"
    )


def plan_lines(plan: Plan | None) -> list[str]:
    """A plan for people: its options, then a step a line."""
    if plan is None:
        return ["plan: drawn from the seed"]
    lines = [f"plan: {len(plan.steps)} steps"]
    if plan.options:
        lines += _wrapped(f"  options: {loose(dict(plan.options))}")
    for step in plan.steps[:STEPS_TOLD]:
        how = f"  {step.how}" if step.how else ""
        lasts = f" for {step.lasts:.3f} s" if step.lasts else ""
        lines.append(f"  {step.at:9.3f} s  {step.kind} {step.target}{lasts}{how}".rstrip())
    if len(plan.steps) > STEPS_TOLD:
        lines.append(f"  and {len(plan.steps) - STEPS_TOLD} more")
    return lines


def trace_lines(history: Sequence[dict[str, Any]], left_out: int) -> list[str]:
    """A history, a record a line."""
    lines = [f"({left_out:,} records before these were not kept)"] if left_out else []
    for record in history:
        at = int(record.get("t", 0)) / 1e9
        who = f"{record.get('node', '?')}/{record.get('life', '?')}"
        lines.append(f"{at:>11.6f}  {who:<10}  {record.get('f', '?'):<10}  {loose(record)}".rstrip())
    return lines


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, subsequent_indent="      ", break_long_words=True, break_on_hyphens=False)[:12]
