"""What a checker says: one promise that a history breaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Broken:
    """One broken promise. promise: "C1" … "C16", or "crash" for an error that left the code. says: a sentence.
    about: facts for tools (keys, seqs)."""

    promise: str
    says: str
    about: dict[str, Any] = field(default_factory=dict)
