"""A history under an edit's hands, and the list of edits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from changefeed.history.records import Record

Edit = Callable[["Bench"], bool]

#: Name of the edit -> (the promise that it breaks, the edit).
EDITS: Final[dict[str, tuple[str, Edit]]] = {}


def edit(promise: str, name: str) -> Callable[[Edit], Edit]:
    def register(function: Edit) -> Edit:
        EDITS[name] = promise, function
        return function

    return register


class Bench:
    """A history under an edit's hands: what edits need to find a place."""

    def __init__(self, records: list[Record], chance: random.Random) -> None:
        self.records = records
        self.chance = chance
        self.dump = next(n for n, record in enumerate(records) if record["f"] == "log")
        self.log = records[self.dump]
        self.floor = seq_of(self.log["floor"])
        self.restored = any(record["f"] == "restored" for record in records)
        self.commits = self.all("commit")

    def all(self, f: str, fits: Callable[[Record], bool] = lambda record: True) -> list[Record]:
        return [record for record in self.records if record["f"] == f and fits(record)]

    def pick(self, choice: list[Any]) -> Any:
        """One of them, or None."""
        return self.chance.choice(choice) if choice else None

    @property
    def entries(self) -> list[Record]:
        """What the log itself holds."""
        return [record for record in self.records[self.dump :] if record["f"] == "entry"]

    def held(self) -> dict[int, Record]:
        """seq -> the entry that holds it."""
        return {seq: entry for entry in self.entries for seq in span(entry)}

    def at(self, record: Record) -> int:
        return next(n for n, one in enumerate(self.records) if one is record)

    def remove(self, record: Record) -> bool:
        del self.records[self.at(record)]
        return True

    def move_behind(self, record: Record, other: Record) -> bool:
        """Put a record behind another one, at that one's time."""
        self.remove(record)
        record["t"] = other["t"]
        self.records.insert(self.at(other) + 1, record)
        return True

    def insert_behind(self, other: Record, f: str, **facts: Any) -> bool:
        made = {"t": other["t"], "node": other["node"], "life": other["life"], "f": f, "feed": other["feed"], **facts}
        self.records.insert(self.at(other) + 1, made)
        return True

    def acks(self) -> list[Record]:
        """Receipts for what the log itself holds."""
        held = self.held()
        return self.all("acked", lambda ack: self.names(held, ack["first"]))

    def names(self, held: dict[int, Record], position: str) -> bool:
        """Whether a position is one of the log's own entries."""
        entry = held.get(seq_of(position))
        return entry is not None and self.stamp(entry) == stamp_of(position)

    def stamp(self, entry: Record) -> str:
        return f"{entry['lineage']}.{entry['epoch']}.{entry['term']}"

    def submit_of(self, op: str) -> list[Record]:
        return self.all("submit", lambda submit: submit["op"] == op)

    def lives(self) -> Iterator[list[Record]]:
        """The records of each life of a reader, `reader` first; a reset ends one."""
        current: dict[str, list[Record]] = {}
        for record in self.records:
            if "reader" in record and record["f"] != "effects":
                if record["f"] == "reader" or record["reader"] not in current:
                    if record["reader"] in current:
                        yield current.pop(record["reader"])
                    current[record["reader"]] = []
                current[record["reader"]].append(record)
        yield from current.values()

    def events(self) -> list[tuple[list[Record], int]]:
        """Events of what the log itself holds: (records of the life, index in it)."""
        held = self.held()
        return [
            (life, n)
            for life in self.lives()
            for n, record in enumerate(life)
            if record["f"] == "event" and self.names(held, record["position"])
        ]


def span(entry: Record) -> range:
    return range(entry["seq"], entry["seq"] + len(entry["keys"]))


def seq_of(position: str | int) -> int:
    return int(str(position).rpartition(".")[2])


def stamp_of(position: str) -> str:
    return position.rpartition(".")[0]


def later_epoch(position: str) -> str:
    lineage, epoch, term, seq = position.split(".")
    return f"{lineage}.{int(epoch) + 1}.{term}.{seq}"


def shifted(position: str, by: int) -> str:
    return f"{stamp_of(position)}.{seq_of(position) + by}"
