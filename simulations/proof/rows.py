"""One row of a proof: a claim, the figure that was seen, the limit, the verdict; printed as it comes and as a table."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field


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
