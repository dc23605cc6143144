"""What must be true of a history: the promises of changefeed.history, C1 to C16."""

from __future__ import annotations

from collections.abc import Sequence

from changefeed.history import Broken
from changefeed.history.checkers import check
from changefeed.history.records import BadHistory, Record


def judge(records: Sequence[Record]) -> list[Broken]:
    """Every broken promise; "crash" for a history that is none."""
    try:
        return check(records)
    except BadHistory as error:
        return [Broken("crash", f"the run's history cannot be read: {error}")]
