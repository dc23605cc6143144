"""The judge of the demo, on good histories and on each kind of bad one: a judge that never objects is no judge."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from changefeed.demo.verdict import Verdict, judge, judge_records, main

LINEAGE, TERM = "0123456789abcdef", "89abcdef"
Records = list[dict[str, Any]]


def position(seq: int, epoch: int = 1) -> str:
    return f"{LINEAGE}.{epoch}.{TERM}.{seq}"


class History:
    """A good history: two publishers, groups of 1 to 3 changes, two subscribers, a leader killed half-way."""

    def __init__(self, groups: int = 20, seed: int = 1) -> None:
        draw = random.Random(seed)
        self.publishers: dict[str, Records] = {"publisher-0": [], "publisher-1": []}
        self.events: Records = []
        self.tree: dict[str, list[str]] = {}
        numbers = dict.fromkeys(self.publishers, 0)
        seq, self.killed = 0, (groups // 2) * 1_000_000
        for index in range(groups):
            file = draw.choice(sorted(self.publishers))
            sent = index * 1_000_000 - 300_000
            number, first = numbers[file] + 1, seq + 1
            epoch = 1 if index < groups // 2 else 2
            changes = []
            for _ in range(draw.randint(1, 3)):
                path = f"{file}/{draw.randint(0, 5)}"
                op = "delete" if path in self.tree and draw.random() < 0.3 else "update"
                changes.append([path, op, "100644", f"{draw.getrandbits(64):016x}"])
                if op == "delete":
                    del self.tree[path]
                else:
                    self.tree[path] = changes[-1][2:]
            for offset, change in enumerate(changes):
                seq += 1
                self.events.append(
                    {"f": "event", "t": sent + 600_000, "position": position(seq, epoch), "publisher": file,
                     "number": number + offset, "group": first, "last": offset == len(changes) - 1,
                     "id": change[0], "op": change[1], "mode": change[2], "blob": change[3]}
                )  # fmt: skip
            self.publishers[file] += [
                {"f": "send", "t": sent, "publisher": file, "number": number, "changes": changes},
                {"f": "receipt", "t": sent + 500_000 + (40_000_000 if index == groups // 2 else 0), "publisher": file,
                 "number": number, "first": position(first, epoch), "last": position(seq, epoch), "repeated": False},
            ]  # fmt: skip
            numbers[file] += len(changes)
        start = {"f": "start", "t": 0, "position": None}
        self.subscribers = {"subscriber-a": [start, *self.events], "subscriber-b": [start, *copy.deepcopy(self.events)]}
        self.kills: Records = [{"f": "kill", "t": self.killed, "instance": "a", "pid": 1}]

    @property
    def a(self) -> Records:
        return self.subscribers["subscriber-a"]

    def judge(self) -> Verdict:
        return judge_records(self.publishers, self.subscribers, self.kills, self.tree)

    def grouped(self) -> int:
        """Where in subscriber a's records a group of several events begins."""
        return next(index for index, record in enumerate(self.a) if record["f"] == "event" and not record["last"])


@pytest.mark.parametrize("seed", range(20))
def test_a_good_history_is_clean(seed: int) -> None:
    """Nothing is held against a history in which everything arrived once, in order."""
    verdict = History(seed=seed).judge()
    assert verdict.counts == {} and verdict.clean, verdict.faults
    assert verdict.trees_equal == 2
    assert verdict.kills_counted == 1


def test_one_lost_event_is_found() -> None:
    """An acknowledged change that one subscriber did not handle is lost."""
    history = History()
    del history.a[8]
    counts = history.judge().counts
    assert counts["lost"] == 1 and counts["skipped"] == 1


def test_a_lost_last_event_is_found() -> None:
    """Also at the end, where no later event shows the hole."""
    history = History()
    del history.a[-1]
    assert history.judge().counts["lost"] == 1


def test_one_repeated_event_is_found() -> None:
    """An event handled twice is repeated."""
    history = History()
    history.a.insert(9, copy.deepcopy(history.a[8]))
    assert history.judge().counts["repeated"] == 1


def test_a_change_stored_twice_is_found() -> None:
    """One change at two places of the log is repeated, for each subscriber that sees it."""
    history = History()
    for records in history.subscribers.values():
        again = copy.deepcopy(records[1])
        last = len(history.events) + 1
        records.append({**again, "position": position(last, 2), "group": last, "last": True})
    assert history.judge().counts["repeated"] == 2


def test_one_swapped_pair_is_found() -> None:
    """Two events in the wrong order are reordered."""
    history = History()
    history.a[8], history.a[9] = history.a[9], history.a[8]
    assert history.judge().counts["reordered"] >= 1


def test_a_publisher_whose_changes_changed_places_is_found() -> None:
    """Also when the places are numbered properly and all subscribers agree."""
    history = History()
    mine = [i for i, r in enumerate(history.a) if r.get("publisher") == "publisher-0" and r["last"]][:2]
    kept = ("position", "group", "last", "t", "f")
    for records in history.subscribers.values():
        one, two = (records[index] for index in mine)
        records[mine[0]] = {**two, **{key: one[key] for key in kept}}
        records[mine[1]] = {**one, **{key: two[key] for key in kept}}
    assert history.judge().counts["reordered"] >= 2


def test_subscribers_that_saw_different_events_at_one_place_are_found() -> None:
    """One place holds one event for everybody."""
    history = History()
    history.a[5]["position"] = position(5, epoch=7)
    assert history.judge().counts["reordered"] == 1


