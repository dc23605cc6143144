"""The traces of the cluster simulation are behaviours of the abstract specification; broken ones are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from changefeed.simulation.tiers import tier
from simulations.models.trace import Unexplained, validate

Records = list[dict[str, Any]]
#: More of them are a row of the proof.
SEEDS = 200


@cache
def history(seed: int) -> Records:
    return [dict(record) for record in tier("cluster").run(seed).history]


@pytest.mark.parametrize("part", range(4))
def test_what_the_cluster_does_is_a_behaviour_of_the_specification(part: int) -> None:
    """Every record of every seed is a step that the specification allows."""
    for seed in range(part, SEEDS, 4):
        spec = validate(history(seed))
        assert spec.tail > 0 and spec.fence[0] > 0, f"seed {seed} did nothing"


# ---- broken ones


def busy(records: Records) -> bool:
    """Nothing is put back; several leaders, repeated answers, lives that end, groups of several, a reader of all."""
    kinds = {record["f"] for record in records}
    return (
        {"deposed", "repeat", "quit", "effects"} <= kinds
        and not kinds & {"restored", "refused", "trimmed"}
        and any(record["f"] == "entry" and max(record["sizes"]) > 1 for record in records)
        and sum(record["f"] == "event" and record["reader"] == "s0" for record in records) > 2
    )


#: The seed whose history the edits below break: the first one that is busy enough, whatever seeds come to mean.
BUSY = next(seed for seed in range(400) if busy(history(seed)))


def found(records: Records, f: str, where: Callable[[dict[str, Any]], bool] = lambda record: True, nth: int = 0) -> int:
    return [index for index, record in enumerate(records) if record["f"] == f and where(record)][nth]


def plain(record: dict[str, Any]) -> bool:
    return record["reader"] == "s0"


def drop(
    f: str, nth: int = 0, where: Callable[[dict[str, Any]], bool] = lambda record: True
) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        del records[found(records, f, where, nth)]

    return edit


def drop_commit(records: Records) -> None:
    """With its entry: as if the store had not said it."""
    index = found(records, "commit")
    assert records[index + 1]["f"] == "entry"
    del records[index : index + 2]


def early_ack(records: Records) -> None:
    """Acknowledged before the log took it."""
    ack = records.pop(found(records, "acked"))
    records.insert(found(records, "commit"), ack)


def ack_before_the_answer(records: Records) -> None:
    """The log holds it, but no leader knew."""
    index = found(records, "acked", lambda record: not record["repeated"])
    seq = int(records[index]["last"].rsplit(".", 1)[1])
    append = found(records, "append", lambda record: record["outcome"] == "stored" and record["last"] >= seq)
    records.insert(append, records.pop(index))


def early_event(records: Records) -> None:
    event = records.pop(found(records, "event"))
    records.insert(found(records, "commit"), event)


def swap_events(records: Records) -> None:
    one, other = found(records, "event", plain), found(records, "event", plain, 1)
    records[one], records[other] = records[other], records[one]


def twice(f: str) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        index = found(records, f)
        records.insert(index + 1, copy.deepcopy(records[index]))

    return edit


def forge(f: str, name: str, value: Any, nth: int = 0) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        records[found(records, f, nth=nth)][name] = value

    return edit


def other_place(records: Records) -> None:
    """A receipt that names its neighbour."""
    ack = records[found(records, "acked", nth=1)]
    for name in ("first", "last"):
        head, seq = ack[name].rsplit(".", 1)
        ack[name] = f"{head}.{int(seq) + 1}"


def older_epoch(records: Records) -> None:
    """The last commit is of the first term."""
    first, index = records[found(records, "commit")], found(records, "commit", nth=-1)
    for record in (records[index], records[index + 1]):
        record["epoch"], record["term"] = first["epoch"], first["term"]


def phantom(records: Records) -> None:
    records[found(records, "entry")]["keys"][0] = "nobody-0"


def torn_group(records: Records) -> None:
    """A group of several changes becomes two."""
    entry = records[found(records, "entry", lambda record: max(record["sizes"]) > 1)]
    at = next(index for index, size in enumerate(entry["sizes"]) if size > 1)
    entry["sizes"] = [*entry["sizes"][:at], 1, entry["sizes"][at] - 1, *entry["sizes"][at + 1 :]]


def twice_in_the_log(records: Records) -> None:
    """The last entry holds what the first one does."""
    first = records[found(records, "entry")]
    index = [i for i, r in enumerate(records[: found(records, "log")]) if r["f"] == "entry"][-1]
    size = len(first["keys"])
    again = dict(first, seq=records[index]["seq"], epoch=records[index]["epoch"], term=records[index]["term"])
    again["number"] = first["number"] + 1000
    records[index - 1]["last"] = again["seq"] + size - 1
    records[index] = again


def after_death(records: Records) -> None:
    """A life that is over speaks again."""
    index = found(records, "quit")
    who = (records[index]["node"], records[index]["life"])
    said = next(r for r in records[:index][::-1] if (r["node"], r["life"]) == who)
    records.insert(index + 1, copy.deepcopy(said))


def short_log(records: Records) -> None:
    index = found(records, "log")
    records.pop(next(i for i in range(len(records) - 1, index, -1) if records[i]["f"] == "entry"))


def short_effects(records: Records) -> None:
    records[found(records, "effects", plain)]["keys"].pop(0)


def saved_ahead(records: Records) -> None:
    """A cursor is saved before what it covers was given."""
    index = found(records, "handled", plain, 1)
    event = found(records, "event", plain)
    records.insert(event, records.pop(index))


EDITS: dict[str, Callable[[Records], None]] = {
    "a commit is missing": drop_commit,
    "a submit is missing": drop("submit"),
    "a fence is missing": drop("fence"),
    "an event is missing": drop("event", 1, plain),
    "an answer of the log is missing": drop("append", 0, lambda record: record["outcome"] == "stored"),
    "an ack before its commit": early_ack,
    "an ack before the leader knew": ack_before_the_answer,
    "an event before its commit": early_event,
    "two events the other way round": swap_events,
    "an event twice": twice("event"),
    "an ack twice": twice("acked"),
    "an answer of the log twice": twice("append"),
    "an event with another key": forge("event", "key", "other"),
    "an event with other bytes": forge("event", "digest", "0" * 16),
    "an event in another group": forge("event", "group", 10**6),
    "a receipt for another place": other_place,
    "a commit of an older epoch": older_epoch,
    "a commit under another fence": forge("commit", "fence", 10**6, 1),
    "an epoch fenced under another term": forge("fence", "term", "00000000"),
    "a fence that tells another tail": forge("fence", "tail", 10**6),
    "leading without a fence": forge("elected", "epoch", 10**6),
    "a change that nobody submitted": phantom,
    "a torn group": torn_group,
    "a change twice in the log": twice_in_the_log,
    "other bytes in the log": forge("entry", "digests", ["0" * 16] * 50),
    "a number that comes again": forge("entry", "number", 0, 1),
    "words of a dead life": after_death,
    "a log that lost its end": short_log,
    "a reader's database that lost an effect": short_effects,
    "a cursor ahead of what was given": saved_ahead,
    "a reader that goes on elsewhere": forge("connected", "position", "0000000000000000.0.00000000.0"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_broken_trace_is_refused(edit: str) -> None:
    """Dropped, reordered and forged records: each at a record, with a reason."""
    records = copy.deepcopy(history(BUSY))
    EDITS[edit](records)
    with pytest.raises(Unexplained) as refused:
        validate(records)
    assert 0 <= refused.value.index <= len(records) and refused.value.why


def test_the_unbroken_one_is_not() -> None:
    """The history that the edits break."""
    validate(history(BUSY))


def test_a_copy_that_was_put_back_still_holds_the_numbers_below_its_tail() -> None:
    """A leader answers a number that the copy holds with its receipt: cluster seed 1657 of 6433016."""
    records = history(BUSY)
    at = next(index for index, record in enumerate(records) if record["f"] == "repeat")
    tail = max((record["last"] for record in records[:at] if record["f"] == "commit"), default=0)
    lineage = next(record["lineage"] for record in records if record["f"] == "entry" and record.get("lineage"))
    back = {"t": records[at]["t"], "node": "nemesis", "life": 1, "f": "restored", "lineage": lineage}
    validate([*records[:at], {**back, "tail": tail}, records[at]])
    with pytest.raises(Unexplained, match="never held"):
        validate([*records[:at], {**back, "tail": 0}, records[at]])
