"""What survives a loss of power, in sequences whose answer is known: good ones that lose nothing, bad ones that do."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.simulation.disk.model import (
    Disk,
    Lost,
    Manner,
    Names,
    Step,
    Sync,
    SyncNames,
    Truncate,
    Write,
)

A, B = 1, 2
OLD, NEW = b"o" * 3000, b"n" * 3000


def disk_after(steps: Iterable[Step], content: Iterable[tuple[str, bytes]] = ()) -> Disk:
    disk = Disk.holding(content)
    for step in steps:
        disk.apply(step)
    return disk


def outcomes(disk: Disk, name: str = "a", tries: int = 300) -> set[bytes | None]:
    """All that a loss of power was seen to leave of a file; None: it is not there."""
    return {disk.survivors(random.Random(seed)).get(name) for seed in range(tries)}


def test_what_was_synced_survives_always() -> None:
    """A write, a sync of the file and of the folder: nothing is left to chance, whatever is owed elsewhere."""
    steps = [Names((("a", A),)), Write(A, 0, NEW), Sync(A, 2), SyncNames(2), Names((("b", B),)), Write(B, 0, OLD)]
    assert outcomes(disk_after(steps)) == {NEW}


def test_what_was_not_synced_may_survive_or_not_or_torn() -> None:
    """Whole, not at all, and in parts of sectors: all three are seen."""
    seen = outcomes(disk_after([Write(A, 0, NEW)], [("a", OLD)]))
    assert {OLD, NEW} < seen
    torn = [found for found in seen if found is not None and b"o" in found and b"n" in found]
    assert torn and all(len(found) == 3000 for found in torn)
    for found in torn:
        assert all(len(set(found[at : at + 512])) == 1 for at in range(0, 3000, 512)), "torn inside a sector"


def test_a_later_write_may_survive_without_an_earlier_one() -> None:
    """Nothing orders two writes but a sync between them."""
    unordered = disk_after([Write(A, 0, b"n"), Write(A, 4096, b"n")], [("a", b"o" * 4097)])
    pairs = {(found[0:1], found[4096:]) for found in outcomes(unordered) if found}
    assert pairs == {(b"o", b"o"), (b"o", b"n"), (b"n", b"o"), (b"n", b"n")}
    ordered = disk_after([Write(A, 0, b"n"), Sync(A, 1), Write(A, 4096, b"n")], [("a", b"o" * 4097)])
    pairs = {(found[0:1], found[4096:]) for found in outcomes(ordered) if found}
    assert pairs == {(b"n", b"o"), (b"n", b"n")}


def test_a_write_after_the_sync_began_is_not_covered_by_it() -> None:
    """A sync makes durable what was written before it began, not what another thread wrote meanwhile."""
    assert outcomes(disk_after([Write(A, 0, NEW), Sync(A, 0)], [("a", OLD)])) >= {OLD, NEW}
    assert outcomes(disk_after([Write(A, 0, NEW), Sync(A, 1)], [("a", OLD)])) == {NEW}


def test_the_name_of_a_new_file_is_the_folder_s() -> None:
    """A synced file in a folder that was not synced may be gone; never half of it."""
    made = [Names((("a", A),)), Write(A, 0, NEW), Sync(A, 2)]
    assert outcomes(disk_after(made)) == {None, NEW}
    assert outcomes(disk_after([*made, SyncNames(3)])) == {NEW}


def test_write_beside_sync_rename_sync_is_safe_and_each_step_is_needed() -> None:
    """The well-known sequence gives the old or the new content, and after the last step the new one. Without the sync
    of the file its content may be torn; without that of the folder the old one may come back."""
    write = [Names((("new", B),)), Write(B, 0, NEW)]
    rename = Names((("new", None), ("a", B)))
    held = [("a", OLD)]
    assert outcomes(disk_after([*write, Sync(B, 2), rename, SyncNames(4)], held)) == {NEW}
    assert outcomes(disk_after([*write, Sync(B, 2), rename], held)) == {OLD, NEW}
    without = outcomes(disk_after([*write, rename, SyncNames(3)], held))
    assert b"" in without and any(found not in (OLD, NEW, b"") for found in without)


def test_a_removed_file_may_come_back() -> None:
    """Until the folder is synced."""
    gone = [Names((("a", None),))]
    assert outcomes(disk_after(gone, [("a", OLD)])) == {None, OLD}
    assert outcomes(disk_after([*gone, SyncNames(1)], [("a", OLD)])) == {None}


def test_a_folder_takes_what_is_in_it_along() -> None:
    """A file whose own name is durable is lost with the folder above it; each folder is synced by itself."""
    made = [Names((("f", A),)), Names((("f/a", B),)), Write(B, 0, NEW), Sync(B, 3), SyncNames(3, "f")]
    assert outcomes(disk_after(made), "f/a") == {None, NEW}
    assert outcomes(disk_after([*made, SyncNames(5)]), "f/a") == {NEW}


def test_a_truncation_is_owed_like_a_write() -> None:
    """The old bytes may come back until the file is synced; what is new in it reads as zeros."""
    cut = disk_after([Truncate(A, 10)], [("a", OLD)])
    assert outcomes(cut) == {OLD, OLD[:10]}
    grown = disk_after([Truncate(A, 10), Truncate(A, 20), Sync(A, 2)], [("a", OLD)])
    assert outcomes(grown) == {OLD[:10] + bytes(10)}


def test_a_file_may_have_grown_without_its_bytes() -> None:
    """The size comes first: what lies there is neither the old nor the new content."""
    seen = outcomes(disk_after([Write(A, 3000, NEW)], [("a", OLD)]))
    assert any(found and len(found) == 6000 and set(found[3000:]) - set(b"no\0") for found in seen)
    assert all(found is not None and found[:3000] == OLD for found in seen)


def test_a_failed_sync_loses_for_good() -> None:
    """No later sync brings back what a failed one did not write; only writing it again does."""
    failed = [Write(A, 0, b"nnn"), Lost(A, frozenset({0}))]
    assert outcomes(disk_after([*failed, Sync(A, 2)], [("a", b"ooo")])) == {b"ooo"}
    assert outcomes(disk_after([*failed, Write(A, 0, b"nnn"), Sync(A, 3)], [("a", b"ooo")])) == {b"nnn"}
    reached = [Write(A, 0, b"nnn"), Write(A, 1, b"x"), Lost(A, frozenset({1}))]
    assert outcomes(disk_after(reached, [("a", b"ooo")])) == {b"nnn"}


def test_an_ordered_disk_leaves_only_what_was_at_some_time() -> None:
    """In the manner "ordered" there is a step up to which all is there, over all files, and nothing after it."""
    steps = [Names((("b", B),)), *(Write(file, at, b"n") for at in range(5) for file in (A, B))]
    disk = disk_after(steps, [("a", b"ooooo")])
    times = []
    for until in range(len(steps) + 1):
        past = disk_after(steps[:until], [("a", b"ooooo")])
        times.append(past.content())
    for seed in range(200):
        assert disk.survivors(random.Random(seed), Manner("ordered")) in times


def test_versions_are_what_a_place_held_at_some_time() -> None:
    """In the manner "versions" each sector holds what it held after one of the writes to it, each its own."""
    writes = [Write(A, 0, bytes([n]) * 1024) for n in range(1, 6)]
    disk = disk_after(writes, [("a", bytes(1024))])
    seen = {(found[0], found[512]) for seed in range(400) if (found := survived(disk, seed))}
    assert seen == {(first, second) for first in range(6) for second in range(6)}


def survived(disk: Disk, seed: int) -> bytes:
    found = disk.survivors(random.Random(seed), Manner("versions", 512))["a"]
    assert all(len(set(found[at : at + 512])) == 1 for at in (0, 512))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_chance_alone_decides(seed: int) -> None:
    """The same chance gives the same folder; the disk is not changed by asking."""
    disk = disk_after([Write(A, 0, NEW), Names((("b", B),)), Write(B, 5, NEW)], [("a", OLD)])
    assert disk.survivors(random.Random(seed)) == disk.survivors(random.Random(seed))
    assert disk.owes() == 3


_WRITES = st.builds(Write, st.just(A), st.integers(0, 2000), st.binary(min_size=1, max_size=1200))
_STEPS = st.lists(_WRITES | st.builds(Truncate, st.just(A), st.integers(0, 2500)) | st.just("sync"), max_size=12)


@given(_STEPS, st.integers(0, 2**32), st.binary(max_size=1500))
def test_every_byte_comes_from_somewhere(drawn: list[Write | Truncate | str], seed: int, held: bytes) -> None:
    """Whatever is done: with all of what is owed it is what its user sees, with nothing of it what was synced, and in
    between each byte is one that was durable, or that was written there since, or zero."""
    disk = Disk.holding([("a", held)])
    real, synced, since = bytearray(held), held, []
    for step in drawn:
        if isinstance(step, str):
            disk.apply(Sync(A, disk.count))
            synced, since = bytes(real), []
            continue
        disk.apply(step)
        since.append(step)
        if isinstance(step, Truncate):
            del real[step.size :]
            real.extend(bytes(step.size - len(real)))
        else:
            real.extend(bytes(max(0, step.offset - len(real))))
            real[step.offset : step.offset + len(step.data)] = step.data
    assert disk.survivors(random.Random(seed), Manner("everything")) == {"a": bytes(real)} == disk.content()
    assert disk.survivors(random.Random(seed), Manner("nothing")) == {"a": synced}
    for manner in (Manner("any", 512), Manner("any"), Manner("versions", 512), Manner("ordered")):
        found = disk.survivors(random.Random(seed), manner)["a"]
        for at, byte in enumerate(found):
            may = {synced[at]} if at < len(synced) else set()
            may |= {s.data[at - s.offset] for s in since if isinstance(s, Write) and 0 <= at - s.offset < len(s.data)}
            assert byte in may or byte == 0
