"""Records in memory and in files: nothing is lost to a SIGKILL, and what is no history is told with file and line."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from changefeed.history.checkers import check, views_of
from changefeed.history.facts import digest_of_change, entry_facts, event_facts, submit_facts
from changefeed.history.records import (
    BadHistory,
    FileHistory,
    Lines,
    MemoryHistory,
    in_order,
    read_file,
    read_history,
    write_file,
)

WRITER = """
import sys
from pathlib import Path
from changefeed.history.records import FileHistory
history = FileHistory(Path(sys.argv[1]), "p0", int(sys.argv[2]), "vmapi")
number = 0
while True:
    number += 1
    history.write("unknown", op=f"o{number}", code="x" * (number % 300))
    if number == 200:
        print("there", flush=True)
"""


def test_a_memory_history_keeps_order_time_and_writer() -> None:
    """Records carry the time at which they were written, who wrote them, and the feed."""
    now = iter([5, 5, 9])
    history = MemoryHistory(lambda: next(now), "vmapi")
    p0, s0 = history.writer("p0"), history.writer("s0", 2)
    p0("submit", op="o1")
    s0("bookmark", position="x")
    p0("acked", op="o1", feed="other")
    assert history.records == [
        {"t": 5, "node": "p0", "life": 1, "f": "submit", "feed": "vmapi", "op": "o1"},
        {"t": 5, "node": "s0", "life": 2, "f": "bookmark", "feed": "vmapi", "position": "x"},
        {"t": 9, "node": "p0", "life": 1, "f": "acked", "feed": "other", "op": "o1"},
    ]


def test_a_saved_history_is_read_as_it_was(tmp_path: Path) -> None:
    """Also with names in every script, and with a lone surrogate, which has no UTF-8 form."""
    history = MemoryHistory(lambda: 1, "vmapi")
    history.writer("p0")("submit", op="o1", keys=["ключ", "键\n", "\udc80"], digests=["", "", ""], name=None)
    history.save(tmp_path / "h.jsonl")
    assert list(read_file(tmp_path / "h.jsonl")) == history.records


@pytest.mark.processes
def test_a_sigkill_at_any_moment_loses_no_written_record(tmp_path: Path) -> None:
    """What is there is a run without a hole; the next life goes on behind it."""
    path = tmp_path / "p0.jsonl"
    for life in (1, 2, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(life)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        mine = [record["op"] for record in read_file(path) if record["life"] == life]
        assert mine == [f"o{n}" for n in range(1, len(mine) + 1)]
        assert len(mine) >= 200
    assert [record["life"] for record in read_file(path)] == sorted(record["life"] for record in read_file(path))


def test_who_goes_on_with_a_file_drops_what_was_cut_off(tmp_path: Path) -> None:
    """However long it is; a reader leaves it out, too."""
    path = tmp_path / "s0.jsonl"
    first = FileHistory(path, "s0")
    first.write("bookmark", reader="s0", position="x.1")
    first.close()
    with path.open("a") as file:
        file.write('{"t":1,"f":"event"' + "x" * 200_000)
    assert [record["position"] for record in read_file(path)] == ["x.1"]
    second = FileHistory(path, "s0", 2)
    second.write("bookmark", reader="s0", position="x.2")
    second.close()
    assert [(record["life"], record["position"]) for record in read_file(path)] == [(1, "x.1"), (2, "x.2")]


def test_several_records_in_one_write(tmp_path: Path) -> None:
    """What happened in one step is there in its order."""
    history = FileHistory(tmp_path / "s0.jsonl", "s0", feed="vmapi")
    history.write_all([("event", {"key": "a"}), ("handled", {"position": "x.1"})])
    history.write_all([])
    found = list(read_file(tmp_path / "s0.jsonl"))
    assert [record["f"] for record in found] == ["event", "handled"]
    assert {record["feed"] for record in found} == {"vmapi"}
    assert history.last("handled") == found[1]
    assert history.last("refused") is None
    history.close()


def test_the_newest_of_a_kind_is_not_confused_by_texts(tmp_path: Path) -> None:
    """A text that looks like the mark of another kind is only a text."""
    lines = Lines(tmp_path / "x.jsonl")
    lines.append({"t": 1, "f": "event", "key": "a"})
    lines.append({"t": 2, "f": "note", "text": '"f":"event"', "more": {"f": "event"}})
    found = lines.last("event")
    lines.close()
    assert found is not None
    assert found["key"] == "a"


@pytest.mark.processes
def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A record that could not be written whole is taken back, and the writer is told."""
    path = tmp_path / "p0.jsonl"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            history = FileHistory(path, "p0")
            try:
                for number in range(100):
                    history.write("unknown", op=f"o{number}", code="")
            except OSError:
                code = 0 if path.read_bytes().endswith(b"}\n") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    found = list(read_file(path))
    assert [record["op"] for record in found] == [f"o{number}" for number in range(len(found))]
    assert len(found) > 5


