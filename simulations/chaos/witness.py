"""Reads the log while it is written, for what retention will have trimmed when the round ends: a history needs it all.

It opens the log as any reader does, in this harness's process, and keeps the entries as they are.
"""

from __future__ import annotations

from dataclasses import replace

import trio

from changefeed.batch import Entry
from changefeed.errors import ChangefeedError, TrimmedAway
from changefeed.log import FeedLog
from changefeed.log.urls import open_log

READ_BYTES = 2**20
EVERY_S = 0.1


class Witness:
    """entries: what was seen of the log, from its beginning on and in order; nothing was missed unless `missed`."""

    def __init__(self, url: str, feed: str) -> None:
        self.entries: list[Entry] = []
        self.missed = False
        self._url = url
        self._feed = feed

    async def retain(self, events: int) -> None:
        """Bound the feed to about so many events."""
        log = await open_log(self._url).open(self._feed, create=False)
        try:
            await log.set_settings(replace(await log.settings(), retention_count=events))
        finally:
            await log.aclose()

    async def watch(self) -> None:
        """Read on until cancelled; a log that does not answer is asked again."""
        log = await open_log(self._url).open(self._feed, create=False)
        try:
            while True:
                await self.read(log)
                await trio.sleep(EVERY_S)
        finally:
            with trio.CancelScope(shield=True):
                await log.aclose()

    async def read(self, log: FeedLog) -> None:
        """Everything that is there now."""
        after = self.entries[-1].last_seq if self.entries else 0
        try:
            while found := await log.read(after, READ_BYTES):
                self.entries += found
                after = found[-1].last_seq
        except TrimmedAway:
            self.missed = True
        except ChangefeedError:
            pass
