"""The folding rule, case by case, and against a plain model over random logs that are cut anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from changefeed.batch import Entry
from changefeed.change import Change, Key
from changefeed.errors import BadMessage
from changefeed.leader.folding import Folded, Stretch, fold
from changefeed.log import Latest
from changefeed.wire.changes import decode_change, encode_change, split

Log = list[Entry]


def entry(seq: int, *changes: Change, publisher: str = "p") -> Entry:
    payload = b"".join(encode_change(change, 1 << 20) for change in changes)
    return Entry(3, "00000003", seq, 1000 + seq, publisher, 1, 0, 1, (1,) * len(changes), payload, b"")


def log_of(*batches: Sequence[Change]) -> Log:
    made: Log = []
    for changes in batches:
        made.append(entry(made[-1].last_seq + 1 if made else 1, *changes))
    return made


def vm(id: str, op: str = "update", version: int | None = None, body: object = "b") -> Change:
    return Change("vm", id, op, body=body, version=version)


def applied(rows: dict[Key, Latest], folded: Folded) -> dict[Key, Latest]:
    """What a store does."""
    names = [row.key for row in folded.rows] + list(folded.gone)
    assert len(set(names)) == len(names), "an object is named once"
    after = {key: row for key, row in rows.items() if key not in folded.gone}
    return after | {row.key: row for row in folded.rows}


def whole(*changes: Change) -> dict[Key, Latest]:
    return applied({}, fold(0, log_of(changes), ()))


# ---- cases


def test_the_latest_event_of_an_object_is_its_row() -> None:
    """With the stamp and the bytes that it has in the log."""
    made = log_of([vm("a"), vm("b")], [Change("net", "a", "create", body=1), vm("a", body={"state": "up"})])

    rows = applied({}, fold(0, made, ()))

    assert {key: row.seq for key, row in rows.items()} == {("vm", "a"): 4, ("vm", "b"): 2, ("net", "a"): 3}
    row = rows["vm", "a"]
    assert (row.epoch, row.term, row.time, row.publisher, row.version) == (3, "00000003", 1003, "p", None)
    assert row.payload is not None
    assert decode_change(row.payload) == vm("a", body={"state": "up"})


def test_a_lower_version_is_ignored_and_an_equal_one_is_not() -> None:
    assert whole(vm("a", version=5), vm("a", version=4))["vm", "a"].seq == 1
    assert whole(vm("a", version=5), vm("a", version=5))["vm", "a"].seq == 2
    assert whole(vm("a", version=5), vm("a", version=6))["vm", "a"].version == 6


def test_a_change_without_version_takes_the_place_and_keeps_the_highest_version() -> None:
    """So a late one below it is still known to be late."""
    rows = whole(vm("a", version=5), vm("a", body="new"), vm("a", version=4))
    assert (rows["vm", "a"].seq, rows["vm", "a"].version) == (2, 5)


def test_a_delete_leaves_a_tombstone_where_a_version_is_known() -> None:
    """Its own or that of the object; a late update below it does not resurrect the object, one from it on does."""
    for deleted, version in ((vm("a", "delete", 6), 6), (vm("a", "delete"), 5)):
        tomb = whole(vm("a", version=5), deleted, vm("a", version=4))["vm", "a"]
        assert (tomb.seq, tomb.version, tomb.payload) == (2, version, None)
        assert whole(vm("a", version=5), deleted, vm("a", version=6))["vm", "a"].payload is not None
    assert whole(vm("a", "delete", 1))["vm", "a"].payload is None, "of an object that nobody has seen, too"
    assert whole(vm("a", version=5), vm("a", "delete", 4))["vm", "a"].payload is not None, "a late delete"


def test_a_delete_without_any_version_drops_the_row() -> None:
    folded = fold(0, log_of([vm("a"), vm("a", "delete")]), ())
    assert (folded.rows, folded.gone, folded.versioned) == ((), (("vm", "a"),), False)
    assert fold(1, [entry(2, vm("a", "delete"))], ()).gone == (("vm", "a"),), "also one that is not told to be there"


def test_another_op_counts_with_a_body_only() -> None:
    """Without one it says nothing of the object, whatever its version; a bare update takes the place."""
    assert whole(vm("a"), vm("a", "reboot"))["vm", "a"].seq == 2
    assert whole(vm("a", version=2), vm("a", "reboot", 9, None))["vm", "a"].version == 2
    assert whole(vm("a", "reboot", 1, None)) == {}
    assert whole(vm("a"), vm("a", body=None))["vm", "a"].seq == 2


def test_what_was_known_before_counts() -> None:
    known = whole(vm("a", version=5), vm("b", "delete", 7), vm("c")).values()
    folded = fold(3, [entry(4, vm("a", version=4), vm("b", version=6), vm("c", version=0))], known)
    assert [(row.id, row.version) for row in folded.rows] == [("c", 0)]
    assert folded.versioned


def test_a_stretch_takes_entries_in_order_and_knows_its_objects() -> None:
    stretch = Stretch(0)
    with pytest.raises(ValueError, match="does not follow"):
        stretch.add(entry(2, vm("a")))
    stretch.add(entry(1, vm("a"), vm("b")))
    stretch.add(entry(3, vm("a")))
    assert (list(stretch.objects), stretch.to, stretch.versioned) == ([("vm", "a"), ("vm", "b")], 3, False)
    with pytest.raises(BadMessage):
        stretch.add(Entry(3, "00000003", 4, 0, "p", 1, 0, 1, (1,), b"\xc1", b""))


# ---- against a model


def test_a_truncate_of_the_outbox_drops_every_object_of_its_resource() -> None:
    """Also versions and tombstones; what comes behind it stands; of anybody else the word means nothing."""
    other = Change("net", "a", "create", body=1)
    truncate = Change("vm", "*", "truncate")
    changes = (vm("a", version=5), vm("b", "delete", 6), other, truncate, vm("a", version=1))

    folded = fold(0, [entry(1, *changes, publisher="outbox")], ())

    assert folded.emptied == ("vm",)
    assert {row.key: (row.seq, row.version) for row in folded.rows} == {("vm", "a"): (5, 1), ("net", "a"): (3, None)}
    assert folded.gone == (("vm", "b"),)
    assert not fold(0, [entry(1, *changes)], ()).emptied


def model(made: Iterable[Entry]) -> dict[Key, tuple[int, int | None, bool]]:
    """seq, version and life of each object, found by looking back over all of its changes."""
    history: dict[Key, list[tuple[int, Change]]] = {}
    for each in made:
        for offset, change in enumerate(changes_of(each)):
            history.setdefault((change.resource, change.id), []).append((each.seq + offset, change))
    rows: dict[Key, tuple[int, int | None, bool]] = {}
    for key, told in history.items():
        told = [(seq, c) for seq, c in told if c.op in ("create", "update", "delete") or c.body is not None]
        stands = [
            (seq, c)
            for at, (seq, c) in enumerate(told)
            if c.version is None or all((before.version or 0) <= c.version for _, before in told[:at])
        ]
        if not stands:
            continue
        seq, last = stands[-1]
        upto = [c.version for at, c in told if at <= seq and c.version is not None]
        version = max(upto, default=None)
        if last.op != "delete" or version is not None:
            rows[key] = (seq, version, last.op != "delete")
    return rows


def changes_of(each: Entry) -> list[Change]:
    return [decode_change(data) for data in split(each.payload)]


some_changes = st.builds(
    Change,
    resource=st.sampled_from(["vm", "net"]),
    id=st.sampled_from(["a", "b", "c"]),
    op=st.sampled_from(["create", "update", "delete", "reboot"]),
    body=st.none() | st.integers(0, 9),
    version=st.none() | st.integers(0, 4),
)
logs = st.lists(st.lists(some_changes, min_size=1, max_size=5), max_size=8).map(lambda batches: log_of(*batches))


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(logs, st.data())
def test_folding_in_any_stretches_is_what_the_model_says(made: Log, data: st.DataObject) -> None:
    """Wherever the log is cut; where the snapshot has no version, without being told what it holds."""
    rows: dict[Key, Latest] = {}
    after, versioned, rest = 0, False, list(made)
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        part, rest = rest[:cut], rest[cut:]
        changed = {(c.resource, c.id) for each in part for c in changes_of(each)}
        known = [row for key, row in rows.items() if key in changed] if versioned else []
        folded = fold(after, part, known)
        rows = applied(rows, folded)
        versioned, after = versioned or folded.versioned, part[-1].last_seq
        assert {row.key for row in folded.rows} | set(folded.gone) <= changed

    assert {key: (row.seq, row.version, row.payload is not None) for key, row in rows.items()} == model(made)
    assert versioned == any(c.version is not None for each in made for c in changes_of(each))
    places = {each.seq + i: change for each in made for i, change in enumerate(changes_of(each))}
    for row in rows.values():
        assert row.payload is None or decode_change(row.payload) == places[row.seq]
