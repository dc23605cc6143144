"""One row of a proof: a claim, the figure that was seen, the limit, the verdict; printed as it comes and as a table.

And what all proofs do alike: their flags, which steps are run, the machine in the head, the table, the exit status.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    line: str
    figure: str
    limit: str
    ok: bool
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{'PASS' if self.ok else 'FAIL'}  {self.line}: {self.figure} (limit: {self.limit}) [{self.seconds:.1f} s]"
        )


#: A step yields rows; its name selects it on the command line.
Step = Callable[[], Iterator[Row]]


@dataclass
class Proof:
    rows: list[Row] = field(default_factory=list)

    def run(self, name: str, step: Step) -> None:
        """Run one step; an exception is a failed row, not the end of the proof."""
        print(f"--- {name}", flush=True)
        begun = time.monotonic()
        try:
            for row in step():
                now = time.monotonic()
                timed = Row(row.line, row.figure, row.limit, row.ok, now - begun)
                begun = now
                self.rows.append(timed)
                print(timed, flush=True)
        except Exception as error:
            traceback.print_exc()
            row = Row(
                name, f"{type(error).__name__}: {error}".splitlines()[0][:200], "runs", False, time.monotonic() - begun
            )
            self.rows.append(row)
            print(row, flush=True)

    def table(self) -> str:
        lines = ["| line | figure | limit | verdict | seconds |", "|---|---|---|---|---|"]
        for row in self.rows:
            verdict = "pass" if row.ok else "FAIL"
            lines.append(f"| {row.line} | {row.figure} | {row.limit} | {verdict} | {row.seconds:.1f} |")
        return "\n".join(lines)

    def json(self) -> str:
        return json.dumps([asdict(row) for row in self.rows], indent=1)

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)


def machine() -> str:
    """What these figures were measured on."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    gib = int(memory.split()[1]) / 2**20
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return (
        f"commit {commit.strip()}; {os.cpu_count()} cores, {gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def proof_parser(about: str | None) -> argparse.ArgumentParser:
    """The flags that every proof takes: which steps, and a file for the rows."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="comma-separated names of steps")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    return parser


def run_proof(
    name: str, parser: argparse.ArgumentParser, options: argparse.Namespace, known: Mapping[str, Step]
) -> int:
    """Run the steps that are named, or all; print each row and the table. The exit status: 1 if a row failed."""
    chosen = [step for step in options.only.split(",") if step] or list(known)
    unknown = [step for step in chosen if step not in known]
    if unknown:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(known)}")
    print(f"{name} on {machine()}", flush=True)
    proof = Proof()
    for step in chosen:
        proof.run(step, known[step])
    print(f"\n{machine()}\n\n{proof.table()}\n")
    if options.json is not None:
        options.json.write_text(proof.json())
    failed = [row.line for row in proof.rows if not row.ok]
    print(f"{len(proof.rows)} rows, {len(failed)} failed{': ' + '; '.join(failed) if failed else ''}")
    return 0 if proof.ok else 1
