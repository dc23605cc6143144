"""Made-up good histories keep every promise; broken in one place, they break the one that was broken."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from changefeed.history.checkers import CHECKERS, check
from changefeed.history.records import read_file, write_file
from changefeed.testing.histories import MadeUp
from changefeed.testing.history_edits import EDITS, apply

KEPT = Path(__file__).parents[1] / "histories"

# Chance that hypothesis can shrink: a smaller history and a simpler one are found by themselves.
chances = st.randoms(use_true_random=False)
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(chances, st.booleans())
def test_good_histories_are_good(chance: random.Random, restores: bool) -> None:
    """Whatever publishers, leaders, readers and faults do within their promises."""
    assert check(MadeUp(chance, steps=40, restores=restores).history()) == []


@pytest.mark.parametrize("seed", [350, 586, 100157, 100420])
def test_a_reader_of_groups_that_began_in_a_log_that_is_gone_is_no_false_alarm(seed: int) -> None:
    """Where its first group began in the log that was put back, nothing tells."""
    assert check(MadeUp(random.Random(seed), steps=12, restores=True).history()) == []


@SETTINGS
@given(chances, st.sampled_from(list(EDITS)))
def test_an_edit_is_noticed_by_the_checker_of_its_promise(chance: random.Random, name: str) -> None:
    """And the history was good before."""
    history = MadeUp(chance, steps=40).history()
    assert check(history) == []
    broken = apply(name, history, chance)
    assume(broken is not None)
    assert broken is not None
    assert EDITS[name][0] in {found.promise for found in check(broken)}


@pytest.mark.parametrize("name", EDITS)
def test_each_edit_finds_places_and_is_noticed_in_all_of_them(name: str) -> None:
    """Over seeds, with and without a log that is put back: an edit that never finds a place shows nothing."""
    places = 0
    for seed in range(40):
        trims = True if "trimmed" in name or "no longer" in name or "wrong reason" in name else None
        history = MadeUp(random.Random(seed), steps=40, trims=trims, restores=seed % 3 == 0).history()
        broken = apply(name, history, random.Random(seed))
        if broken is not None:
            places += 1
            assert EDITS[name][0] in {found.promise for found in check(broken)}, seed
        if places == 5:
            break
    assert places >= 2


@pytest.mark.parametrize("seed", [137])
def test_what_is_missing_below_something_that_was_lost_is_seen(seed: int) -> None:
    """The next event went away with the storage, unseen; the one that was dropped is in the copy that was put back."""
    name = "an event is dropped"
    history = MadeUp(random.Random(f"proof-{seed}"), restores=True).history()
    broken = apply(name, history, random.Random(f"{seed}-{name}"))
    assert broken is not None and "C5" in {found.promise for found in check(broken)}


def test_every_checker_has_edits() -> None:
    """A checker that no edit breaks could say nothing for ever."""
    assert {promise for promise, _ in EDITS.values()} == set(CHECKERS)


def test_edits_leave_the_good_history_alone() -> None:
    """An edit works on a copy: its twin is still good."""
    history = MadeUp(random.Random(3)).history()
    before = json.dumps(history)
    for name in EDITS:
        apply(name, history, random.Random(1))
    assert json.dumps(history) == before


def verdict_of(path: Path) -> set[str]:
    """The promises that a kept history breaks: they stand in its name, before what it is; none for a good one."""
    return {word for word in path.stem.split("-") if word in CHECKERS}


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.jsonl")), ids=lambda path: path.stem)
def test_kept_histories_get_the_verdict_that_they_got(path: Path) -> None:
    """Whatever the checkers become: `C1-C12-name.jsonl` breaks C1 and C12, and nothing else."""
    assert {found.promise for found in check(list(read_file(path)))} == verdict_of(path)


def test_a_history_survives_its_file(tmp_path: Path) -> None:
    """Judged from a file, it gets the same verdict, in the same words."""
    history = MadeUp(random.Random(5)).history()
    broken = apply("an event is dropped", history, random.Random(5))
    assert broken is not None
    write_file(tmp_path / "h.jsonl", broken)
    assert check(list(read_file(tmp_path / "h.jsonl"))) == check(broken) != []