def test_a_torn_group_is_found() -> None:
    """A group is whole and together, and its end is where it says."""
    history = History()
    index = history.grouped()
    history.a[index]["last"] = True
    assert history.judge().counts["torn"] >= 1

    history = History()
    history.a[history.grouped()]["group"] += 1
    assert history.judge().counts["torn"] == 1


def test_an_interrupted_group_is_found() -> None:
    """No event of another group stands inside one, even where both are complete."""
    history = History()
    index = history.grouped()
    other = next(i for i, r in enumerate(history.a) if i > index + 1 and r["last"] and r["number"] > 1)
    moved = history.a.pop(other)
    history.a.insert(index + 1, moved)
    assert history.judge().counts["torn"] >= 1


def test_an_unfinished_group_is_found() -> None:
    """A stream that ends inside a group has torn it."""
    history = History(groups=60, seed=3)
    while history.a[-1]["last"]:
        history.a.pop()
    assert history.judge().counts["torn"] == 1


def test_an_event_that_nobody_sent_is_found() -> None:
    """A phantom, and an event whose content was changed on the way."""
    history = History()
    history.a[4]["blob"] = "other"
    history.a[6]["number"] = 999
    assert history.judge().counts["foreign"] >= 2


def test_a_change_without_an_answer_is_found() -> None:
    """Whatever was sent is acknowledged or refused in the end."""
    history = History()
    history.publishers["publisher-0"].pop()
    assert history.judge().counts["unsettled"] == 1


def test_a_receipt_for_another_place_is_found() -> None:
    """The receipt names the place at which the change is."""
    history = History()
    receipt = history.publishers["publisher-1"][1]
    receipt["first"] = receipt["last"] = position(3)
    assert "foreign" in history.judge().counts


def test_a_refused_change_that_comes_all_the_same_is_found() -> None:
    """Refused means: nothing happened."""
    history = History()
    record = history.publishers["publisher-0"][1]
    history.publishers["publisher-0"][1] = {
        **{key: record[key] for key in ("t", "publisher", "number")}, "f": "refused", "code": "log-full", "message": ""
    }  # fmt: skip
    assert history.judge().counts["foreign"] >= 1


def test_a_wrong_tree_is_found() -> None:
    """The tree that comes out must be the one in git."""
    history = History()
    history.tree["README"] = ["100644", "0"]
    verdict = history.judge()
    assert verdict.counts["trees"] == 2 and not verdict.clean


def test_resuming_is_judged_too() -> None:
    """A subscriber that was killed goes on after the last event that it wrote down: not before, not later."""
    history = History()
    history.a.insert(8, {"f": "start", "t": 1, "position": position(7)})
    assert history.judge().clean

    history = History()
    history.a.insert(8, {"f": "start", "t": 1, "position": position(6)})
    assert history.judge().counts["reordered"] == 1


def test_a_late_start_owes_only_what_comes_after_it() -> None:
    """A subscriber that began at a position need not have what lies before it."""
    history = History()
    begin = next(i for i, r in enumerate(history.a) if i > 6 and r["last"])
    at = history.a[begin]["position"]
    history.subscribers["subscriber-a"] = [{"f": "start", "t": 1, "position": at}, *history.a[begin + 1 :]]
    verdict = history.judge()
    assert verdict.counts == {} and verdict.trees == 1


def test_a_kill_counts_only_with_something_in_flight() -> None:
    """A kill between two changes proves nothing, and a history of only such kills is not clean."""
    history = History()
    history.kills = [{"f": "kill", "t": 5_500_000, "instance": "a", "pid": 1}]
    verdict = history.judge()
    assert (verdict.kills, verdict.kills_counted, verdict.gaps_ms) == (1, 0, [])
    assert not verdict.clean


def test_the_gap_reaches_from_the_last_receipt_to_the_first_of_the_next_leader() -> None:
    """Answers of the dead leader that arrive after the kill do not end the gap."""
    history = History(groups=2)
    for records in history.publishers.values():
        records.clear()
    send = {"f": "send", "publisher": "publisher-0"}
    receipt = {"f": "receipt", "publisher": "publisher-0", "repeated": False}
    change = ["a", "update", "100644", "1"]
    records = history.publishers["publisher-0"]
    for number, (sent, answered, epoch) in enumerate(
        [(0, 10, 1), (10, 50, 1), (15, 52, 1), (20, 100, 2), (30, 101, 2)], start=1
    ):
        at = position(number, epoch)
        records.append({**send, "t": sent * 10**6, "number": number, "changes": [change]})
        records.append({**receipt, "t": answered * 10**6, "number": number, "first": at, "last": at})
    history.kills = [{"f": "kill", "t": 51 * 10**6, "instance": "a", "pid": 1}]
    assert history.judge().gaps_ms == [48.0]


def test_nothing_to_judge_is_not_clean() -> None:
    """A demo in which nothing happened proves nothing."""
    assert not judge_records({}, {}, [], {}).clean
    assert not judge_records({}, {"subscriber-a": []}, [], None).clean


def test_a_folder_is_judged_and_a_torn_last_line_is_no_record(tmp_path: Path, capsys: Any) -> None:
    """The files are read as they are; a line that SIGKILL cut off never happened."""
    history = History()
    for name, records in {**history.publishers, **history.subscribers, "kills": history.kills}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "tree.json").write_text(json.dumps(history.tree))
    with (tmp_path / "subscriber-a.jsonl").open("a") as file:
        file.write('{"f": "event", "t": 1, "pos')
    assert judge(tmp_path).clean
    assert main([str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["lost"] == 0

    (tmp_path / "tree.json").write_text("{}")
    assert main([str(tmp_path)]) == 1
    assert main([]) == 2
