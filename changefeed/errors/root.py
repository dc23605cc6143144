"""The root of all errors. See changefeed.errors."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Outcome = Literal["refused", "unknown", "none"]


class ChangefeedError(Exception):
    """Root of the tree. `str(error)` is a sentence for people: what was wrong, which limit, what to do."""

    code: ClassVar[str] = "changefeed-error"
    retryable: ClassVar[bool] = False
    outcome: ClassVar[Outcome] = "none"
    close_code: ClassVar[int] = 4400

    def details(self) -> dict[str, Any]:
        """What travels with the error beside code and message; JSON-able."""
        return {}
