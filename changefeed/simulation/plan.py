"""Faults as data: drawn first, printed, kept as JSON, replayed and shrunk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """At `at` virtual seconds do `kind` to `target` (an instance, a client, "leader", or "" for all) for `lasts`
    seconds. how: what else this kind needs (another end, a point, a way)."""

    at: float
    kind: str
    target: str = ""
    lasts: float = 0.0
    how: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """options: the swarm's switches of this seed (network, workload, which pauses are on), as name to value."""

    steps: tuple[Step, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)

    def to_json(self) -> str:
        return json.dumps({"options": dict(self.options), "steps": [asdict(step) for step in self.steps]})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises ValueError for what is no plan."""
        try:
            found = json.loads(text)
            steps = tuple(Step(**step) for step in found["steps"])
            return cls(steps, tuple(dict(found.get("options", {})).items()))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no plan: {error}") from None
