"""Moves what waits in an outbox: as a publisher of its own, in batches that take their rows out as they are appended.

One batch at a time: until its append is settled its rows are still there, and would be read again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from changefeed.batch import Batch, Entry
from changefeed.errors import ChangefeedError
from changefeed.leader import Answered
from changefeed.log import OUTBOX, Moved, Outbox
from changefeed.settings import Settings
from changefeed.wire.messages import Answer, Open, Opened

logger = logging.getLogger("changefeed.leader")

CHANNEL: Final = "(outbox)"
#: An outbox that was not empty is looked into again so soon, for so long.
EAGER_PAUSE_S: Final = 0.005
EAGER_S: Final = 0.5
#: Looks take no more than one part in so many of the time. They are slow where rows that were moved long ago cannot be
#: cleared away yet: while some transaction of the database stays open.
IDLE_SHARE: Final = 5
#: After an error of the log, or a refusal.
RETRY_S: Final = 0.5


class _Refused(Exception):
    """The leader refused a batch of ours, as it would anybody's: the log is full, say."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Term(Protocol):
    """What of a term is used here."""

    async def open(self, request: Open, channel: str, *, own: bool = False) -> Opened: ...

    async def publish(self, channel: str, batch: Batch, answered: Answered) -> None: ...


class Mover:
    """One term's. `run` moves until it is cancelled; `moving` tells the append which rows its entries take out."""

    def __init__(self, feed: str, outbox: Outbox, term: _Term, settings: Settings) -> None:
        self._feed = feed
        self._outbox = outbox
        self._term = term
        self._settings = settings
        self._number = 0
        self._moved: Moved | None = None

    def moving(self, entries: Sequence[Entry]) -> tuple[Outbox, Moved] | None:
        """The outbox, and what of it these entries hold; None if they hold nothing of it."""
        if self._moved is not None and any(e.publisher == OUTBOX and e.number == self._number for e in entries):
            return self._outbox, self._moved
        return None

    async def run(self) -> None:
        said = ""
        while True:
            try:
                await self._move()
            except (ChangefeedError, _Refused) as error:
                if error.code != said:
                    logger.warning("feed %s: the outbox cannot be moved now; trying again: %s", self._feed, error)
                said = error.code
            await trio.sleep(RETRY_S)

    async def _move(self) -> None:
        """Until something refuses; raises why."""
        request = Open(self._feed, OUTBOX, CHANNEL, named=True)
        opened = await self._term.open(request, CHANNEL, own=True)
        last, eager_until = opened.last_number, float("-inf")
        # What is moved with one append shares it with what publishers send: half of it.
        room = max(self._settings.group_bytes_max, self._settings.append_bytes_max // 2)
        while True:
            begun = trio.current_time()
            moved = await self._outbox.waiting(room)
            if moved is None:
                now = trio.current_time()
                pause = EAGER_PAUSE_S if now < eager_until else self._settings.outbox_poll_s
                await self._outbox.wait(max(pause, (IDLE_SHARE - 1) * (now - begun)))
                continue
            batch = Batch(OUTBOX, opened.incarnation, last, last + 1, moved.sizes, moved.payload)
            self._number, self._moved = batch.number, moved
            answer = await self._publish(batch)
            if answer.code:
                raise _Refused(answer.code, answer.message)
            last = batch.last_number
            eager_until = trio.current_time() + EAGER_S

    async def _publish(self, batch: Batch) -> Answer:
        found: list[Answer] = []
        settled = trio.Event()

        def answered(answer: Answer) -> None:
            found.append(answer)
            settled.set()

        await self._term.publish(CHANNEL, batch, answered)
        await settled.wait()
        return found[0]
