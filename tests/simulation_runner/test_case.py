"""Plans in files: whatever is written can be read again, and what is no plan gets a sentence with the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from changefeed.errors import BadConfig
from changefeed.simulation.case import FILE_BYTES_MAX, STEPS_MAX, Case, read_case
from changefeed.simulation.plan import Plan, Step

PLAN = Plan((Step(1.5, "kill", "leader", 0.5, "x"), Step(2.0, "cut")), (("way_s", 0.1), ("readers", [{"who": "s0"}])))


def test_a_case_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    Case(PLAN, "cluster", 17, {"promise": "C1"}).write(path)
    assert read_case(path) == Case(PLAN, "cluster", 17, {"promise": "C1"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["case.json"]


def test_a_bare_plan_and_an_empty_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json())
    assert read_case(path) == Case(PLAN)
    Case(Plan(())).write(path)
    assert read_case(path) == Case(Plan(()))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "write an object"),
        ({"options": {}}, "no list of steps"),
        ({"steps": [], "optoins": {}}, "nothing reads 'optoins'"),
        ({"steps": [], "options": []}, "options must be"),
        ({"steps": [3]}, "step 1 must be an object"),
        ({"steps": [{"at": 1}]}, "step 1 has no 'kind'"),
        ({"steps": [{"at": 1, "kind": "kill"}, {"at": -1, "kind": "kill"}]}, "step 2: at must be virtual seconds"),
        ({"steps": [{"at": True, "kind": "kill"}]}, "at must be virtual seconds"),
        ({"steps": [{"at": 1, "kind": 7}]}, "kind must be a text"),
        ({"steps": [{"at": 1, "kind": "kill", "whom": "a"}]}, "a step has no 'whom'"),
        ({"steps": [{"at": 1, "kind": "kill"}] * (STEPS_MAX + 1)}, "at most 10,000 steps"),
        ({"plan": {"steps": []}, "seed": "7"}, "seed must be a whole number"),
        ({"plan": {"steps": []}, "seed": -1}, "seed must be a whole number"),
        ({"plan": {"steps": []}, "tier": 3}, "tier must be a text"),
        ('{"steps": [{"at": NaN, "kind": "kill"}]}', "at must be virtual seconds"),
    ],
)
def test_what_is_no_plan_is_told_with_the_files_name(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BadConfig) as caught:
        read_case(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_files_that_cannot_be_read_or_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="No such file"):
        read_case(tmp_path / "missing.json")
    with pytest.raises(BadConfig, match="Is a directory"):
        read_case(tmp_path)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (FILE_BYTES_MAX + 1))
    with pytest.raises(BadConfig, match="larger than 8 MiB"):
        read_case(large)
    with pytest.raises(BadConfig, match="cannot write"):
        Case(PLAN).write(tmp_path / "no such folder" / "case.json")
