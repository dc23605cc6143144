"""Why a leader says no, in sentences for people, and which errors of the log end a term (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from changefeed.batch import Batch
from changefeed.change import SEQ_MAX
from changefeed.errors import (
    AppendOutcomeUnknown,
    BadMessage,
    ChangefeedError,
    Forgotten,
    LogError,
    LogUnavailable,
    NumberGap,
    NumberReused,
    NumberSkipped,
    OutcomeUnknown,
    PositionTooOld,
    PublisherInUse,
    Superseded,
)
from changefeed.leader.book import Run
from changefeed.wire.messages import Answer, Open

if TYPE_CHECKING:
    from changefeed.log import Look


def ends_term(error: ChangefeedError) -> str | None:
    """Why a term ends over an error of the log; None: it goes on."""
    if not isinstance(error, LogError) or isinstance(error, LogUnavailable):
        return None
    return "outcome-unknown" if isinstance(error, AppendOutcomeUnknown) else error.code


def refusal(batch: Batch, error: ChangefeedError, count: int | None = None) -> Answer:
    """count: how many of the batch's changes are refused (None: all)."""
    return Answer(batch.number, count or batch.count, code=error.code, message=str(error), details=error.details())


def malformed(batch: Batch, run: Run) -> str:
    if (batch.publisher, batch.incarnation) != (run.known.publisher, run.incarnation):
        return (
            f"the batch is of publisher {batch.publisher!r}, incarnation {batch.incarnation}, but this connection "
            f"was opened for {run.known.publisher!r}, incarnation {run.incarnation}"
        )
    if not batch.sizes or min(batch.sizes) < 1 or batch.count > len(batch.payload):
        return "a batch holds at least one group, and each group at least one change"
    if not 0 <= batch.after < batch.number or batch.last_number > SEQ_MAX:
        return f"number {batch.number} after {batch.after}: numbers go from 1 to 2**53 - 1, `after` lies below"
    return ""


def gap(batch: Batch, expected: int) -> NumberGap:
    return NumberGap(
        f"publisher {batch.publisher!r} sent number {batch.number} after {batch.after}, but the last number that the "
        f"log holds is {expected}; resend from the first number that was not answered"
    )


def reused(batch: Batch) -> NumberReused:
    return NumberReused(
        f"publisher {batch.publisher!r} sent number {batch.number} again with other changes or in another group: its "
        f"outbox or file was copied, restored or edited; publish the rest under a new publisher id"
    )


def in_use(publisher: str) -> PublisherInUse:
    return PublisherInUse(f"publisher {publisher!r} is in use by another process; stop that one or choose another name")


def skipped(batch: Batch) -> NumberSkipped:
    return NumberSkipped(
        f"number {batch.number} of publisher {batch.publisher!r} was never stored, and higher ones were: it was "
        f"refused before, or left out; nothing is stored out of order, so publish it under another publisher id"
    )


def trimmed(batch: Batch) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"number {batch.number} of publisher {batch.publisher!r} was handled before, but what the log held there has "
        f"been trimmed by retention: its position, and whether it held these changes, can no longer be told"
    )


def superseded(publisher: str, incarnation: int, last: int | None) -> Superseded:
    held = "nothing of it is held any more" if last is None else f"its last number stored is {last}"
    message = (
        f"incarnation {incarnation} of publisher {publisher!r} has been superseded by a newer one; {held}; to go on, "
        "open without an incarnation"
    )
    return Superseded(message, last)


def unknown_incarnation(publisher: str, incarnation: int, look: Look) -> ChangefeedError:
    if incarnation <= look.incarnations:
        return Forgotten(
            f"the log holds nothing of publisher {publisher!r}, incarnation {incarnation}, any more: retention has "
            f"trimmed it; open without an incarnation to get a new one"
        )
    return BadMessage(
        f"incarnation {incarnation} of publisher {publisher!r} was never given by this log (its counter stands at "
        f"{look.incarnations}): the log was replaced by an older copy or another one; open without an incarnation"
    )


def lost_receipt(request: Open, look: Look) -> str | None:
    """Why the log no longer holds a publisher's last receipt; None if it does, or if retention trimmed it."""
    problem = None if request.last_receipt is None else look.check(request.last_receipt)
    if problem is None or isinstance(problem, PositionTooOld):
        return None
    return f"what was acknowledged to publisher {request.publisher!r} is no longer in the log: {problem}"
