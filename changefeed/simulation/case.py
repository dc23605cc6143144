"""A case: a tier, a seed and a plan in one file, so that a run can be replayed, shrunk, kept and sent to somebody."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from changefeed.errors import BadConfig
from changefeed.simulation.plan import Plan, Step

#: A plan of thousands of steps takes a few hundred KiB; what is much larger is another file.
FILE_BYTES_MAX: Final = 8 * 1024 * 1024
STEPS_MAX: Final = 10_000
OPTIONS_MAX: Final = 1_000
SEED_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Case:
    """What a file says. tier, seed: None where it names none (a bare plan). rest: what else stands in the file."""

    plan: Plan
    tier: str | None = None
    seed: int | None = None
    rest: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is written into a file: one step a line, so that people can edit it."""
        head = {"tier": self.tier, "seed": self.seed, **self.rest}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items() if value is not None]
        options = ",\n".join(f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in self.plan.options)
        steps = ",\n".join(f"      {json.dumps(asdict(step))}" for step in self.plan.steps)
        plan = [
            '  "plan": {',
            '    "options": {' + (f"\n{options}\n    " if options else "") + "},",
            '    "steps": [' + (f"\n{steps}\n    " if steps else "") + "]",
            "  }",
        ]
        return "\n".join(["{", *lines, *plan, "}"]) + "\n"

    def write(self, path: Path) -> None:
        """Put it there, whole or not at all. Raises BadConfig if the file system refuses."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(self.to_json(), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise BadConfig(f"cannot write {path}: {error.strerror}") from error


def read_case(path: Path) -> Case:
    """The case, or the bare plan, in a file. Raises BadConfig with the file's name for everything else."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadConfig(f"cannot read the plan {path}: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise BadConfig(f"{path} is no plan: it is larger than {FILE_BYTES_MAX // 2**20} MiB")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path} is no plan: it is not JSON ({error})") from error
    return case_from(found, str(path))


def case_from(found: Any, where: str) -> Case:
    """A case from what JSON gave. where: its name in errors. Raises BadConfig that says which part is wrong."""
    if not isinstance(found, Mapping):
        raise BadConfig(f"{where} is no plan: write an object with options and steps")
    if "plan" not in found:
        return Case(plan_from(found, where))
    tier, seed = found.get("tier"), found.get("seed")
    if tier is not None and not isinstance(tier, str):
        raise BadConfig(f"{where}: tier must be a text, not {tier!r:.60}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEED_MAX):
        raise BadConfig(f"{where}: seed must be a whole number from 0 to 2**63 - 1, not {seed!r:.60}")
    rest = {str(key): value for key, value in found.items() if key not in ("tier", "seed", "plan")}
    return Case(plan_from(found["plan"], where), tier, seed, rest)


def plan_from(found: Any, where: str) -> Plan:
    """A plan from what JSON gave; its parts are what they must be, and not too many. Raises BadConfig."""
    if not isinstance(found, Mapping) or not isinstance(found.get("steps"), list):
        raise BadConfig(f"{where} is no plan: it has no list of steps")
    options, steps = found.get("options", {}), found["steps"]
    unknown = sorted(str(key) for key in found if key not in ("options", "steps"))
    if unknown:
        raise BadConfig(f"{where} is no plan: nothing reads {unknown[0]!r:.60}; it has options and steps")
    if not isinstance(options, Mapping):
        raise BadConfig(f"{where}: options must be an object of names and values")
    if len(steps) > STEPS_MAX or len(options) > OPTIONS_MAX:
        raise BadConfig(f"{where}: a plan has at most {STEPS_MAX:,} steps and {OPTIONS_MAX:,} options")
    return Plan(
        tuple(_step(step, f"{where}: step {n}") for n, step in enumerate(steps, 1)),
        tuple((str(name), value) for name, value in options.items()),
    )


def _step(found: Any, where: str) -> Step:
    if not isinstance(found, Mapping):
        raise BadConfig(f"{where} must be an object with at and kind")
    names = [item.name for item in fields(Step)]
    for name, value in found.items():
        if name not in names:
            raise BadConfig(f"{where}: a step has no {name!r:.60}; it has {', '.join(names)}")
        if name in ("at", "lasts"):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise BadConfig(f"{where}: {name} must be virtual seconds, 0 or more, not {value!r:.60}")
        elif not isinstance(value, str):
            raise BadConfig(f"{where}: {name} must be a text, not {value!r:.60}")
    missing = [name for name in ("at", "kind") if name not in found]
    if missing:
        raise BadConfig(f"{where} has no {missing[0]!r}")
    return Step(**{str(name): value for name, value in found.items()})
