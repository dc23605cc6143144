"""What must be true of a history."""

from __future__ import annotations

from collections.abc import Sequence

from changefeed.history import Broken
from changefeed.history.records import Record


def judge(records: Sequence[Record]) -> list[Broken]:
    """Every broken promise."""
    at: dict[int, tuple[str, str]] = {}
    keys: set[str] = set()
    broken = []
    ended = False
    for record in records:
        match record["f"]:
            case "log":
                ended = True
            case "entry":
                for index, (key, digest) in enumerate(zip(record["keys"], record["digests"], strict=True)):
                    at[record["seq"] + index] = (key, digest)
                    if ended:
                        continue
                    if key in keys:
                        broken.append(Broken("C2", f"{key} is in the log twice"))
                    keys.add(key)
    submits = {record["op"]: record for record in records if record["f"] == "submit"}
    for record in records:
        if record["f"] == "acked":
            first = int(record["first"].rpartition(".")[2])
            for index, key in enumerate(submits[record["op"]]["keys"]):
                if at.get(first + index, ("",))[0] != key:
                    broken.append(Broken("C1", f"{key}, acknowledged at {first + index}, is not there"))
        elif record["f"] == "event":
            seq = int(record["position"].rpartition(".")[2])
            if at.get(seq) != (record["key"], record["digest"]):
                broken.append(Broken("C4", f"{record['reader']} was given {record['key']} at {seq}"))
    if not any(record["f"] == "converged" for record in records):
        broken.append(Broken("C14", "the run did not converge"))
    return broken
