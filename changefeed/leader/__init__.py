"""2. Leader: sequences batches under a term, knows what it has seen, commits in groups, then sends receipts.

    machine.py    decides (pure): accepted, already there, reused, gap, superseded, forgotten; what an append holds, and
                  which answers may leave after it
    book.py       what is known of each publisher: its runs of numbers, where recent batches landed (pure)
    effects.py    what the machine asks for, and the facts that come back (pure)
    refusals.py   why the answer is no, in sentences (pure)
    folding.py    which event of an object stands in the snapshot of a feed that keeps one (pure)
    guard.py      which objects have versions, and what is refused because of that (pure)
    checks.py     batches that wait until that is known (pure)
    retention.py  what may be trimmed now (pure)
    looks.py      fresh looks into the log, shared by all who ask
    driver.py     one term in office: waits, looks things up in the log, appends, answers, trims
    folder.py     folds what is durable into the snapshot, beside the appends
    mover.py      moves what applications' own transactions put into an outbox, as a publisher of its own

This file is the contract between a leader and those who bring it batches: an instance's own publishers' desk, or the
far end of a peer link. A leader may be near (leader/driver.py) or far (peer/driver.py); callers cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from changefeed.batch import Batch
from changefeed.wire.messages import Answer, Open, Opened

Answered = Callable[[Answer], None]


class Leader(Protocol):
    """A leader in office, as seen by those who bring it publishes.

    name, epoch, term: who and under what. lost: set once this leader will answer nothing more (the term ended, the
    link broke); whatever it has not answered by then is of unknown outcome and is sent again, to the next one.
    """

    name: str
    epoch: int
    term: str
    lost: trio.Event

    async def open(self, request: Open, channel: str) -> Opened:
        """Admit a publisher. `channel` names the connection it came by (unique per process): batches, `close` and the
        single-session rule of named publishers refer to it. Raises Superseded, Forgotten, AcknowledgedLost,
        PublisherInUse, TooManyPublishers, NotCurrent (also when `lost` is set meanwhile), InvalidName (a reserved id),
        BadMessage (an incarnation that this log never gave). Earlier channels of the same session and publisher, and
        what was opened over this one, are replaced: what they brought is still appended, but answered `not-current`."""

    async def publish(self, channel: str, batch: Batch, answered: Answered) -> None:
        """Take a batch. Returns as soon as there is room for it in the leader's queue (that is the back-pressure);
        `answered` is called once, synchronously, with its number, in the order of the publishes of one channel; where
        the answer is known at once, before this returns; never after `lost` is set. Raises NotCurrent."""

    def close(self, channel: str) -> None:
        """The publisher's connection ended; batches taken are still appended, their answers dropped."""
