"""One file per promise: each states it, what breaks it, and has `check(view) -> list[Broken]`. Pure, n log n.

from changefeed.history.checkers import check
broken = check(records)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from changefeed.history.broken import Broken
from changefeed.history.checkers import (
    bookmark,
    cursor,
    duplicate,
    durable,
    epochs,
    exactly_once,
    fence,
    honest_errors,
    liveness,
    lost_ack,
    phantom,
    publisher_order,
    real_time,
    recovery,
    same_value,
    vacuous,
)
from changefeed.history.records import Record
from changefeed.history.view import View

__all__ = ["CHECKERS", "check", "check_view", "views_of"]

#: Promise -> its checker, in order.
CHECKERS: Final[dict[str, Callable[[View], list[Broken]]]] = {
    module.PROMISE: module.check
    for module in (
        lost_ack,
        duplicate,
        phantom,
        same_value,
        exactly_once,
        publisher_order,
        real_time,
        epochs,
        fence,
        cursor,
        bookmark,
        durable,
        honest_errors,
        liveness,
        recovery,
        vacuous,
    )
}


def check(history: Sequence[Record], *, limits: Mapping[str, float] | None = None) -> list[Broken]:
    """What a history breaks, by promise; [] if it keeps all of them.

    history: records in order. limits: C15's, kind of fault -> seconds, beside those that the history sets. A history of
    several feeds is judged feed by feed. Raises BadHistory for what is no history.
    """
    return [broken for view in views_of(history) for broken in check_view(view, limits=limits)]


def check_view(view: View, *, limits: Mapping[str, float] | None = None) -> list[Broken]:
    """The same of a history that is indexed already."""
    found: list[Broken] = []
    for promise, checker in CHECKERS.items():
        found += recovery.check(view, limits) if promise == recovery.PROMISE else checker(view)
    return found


def views_of(history: Sequence[Record]) -> list[View]:
    """A view of each feed; records of no single feed are of every one."""
    feeds = sorted({record.get("feed", "") for record in history} - {""})
    if len(feeds) < 2:
        return [View(enumerate(history), feeds[0] if feeds else "")]
    return [View(_of_feed(history, feed), feed) for feed in feeds]


def _of_feed(history: Sequence[Record], feed: str) -> Iterable[tuple[int, Record]]:
    return ((at, record) for at, record in enumerate(history) if record.get("feed", "") in ("", feed))
