"""What a campaign showed: a table per kind of fault, totals, JSON, and a chart of the pauses as SVG."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

from simulations.chaos.kinds import ALWAYS, ELSEWHERE, KINDS

if TYPE_CHECKING:
    from simulations.chaos.rounds import Result

_TOTALS: Final = (
    "acked-events", "acks", "events", "leader-changes", "repeats", "fenced-appends", "unknown-appends", "resumes",
    "resets", "trims", "faults",
)  # fmt: skip


@dataclass(frozen=True)
class Pauses:
    """Seconds without receipts, or without deliveries, after faults of one kind."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else 0.0

    @property
    def p99(self) -> float:
        return sorted(self.values)[max(0, -(-99 * len(self.values) // 100) - 1)] if self.values else 0.0

    @property
    def worst(self) -> float:
        return max(self.values, default=0.0)

    def __str__(self) -> str:
        return f"{self.median:7.2f} {self.p99:7.2f} {self.worst:7.2f}" if self.values else f"{'-':>7} {'-':>7} {'-':>7}"

    def figures(self) -> dict[str, float]:
        return {"median_s": self.median, "p99_s": self.p99, "worst_s": self.worst}


def round_line(result: Result) -> str:
    """One line about a round, and one for each thing that is wrong."""
    counts = result.counts
    lines = [
        f"round {result.seed} ({result.coordinator}): {'clean' if result.ok else 'NOT CLEAN'}; "
        f"{counts['acked-events']} events acknowledged, {counts['leader-changes']} leader changes, "
        f"{counts['faults']} faults, {counts['repeats']} repeats, {counts['fenced-appends']} fenced; "
        f"{result.seconds:.0f} s ({', '.join(f'{name} {took:.0f}' for name, took in result.phases.items())})"
    ]
    lines += [f"  {one['promise']}: {one['says']}" for one in result.broken[:20]]
    lines += [f"  {one}" for one in result.wrong[:20]]
    if not result.ok:
        lines.append(f"  kept in {result.folder}")
    return "\n".join(lines)


def _plain(result: Result) -> dict[str, Any]:
    """A round as JSON, without the pauses that the kinds have together."""
    kept = ("seed", "coordinator", "seconds", "phases", "broken", "wrong", "effects", "folder")
    return {**{name: getattr(result, name) for name in kept}, "counts": dict(result.counts)}


class Report:
    """unavailable: kinds that this machine cannot do, and why. missing: what was wanted and not reached. own_clocks:
    whether instances had monotonic clocks of their own."""

    def __init__(
        self,
        results: Sequence[Result],
        unavailable: Mapping[str, str],
        missing: Mapping[str, int],
        own_clocks: bool = True,
    ) -> None:
        self.own_clocks = own_clocks
        self.results = results
        self.unavailable = dict(unavailable)
        self.missing = dict(missing)
        self.totals: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.effects: dict[str, Counter[str]] = {}
        receipts: dict[str, list[float]] = {}
        deliveries: dict[str, list[float]] = {}
        alone: dict[str, list[float]] = {}
        for result in results:
            self.totals.update(result.counts)
            for kind, seen in result.effects.items():
                self.effects.setdefault(kind, Counter()).update(seen)
            for kind, pauses in result.pauses.items():
                receipts.setdefault(kind, []).extend(pauses["receipts"])
                deliveries.setdefault(kind, []).extend(pauses["deliveries"])
                alone.setdefault(kind, []).extend(pauses["alone"])
        self.receipts = {kind: Pauses(tuple(values)) for kind, values in receipts.items()}
        self.alone = {kind: Pauses(tuple(values)) for kind, values in alone.items()}
        self.deliveries = {kind: Pauses(tuple(values)) for kind, values in deliveries.items()}

    @property
    def ok(self) -> bool:
        return bool(self.results) and all(result.ok for result in self.results) and not self.missing

    @property
    def kinds(self) -> list[str]:
        return [*(kind for kind in KINDS if kind in self.effects), *sorted(set(self.effects) - set(KINDS))]

    def total(self, name: str) -> int:
        return self.totals[name]

    def text(self) -> str:
        lines = [
            "",
            f"{'':43} {'without receipts, s':^23}  {'without deliveries, s':^23}  {'receipts, alone':^20}",
            f"{'fault':22} {'number':10} {'hit/done':>9} {'median':>7} {'p99':>7} {'worst':>7}  "
            f"{'median':>7} {'p99':>7} {'worst':>7}  {'of':>4} {'median':>7} {'worst':>7}  effects",
        ]
        for kind in self.kinds:
            seen = self.effects[kind]
            number = KINDS[kind].numbers if kind in KINDS else "F17"
            effects = ", ".join(
                f"{what} {count}" for what, count in sorted(seen.items()) if what not in ("done", "hit")
            )
            lines.append(
                f"{kind:22} {number:10} {seen['hit']:4}/{seen['done']:<4} "
                f"{self.receipts.get(kind, Pauses(()))}  {self.deliveries.get(kind, Pauses(()))}  "
                f"{self._alone(kind)}  {effects}"
            )
        lines += ["", "alone: nothing else was done for 2 s before it, and until it was over (2 s at least)"]
        lines += ["in all: " + ", ".join(f"{self.totals[name]} {name}" for name in _TOTALS)]
        lines += [f"{number}: {what}" for number, what in ALWAYS if number != "F19" or self.own_clocks]
        if not self.own_clocks:
            lines.append("not available: F19: no time namespaces here")
        lines += [f"not here: {number}: {what}" for number, what in ELSEWHERE]
        lines += [f"not available: {kind} ({KINDS[kind].numbers}): {why}" for kind, why in self.unavailable.items()]
        lines += [f"NOT REACHED: {count} more {name}" for name, count in self.missing.items()]
        bad = [result for result in self.results if not result.ok]
        lines.append(f"{len(self.results)} rounds, {len(bad)} not clean: {'PASS' if self.ok else 'FAIL'}")
        return "\n".join(lines)

    def _alone(self, kind: str) -> str:
        pauses = self.alone.get(kind, Pauses(()))
        figures = f"{pauses.median:7.2f} {pauses.worst:7.2f}" if pauses.values else f"{'-':>7} {'-':>7}"
        return f"{len(pauses.values):4} {figures}"

    def json(self) -> str:
        made: dict[str, Any] = {
            "ok": self.ok,
            "totals": dict(self.totals),
            "kinds": {
                kind: {
                    "numbers": KINDS[kind].numbers if kind in KINDS else "F17",
                    "effects": dict(self.effects[kind]),
                    "receipts": self.receipts.get(kind, Pauses(())).figures(),
                    "deliveries": self.deliveries.get(kind, Pauses(())).figures(),
                    "alone": {
                        **self.alone.get(kind, Pauses(())).figures(),
                        "faults": len(self.alone.get(kind, Pauses(())).values),
                    },
                }
                for kind in self.kinds
            },
            "unavailable": self.unavailable,
            "elsewhere": [list(one) for one in ELSEWHERE],
            "missing": self.missing,
            "rounds": [_plain(result) for result in self.results],
        }
        return json.dumps(made, indent=1)

    def svg(self) -> str:
        """Bars on a logarithmic scale, 10 ms to 100 s: the median is the end of the dark part, the worst the end of the
        light one, p99 a line."""
        width, left, row = 900, 190, 34
        kinds = [kind for kind in self.kinds if kind in self.receipts and self.receipts[kind].values]
        height = 70 + row * len(kinds)

        def at(seconds: float) -> float:
            import math

            share = (math.log10(max(0.01, min(100.0, seconds))) + 2) / 4
            return left + share * (width - left - 20)

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            '<text x="10" y="18" font-size="14">Time without receipts (blue) and without deliveries (green), '
            "per fault: median, p99, worst</text>",
        ]
        for seconds in (0.01, 0.1, 1.0, 10.0, 100.0):
            parts.append(
                f'<line x1="{at(seconds):.0f}" y1="40" x2="{at(seconds):.0f}" y2="{height - 10}" stroke="#ddd"/>'
            )
            parts.append(f'<text x="{at(seconds):.0f}" y="36" text-anchor="middle" fill="#555">{seconds:g} s</text>')
        for number, kind in enumerate(kinds):
            y = 48 + row * number
            parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(kind)}</text>')
            for offset, pauses, dark, light in (
                (0, self.receipts[kind], "#1f5fa8", "#b9d3ee"),
                (13, self.deliveries.get(kind, Pauses(())), "#2c7a3f", "#bfe3c8"),
            ):
                for value, colour in ((pauses.worst, light), (pauses.median, dark)):
                    length = at(value) - at(0.01)
                    parts.append(
                        f'<rect x="{left}" y="{y + offset}" width="{length:.1f}" height="11" fill="{colour}"/>'
                    )
                x = at(pauses.p99)
                parts.append(
                    f'<line x1="{x:.1f}" y1="{y + offset}" x2="{x:.1f}" y2="{y + offset + 11}" stroke="#000"/>'
                )
        parts.append("</svg>")
        return "\n".join(parts) + "\n"