def test_files_are_merged_by_time_and_keep_their_own_order(tmp_path: Path) -> None:
    """Of one instant, a file's records stay in the file's order."""
    base = {"node": "n", "life": 1, "f": "x", "feed": ""}
    write_file(tmp_path / "a.jsonl", [{**base, "t": t, "n": n} for n, t in enumerate((1, 3, 3, 9))])
    write_file(tmp_path / "b.jsonl", [{**base, "t": t, "n": n} for n, t in enumerate((2, 3, 10), 10)])
    (tmp_path / "notes.txt").write_text("no history")
    merged = read_history(tmp_path)
    assert [record["n"] for record in merged] == [0, 10, 1, 2, 11, 3, 12]
    assert read_history(tmp_path / "b.jsonl", tmp_path / "a.jsonl")[2]["n"] == 11
    assert in_order(merged) == merged


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "this is no JSON"),
        ("[1]", "a record is a JSON object, not list"),
        ('{"t": "1", "node": "a", "life": 1, "f": "x"}', "a record's 't' is an integer: '1'"),
        ('{"t": 1, "node": 5, "life": 1, "f": "x"}', "a record's 'node' is text: 5"),
        ('{"t": 1, "node": "a", "life": true, "f": "x"}', "a record's 'life' is an integer: True"),
        ('{"t": 1, "node": "a", "life": 1}', "a record's 'f' is text: None"),
        ('{"t": 1, "node": "a", "life": 1, "f": "x", "feed": null}', "a record's 'feed' is text: None"),
        ('{"t": 0, "node": "a", "life": 1, "f": "x"}', "its time 0 lies before 1 of the line above"),
    ],
)
def test_what_is_no_record_is_told_with_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    """And nothing behind it is read."""
    path = tmp_path / "p0.jsonl"
    path.write_text('{"t": 1, "node": "a", "life": 1, "f": "x"}\n' + line + "\n")
    with pytest.raises(BadHistory) as caught:
        list(read_file(path))
    assert str(caught.value).startswith(f"{path}, line 2: {says}")
    assert (caught.value.where, caught.value.line) == (str(path), 2)


