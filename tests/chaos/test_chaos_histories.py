"""Histories that chaos kept since something was wrong, cut down: the checkers say today what they said then."""

from __future__ import annotations

from pathlib import Path

from changefeed.history.checkers import check
from changefeed.history.records import Record, read_history

FOLDER = Path(__file__).parents[1] / "histories" / "chaos"


def broken(records: list[Record]) -> set[str]:
    return {one.promise for one in check(records)}


def test_a_filtered_group_that_was_given_twice() -> None:
    """A reader of whole groups, with a filter, was killed behind a group of which it had had its part: it was begun at
    that group's first event again (see tests/serving/test_finding_filtered_groups.py). Without the repetition all is
    well."""
    records = read_history(FOLDER / "filtered-group-given-twice.jsonl")
    assert broken(records) == {"C5", "C10"}
    good: list[Record] = []
    for record in records:
        seq = int(record.get("position", "0").rpartition(".")[2])
        third = record["node"] == "s3" and record["life"] == 3
        if third and record["f"] == "connected":
            record = {**record, "position": record["position"].rpartition(".")[0] + ".400"}
        elif third and record["f"] in ("event", "handled", "bookmark") and seq <= 400:
            continue
        elif record["f"] == "effects":
            record = {**record, "keys": list(dict.fromkeys(record["keys"]))}
        good.append(record)
    assert check(good) == []
