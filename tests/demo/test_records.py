"""Records are whole or never happened; gauges can be read from outside."""

from __future__ import annotations

from pathlib import Path

from changefeed.demo.records import Gauge, Records
from changefeed.demo.verdict import read_lines


def test_records_go_on_after_a_cut_off_one(tmp_path: Path) -> None:
    """A record that a kill cut off is dropped by whoever goes on with the file."""
    path = tmp_path / "r.jsonl"
    records = Records(path)
    records.write("event", seq=1)
    records.write("event", seq=2)
    records.close()
    with path.open("a") as file:
        file.write('{"f":"event","seq":3')
    records = Records(path)
    last = records.last("event")
    assert last is not None and last["seq"] == 2
    records.write("event", seq=3)
    records.close()
    assert [record["seq"] for record in read_lines(path)] == [1, 2, 3]


def test_a_file_with_nothing_but_a_remainder_is_empty(tmp_path: Path) -> None:
    """Also when the very first record was cut off, however long it is."""
    path = tmp_path / "r.jsonl"
    path.write_text("x" * 200_000)
    records = Records(path)
    assert records.last("event") is None
    records.close()
    assert path.read_text() == ""


def test_gauges_are_seen_from_outside(tmp_path: Path) -> None:
    """What one process sets another one reads."""
    ours, theirs = Gauge(tmp_path / "g"), Gauge(tmp_path / "g")
    ours.set("sent", 7)
    ours.set("seq", 2**40)
    assert (theirs.get("sent"), theirs.get("seq"), theirs.get("answered")) == (7, 2**40, 0)
    ours.close()
    theirs.close()