def test_a_folder_without_a_history_is_told(tmp_path: Path) -> None:
    """Not taken for a history of nothing."""
    with pytest.raises(BadHistory, match="there is no file"):
        read_history(tmp_path)
    with pytest.raises(BadHistory, match="no folder"):
        read_history()


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([{"f": "acked", "op": "o1"}], "record 2: acked of 'p0' cannot be read: it has no 'first'"),
        ([{"f": "aked", "op": "o1"}], "record 2: 'aked' is no kind of record"),
        (
            [{"f": "bookmark", "reader": "s9", "position": "x.1"}],
            "record 2: bookmark of 'p0' cannot be read: reader 's9'",
        ),
        ([{"f": "effect", "id": 7, "what": "seen"}], "record 2: effect of 'p0' cannot be read: there was no fault 7"),
        ([{"f": "over", "id": 7}], "record 2: over of 'p0' cannot be read: there was no fault 7"),
        ([{"f": "refused", "reader": "s9"}], "record 2: refused of 'p0' cannot be read: reader 's9'"),
        (
            [{"f": "acked", "op": "o1", "first": "x", "last": "y", "repeated": False}],
            "record 2: acked of 'p0' cannot be",
        ),
        (
            [{"f": "submit", "op": "o1", "keys": ["b"], "digests": ["d"], "name": None}],
            "record 2: submit of 'p0' cannot be read: op 'o1' was submitted with other keys before",
        ),
        (
            [{"f": "submit", "op": "o2", "keys": ["a"], "digests": ["d"], "name": None}],
            "record 2: submit of 'p0' cannot be read: key 'a' names a change of op 'o1' already",
        ),
        (
            [{"f": "submit", "op": "o2", "keys": ["b", "c"], "digests": ["d"], "name": None}],
            "record 2: submit of 'p0' cannot be read: it has not one digest (and head) for each key",
        ),
        (
            [
                {"f": "entry", "epoch": 1, "term": "t", "seq": 1, "publisher": "p", "incarnation": 1, "number": 1}
                | {"sizes": [2], "keys": ["a"], "digests": ["d"]}
            ],
            "record 2: entry of 'p0' cannot be read: its sizes do not add up to its keys and digests",
        ),
        ([{"f": "commit", "epoch": 1, "term": "t"}], "record 2: commit of 'p0' cannot be read: it has no 'first'"),
    ],
)
def test_what_is_no_history_is_told_with_its_record(records: list[dict[str, object]], says: str) -> None:
    """A record without its facts, of no kind, or that contradicts one before is the writer's mistake, not a verdict."""
    first = {"f": "submit", "op": "o1", "keys": ["a"], "digests": ["d"], "name": None}
    whole = [{"t": 1, "node": "p0", "life": 1, "feed": "vmapi", **record} for record in (first, *records)]
    with pytest.raises(BadHistory) as caught:
        check(whole)
    assert str(caught.value).startswith(says)


def test_feeds_are_judged_one_by_one() -> None:
    """What is of no feed, as most of the nemesis, is of every feed."""
    history = MemoryHistory(lambda: 1)
    write = history.writer("n")
    for feed in ("a", "b"):
        write("submit", op=f"o{feed}", keys=[feed], digests=["d"], name=None, feed=feed)
    write("fault", id=1, kind="kill", target="x", on={})
    views = views_of(history.records)
    assert [(view.feed, len(view.ops), len(view.faults)) for view in views] == [("a", 1, 1), ("b", 1, 1)]
    assert [len(view.ops) for view in views_of(history.records[:1])] == [1]


def test_facts_of_the_products_own_values() -> None:
    """A change has one digest, whether it is published, logged or delivered."""
    from changefeed import Change, Event, Position
    from changefeed.batch import Entry
    from changefeed.wire.changes import encode_change

    change = Change("vm", "v1", "update", ("state",), {"b": 1, "a": b"x"})
    submitted = submit_facts("o1", [change])
    payload = encode_change(change, 10_000)
    entry = Entry(3, "0a0a0a0a", 7, 0, "p0", 1, 0, 1, (1,), payload, b"")
    logged = entry_facts(entry, "00000000000000aa")
    event = Event(change, Position("00000000000000aa", 3, "0a0a0a0a", 7), 0, "p0", 7, True)
    given = event_facts("s0", event)
    assert submitted["digests"] == logged["digests"] == [given["digest"]] == [digest_of_change(change)]
    assert submitted["keys"] == logged["keys"] == [given["key"]] == ["v1"]
    assert submitted["heads"] == logged["heads"] == [["vm", "v1", "update", ["state"]]]
    assert given["position"] == "00000000000000aa.3.0a0a0a0a.7"
    assert json.loads(json.dumps([submitted, logged, given])) == [submitted, logged, given]
