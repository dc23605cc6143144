"""How the programs of a run write their history: a file per node, one write(2) per record.

Times are this machine's CLOCK_MONOTONIC also where a process lives in a time namespace of its own (F19): it is told by
how much its clock is ahead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from changefeed.history.records import Lines, Record


class Recorder:
    """ahead_ns: by how much this process's monotonic clock is ahead of the machine's."""

    def __init__(self, path: Path, node: str, life: int, feed: str, ahead_ns: int = 0) -> None:
        self.lines = Lines(path)
        self.node = node
        self.life = life
        self.feed = feed
        self._ahead_ns = ahead_ns

    def record(self, f: str, facts: Mapping[str, Any]) -> Record:
        now = time.monotonic_ns() - self._ahead_ns
        return {"t": now, "node": self.node, "life": self.life, "f": f, "feed": self.feed, **facts}

    def write(self, f: str, /, **facts: Any) -> None:
        """Append one record, stamped with the time. Raises OSError."""
        self.lines.append(self.record(f, facts))

    def write_for(self, node: str, life: int, f: str, /, **facts: Any) -> None:
        """Append one record that another node cannot write any more."""
        self.lines.append({**self.record(f, facts), "node": node, "life": life})

    def write_all(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Append several with one write(2)."""
        made = [self.record(f, facts) for f, facts in records]
        if made:
            self.lines.append(*made)
