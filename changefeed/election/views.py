"""What the coordinator said last, how sure that is, and when it must be asked again. Pure."""

from __future__ import annotations

from typing import Final

from changefeed.coordination import LeaderRecord, View

#: The coordinator is asked again after this, doubling.
RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 1.0


class Views:
    """view: the newest one. mine: its leader record is of my present session.

    number: of the request (a synced read, or my own write) that brought the view; 0 if a watch did, which tells
    what was true once. id, connected: the coordinator's. known_epoch: the highest epoch that anybody spoke of.
    need_read: a synced read is wanted. count: how many views were taken. vacant_since: since when nobody leads.
    leaving_since: since when the leader is marked as leaving.
    """

    def __init__(self) -> None:
        self.view: View | None = None
        self.mine = False
        self.number = 0
        self.count = 0
        self.id = ""
        self.connected = False
        self.known_epoch = 0
        self.need_read = True
        self.vacant_since = float("-inf")
        self.leaving_since = float("-inf")
        self._read_after = float("-inf")
        self._write_after = float("-inf")
        self._retry_s = RETRY_MIN_S

    @property
    def record(self) -> LeaderRecord | None:
        return None if self.view is None else self.view.leader

    def read_after(self) -> float:
        return self._read_after

    def write_after(self) -> float:
        return self._write_after

    def answered(self) -> None:
        self._retry_s = RETRY_MIN_S

    def failed(self, now: float, *, write: bool) -> float:
        """The coordinator did not answer; returns when it is asked again. A write may have happened: read first."""
        again = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
        self._read_after = again
        if write:
            self._write_after = again
            self.doubt()
        return again

    def doubt(self) -> None:
        """The view may be out of date: read before anything that needs a synced one."""
        self.need_read = True
        self.number = 0

    def adopt(self, now: float, view: View, mine: bool, number: int) -> bool:
        """Take this view as the newest; True if it names another leader, or another epoch of the same one."""
        before, record = self.record, view.leader
        first = self.view is None
        self.count += 1
        self.view, self.mine, self.number = view, mine, number
        self.known_epoch = max(self.known_epoch, view.epoch)
        if number:
            self.need_read = False
        if record is None:
            if first or before is not None:
                self.vacant_since = now
            return before is not None
        same = before is not None and (before.process, before.epoch) == (record.process, record.epoch)
        if record.leaving and not (same and before is not None and before.leaving):
            self.leaving_since = now
        return not same
