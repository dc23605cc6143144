"""Every checker on histories made by hand: bad ones, each with its good twin, which differs in a line or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from changefeed.history.checkers import CHECKERS, check

Told = Callable[[str], list[dict[str, Any]]]

FOLDER = Path(__file__).parents[1] / "histories" / "by_hand"
#: Two leaders; one group and two single changes; a publisher that is killed and comes back under its name; a reader of
#: everything that is killed in the middle; one that wants change c only, in whole groups.
PLAIN = "\n" + (FOLDER / "plain.txt").read_text()
#: A log that is trimmed: what was seen at the commit stands in for what it no longer holds; a sleeping reader is told.
TRIMMED = "\n" + (FOLDER / "trimmed.txt").read_text()
#: An older copy of the log is put back: what was behind it is gone, and everybody who had it is told.
RESTORED = "\n" + (FOLDER / "restored.txt").read_text()
GOOD = {"plain": PLAIN, "trimmed": TRIMMED, "restored": RESTORED}


def without(text: str, *lines: str) -> str:
    for line in lines:
        assert f"\n{line}\n" in text, line
        text = text.replace(f"\n{line}\n", "\n", 1)
    return text


def changed(text: str, *pairs: tuple[str, str]) -> str:
    """Lines replaced; "" removes one, and a replacement of two lines adds one."""
    for line, other in pairs:
        assert f"\n{line}\n" in text, line
        text = text.replace(f"\n{line}\n", f"\n{other}\n" if other else "\n", 1)
    return text


def after(text: str, line: str, *more: str) -> str:
    return changed(text, (line, "\n".join((line, *more))))


_ = changed

#: (promise, what is wrong, the good twin, the bad history, what else is said).
TWINS: list[tuple[str, str, str, str, set[str]]] = [
    # ---- C1
    (
        "C1",
        "the log lacks an acknowledged change, and is shorter for it",
        PLAIN,
        without(
            _(
                PLAIN,
                ("end log 2.4 floor 0", "end log 2.3 floor 0"),
                ("s0#2 event 2.4 d", ""),
                ("s0#2 bookmark 2.4", "s0#2 bookmark 2.3"),
                ("s0#2 handled 2.4", "s0#2 handled 2.3"),
                ("s1 bookmark 2.4", "s1 bookmark 2.3"),
                ("s1 handled 2.4", "s1 handled 2.3"),
                ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0 at 2.3: a b c"),
                ("end effects s1 from 0 at 2.4: c", "end effects s1 from 0 at 2.3: c"),
            ),
            "end entry 2.4 importer/3/1: d",
        ),
        set(),
    ),
    (
        "C1",
        "a receipt of an earlier append is taken for this one's",
        PLAIN,
        _(PLAIN, ("p1 acked o2 2.3-3", "p1 acked o2 2.4-4")),
        set(),
    ),
    (
        "C1",
        "the receipt comes before the append",
        PLAIN,
        _(PLAIN, ("store commit 1 1-2", ""), ("p0 acked o1 1.1-2", "p0 acked o1 1.1-2\nstore commit 1 1-2")),
        set(),
    ),
    (
        "C1",
        "a group of two is acknowledged when its first change is stored",
        PLAIN,
        _(PLAIN, ("p0 acked o1 1.1-2", "p0 acked o1 1.1-1")),
        set(),
    ),
    (
        "C1",
        "a receipt from before the copy that the copy does hold is not honoured",
        RESTORED,
        _(RESTORED, ("p0 acked o1 1.1-1", "p0 acked o1 1/ffffffff.1-1")),
        set(),
    ),
    # ---- C2
    (
        "C2",
        "a retry is stored again",
        PLAIN,
        _(
            PLAIN,
            ("end log 2.4 floor 0", "end log 2.5 floor 0"),
            ("store commit 2 3-4", "store commit 2 3-5"),
            ("b append 2 3-4 stored", "b append 2 3-5 stored"),
            ("end entry 2.4 importer/3/1: d", "end entry 2.4 importer/3/1: d\nend entry 2.5 importer/3/2: d"),
            ("s0#2 bookmark 2.4", "s0#2 event 2.5 d\ns0#2 bookmark 2.5"),
            ("s0#2 handled 2.4", "s0#2 handled 2.5"),
            ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0 at 2.5: a b c d d"),
        ),
        {"C5"},
    ),
    (
        "C2",
        "a number is given twice",
        PLAIN,
        _(
            PLAIN,
            ("end entry 2.4 importer/3/1: d", "end entry 2.4 p1-1/2/1: d"),
            ("s0#2 event 2.4 d", "s0#2 event 2.4 d"),
        ),
        {"C6"},
    ),
    (
        "C2",
        "what was trimmed is stored again",
        TRIMMED,
        _(
            TRIMMED,
            ("end log 1.6 floor 4", "end log 1.7 floor 4"),
            ("store commit 1 5-6", "store commit 1 5-7"),
            ("end entry 1.5 p0-1/1/5: e:delete f+state", "end entry 1.5 p0-1/1/5: e:delete f+state | a"),
            ("store entry 1.5 p0-1/1/5: e:delete f+state", "store entry 1.5 p0-1/1/5: e:delete f+state | a"),
            ("s1#3 bookmark 1.6", "s1#3 event 1.7 a\ns1#3 bookmark 1.7"),
            ("s1#3 handled 1.6", "s1#3 handled 1.7"),
            ("end effects s1 from 1.4 at 1.6: e:delete f+state", "end effects s1 from 1.4 at 1.7: e:delete f+state a"),
        ),
        set(),
    ),
    # ---- C3
    (
        "C3",
        "nobody published change d",
        PLAIN,
        without(PLAIN, "p2(importer) submits o3: d", "p2(importer)#2 submits o3: d", "p2#2 acked o3 2.4-4 repeated"),
        {"C5"},
    ),
    ("C3", "what was refused is stored", PLAIN, _(PLAIN, ("p1 acked o2 2.3-3", "p1 failed o2 log-full")), set()),
    (
        "C3",
        "a change is stored with other bytes than were published",
        PLAIN,
        _(PLAIN, ("end entry 2.3 p1-1/2/1: c", "end entry 2.3 p1-1/2/1: c!")),
        {"C1", "C4"},
    ),
    ("C3", "a receipt answers what nobody asked", PLAIN, after(PLAIN, "p1 acked o2 2.3-3", "p1 acked o9 2.3-3"), set()),
    (
        "C3",
        "a reader has it before it was published",
        PLAIN,
        _(
            PLAIN,
            ("p1 submits o2: c", ""),
            ("p1 acked o2 2.3-3", ""),
            ("s1 event 2.3 c", "s1 event 2.3 c\np1 submits o2: c\np1 acked o2 2.3-3"),
        ),
        {"C7"},
    ),
    # ---- C4
    ("C4", "a reader has other bytes than the log", PLAIN, _(PLAIN, ("s1 event 2.3 c", "s1 event 2.3 c!")), {"C3"}),
    ("C4", "a reader has another publisher", PLAIN, _(PLAIN, ("s1 event 2.3 c", "s1 event 2.3 c by p0-1")), set()),
    ("C4", "a reader has another group", PLAIN, _(PLAIN, ("s0 event 1.2 b group 1", "s0 event 1.2 b group 2")), set()),
    ("C4", "a reader has another term", PLAIN, _(PLAIN, ("s1 event 2.3 c", "s1 event 2/ffffffff.3 c")), {"C12"}),
    (
        "C4",
        "two readers differ at a place that nothing else tells of",
        without(TRIMMED, "store entry 1.1 p0-1/1/1: a"),
        _(without(TRIMMED, "store entry 1.1 p0-1/1/1: a"), ("s1 event 1.1 a", "s1 event 1.1 b by p0-1")),
        set(),
    ),
    # ---- C5
    ("C5", "an event is skipped", PLAIN, without(PLAIN, "s0#2 event 2.3 c"), set()),
    ("C5", "an event is given twice", PLAIN, after(PLAIN, "s0#2 event 2.3 c", "s0#2 event 2.3 c"), set()),
    (
        "C5",
        "two events come in the other order",
        PLAIN,
        _(
            PLAIN,
            ("s0 event 1.1 a more", ""),
            ("s0 event 1.2 b group 1", "s0 event 1.2 b group 1\ns0 event 1.1 a more"),
        ),
        set(),
    ),
    (
        "C5",
        "the server's filter lets something through",
        TRIMMED,
        _(TRIMMED, ("s0 event 1.5 e:delete", "s0 event 1.5 e:delete more\ns0 event 1.6 f+state group 5")),
        set(),
    ),
    ("C5", "the server's filter keeps something back", TRIMMED, without(TRIMMED, "s0 event 1.5 e:delete"), set()),
    ("C5", "the end of a group is not marked", PLAIN, _(PLAIN, ("s0#2 event 2.3 c", "s0#2 event 2.3 c more")), set()),
    ("C5", "the end of a group is marked too early", PLAIN, _(PLAIN, ("s0 event 1.1 a more", "s0 event 1.1 a")), set()),
    (
        "C5",
        "an effect was applied twice",
        PLAIN,
        _(PLAIN, ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0 at 2.4: a b b c d")),
        set(),
    ),
    (
        "C5",
        "an effect is missing although the cursor passed it",
        PLAIN,
        _(PLAIN, ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0 at 2.4: a b d")),
        set(),
    ),
    # ---- C6
    (
        "C6",
        "a group is torn",
        PLAIN,
        _(PLAIN, ("end entry 1.1 p0-1/1/1: a b", "end entry 1.1 p0-1/1/1: a | b")),
        {"C4", "C5"},
    ),
    (
        "C6",
        "the later of two groups stands first",
        TRIMMED,
        _(TRIMMED, ("p0 submits o2: b c", ""), ("p0 submits o3: d", "p0 submits o3: d\np0 submits o2: b c")),
        set(),
    ),
    (
        "C6",
        "an older incarnation stands behind a newer one",
        RESTORED,
        _(
            RESTORED,
            ("end entry 2.3 p0-1/1/2: d", "end entry 2.3 p0-1/0/2: d"),
            ("store entry 2.3 p0-1/1/2: d", "store entry 2.3 p0-1/0/2: d"),
        ),
        set(),
    ),
    (
        "C6",
        "numbers go back",
        RESTORED,
        _(
            RESTORED,
            ("end entry 2.3 p0-1/1/2: d", "end entry 2.3 p0-1/1/0: d"),
            ("store entry 2.3 p0-1/1/2: d", "store entry 2.3 p0-1/1/0: d"),
        ),
        set(),
    ),
    # ---- C7
    (
        "C7",
        "it was published after a receipt, and stands before it",
        PLAIN,
        _(
            PLAIN,
            ("p1 submits o2: c", ""),
            ("p2#2 acked o3 2.4-4 repeated", "p2#2 acked o3 2.4-4 repeated\np1 submits o2: c"),
            ("p1 acked o2 2.3-3", ""),
            ("s1 event 2.3 c", "p1 acked o2 2.3-3\ns1 event 2.3 c"),
        ),
        set(),
    ),
    (
        "C7",
        "the same among trimmed places",
        TRIMMED,
        _(
            TRIMMED,
            ("p0 submits o1: a", ""),
            ("p0 acked o1 1.1-1", ""),
            ("p0 acked o3 1.4-4", "p0 acked o3 1.4-4\np9 submits o1: a\np9 acked o1 1.1-1"),
            ("s1 event 1.1 a", ""),
            ("s1 handled 1.1", ""),
        ),
        {"C3"},
    ),
    (
        "C7",
        "among those that came after the copy was put back",
        RESTORED,
        _(
            RESTORED,
            ("p1 submits o3: c", ""),
            ("p1 acked o3 2.2-2", ""),
            ("p1 lost", ""),
            ("p0 acked o4 2.3-3", "p0 acked o4 2.3-3\np1 submits o3: c\np1 lost\np1 acked o3 2.2-2"),
        ),
        {"C3"},
    ),
    # ---- C8
    ("C8", "the log has a hole", PLAIN, without(PLAIN, "end entry 2.3 p1-1/2/1: c"), {"C1", "C5", "C12"}),
    (
        "C8",
        "an epoch decreases",
        TRIMMED,
        _(
            TRIMMED,
            ("end log 1.6 floor 4", "end log 0/00000001.6 floor 4"),
            ("end entry 1.5 p0-1/1/5: e:delete f+state", "end entry 0/00000001.5 p0-1/1/5: e:delete f+state"),
        ),
        {"C1", "C4", "C9", "C10", "C11", "C12"},
    ),
    ("C8", "one epoch has two leaders", PLAIN, after(PLAIN, "b elected 2", "c elected 2"), set()),
    ("C8", "one epoch is fenced with two terms", PLAIN, after(PLAIN, "b elected 2", "b elected 2/ffffffff"), set()),
    (
        "C8",
        "two entries of one epoch are of two terms",
        PLAIN,
        _(
            PLAIN,
            ("end entry 2.4 importer/3/1: d", "end entry 2/ffffffff.4 importer/3/1: d"),
            ("end log 2.4 floor 0", "end log 2/ffffffff.4 floor 0"),
        ),
        {"C1", "C4", "C10", "C11", "C12"},
    ),
    (
        "C8",
        "a seq is given twice",
        PLAIN,
        after(PLAIN, "end entry 2.4 importer/3/1: d", "end entry 2.4 p0-1/1/3: b"),
        set(),
    ),
    (
        "C8",
        "the tail's row is not the last entry's",
        PLAIN,
        _(PLAIN, ("end log 2.4 floor 0", "end log 1.4 floor 0")),
        set(),
    ),
    ("C8", "the log ends before its tail", PLAIN, _(PLAIN, ("end log 2.4 floor 0", "end log 2.5 floor 0")), set()),
    # ---- C9
    (
        "C9",
        "a commit of a deposed leader",
        PLAIN,
        _(PLAIN, ("store commit 1 1-2", "store commit 1 1-2 under 2")),
        set(),
    ),
    (
        "C9",
        "a commit of another term",
        PLAIN,
        _(PLAIN, ("store commit 2 3-4", "store commit 2 3-4 under 2/ffffffff")),
        set(),
    ),
    (
        "C9",
        "an append that was in flight lands after the fence",
        PLAIN,
        _(PLAIN, ("store commit 1 1-2", ""), ("b fence 2 tail 1.2", "b fence 2 tail 1.2\nstore commit 1 1-2")),
        {"C1", "C11", "C12"},
    ),
    (
        "C9",
        "the tail was read before the fence: nothing tells of commits",
        without(PLAIN, "store commit 1 1-2", "store commit 2 3-4"),
        _(without(PLAIN, "store commit 1 1-2", "store commit 2 3-4"), ("b fence 2 tail 1.2", "b fence 2 tail 1.1")),
        set(),
    ),
    (
        "C9",
        "a new leader writes over the tail that it read",
        without(PLAIN, "store commit 1 1-2", "store commit 2 3-4"),
        _(without(PLAIN, "store commit 1 1-2", "store commit 2 3-4"), ("b fence 2 tail 1.2", "b fence 2 tail 2.3")),
        set(),
    ),
    (
        "C9",
        "two commits overlap",
        PLAIN,
        _(PLAIN, ("store commit 2 3-4", "store commit 2 2-4"), ("b append 2 3-4 stored", "b append 2 2-4 stored")),
        set(),
    ),
    # ---- C10
    ("C10", "a saved position goes back", PLAIN, after(PLAIN, "s0 handled 1.2", "s0 handled 1.1"), set()),
    (
        "C10",
        "a position is saved before its effect",
        PLAIN,
        _(PLAIN, ("s0 handled 1.2", ""), ("s0 event 1.2 b group 1", "s0 handled 1.2\ns0 event 1.2 b group 1")),
        set(),
    ),
    (
        "C10",
        "a life begins one too late",
        PLAIN,
        _(PLAIN, ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 2.3"), ("s0#2 event 2.3 c", "")),
        set(),
    ),
    (
        "C10",
        "a life begins one too early",
        PLAIN,
        _(PLAIN, ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.1\ns0#2 event 1.2 b group 1")),
        set(),
    ),
    (
        "C10",
        "a server goes on from another place than was asked for",
        PLAIN,
        _(PLAIN, ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.2 asked 1.1")),
        set(),
    ),
    (
        "C10",
        "a saved position has the serving leader's term, not its entry's",
        PLAIN,
        _(PLAIN, ("s0 handled 1.2", "s0 handled 2.2")),
        set(),
    ),
    (
        "C10",
        "whole groups, and a place inside of one is saved",
        RESTORED.replace("s1 reader", "s1 reader groups"),
        _(
            PLAIN.replace("s0 reader", "s0 reader groups"),
            ("s0 event 1.1 a more", "s0 event 1.1 a more\ns0 handled 1.1"),
        ),
        set(),
    ),
    (
        "C10",
        "a reader that began at the beginning began in the middle",
        PLAIN,
        _(PLAIN, ("s1 connected 0", "s1 connected 1.1")),
        set(),
    ),
    (
        "C10",
        "the cursor in the database is behind what was saved",
        PLAIN,
        _(PLAIN, ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0 at 2.3: a b c")),
        set(),
    ),
    # ---- C11
    (
        "C11",
        "an event comes behind its bookmark",
        PLAIN,
        _(PLAIN, ("s1 event 2.3 c", ""), ("s1 bookmark 2.4", "s1 bookmark 2.4\ns1 event 2.3 c")),
        {"C5"},
    ),
    ("C11", "a bookmark goes back", PLAIN, after(PLAIN, "s1 bookmark 2.4", "s1 bookmark 1.2"), set()),
    (
        "C11",
        "a bookmark names what is sequenced and not stored",
        PLAIN,
        _(PLAIN, ("s1 bookmark 1.2", "s1 bookmark 2.3"), ("s1 event 2.3 c", "")),
        {"C5"},
    ),
    ("C11", "a bookmark lies beyond the log", PLAIN, _(PLAIN, ("s1 bookmark 2.4", "s1 bookmark 2.5")), set()),
    (
        "C11",
        "a bookmark is of the serving leader's term, not of its entry's",
        PLAIN,
        _(PLAIN, ("s1 bookmark 1.2", "s1 bookmark 2.2")),
        set(),
    ),
    # ---- C12
    (
        "C12",
        "what was delivered is gone after a power loss",
        PLAIN,
        without(
            _(
                PLAIN,
                ("end log 2.4 floor 0", "end log 2.3 floor 0"),
                ("p2#2 acked o3 2.4-4 repeated", "p2#2 unknown o3"),
                ("s0#2 bookmark 2.4", ""),
                ("s0#2 handled 2.4", "s0#2 handled 2.3"),
                ("s1 bookmark 2.4", "s1 bookmark 2.3"),
                ("s1 handled 2.4", "s1 handled 2.3"),
                ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0 at 2.3: a b c"),
                ("end effects s1 from 0 at 2.4: c", "end effects s1 from 0 at 2.3: c"),
            ),
            "end entry 2.4 importer/3/1: d",
        ),
        {"C5"},
    ),
    (
        "C12",
        "an event leaves before its commit",
        PLAIN,
        _(
            PLAIN,
            ("store commit 2 3-4", ""),
            ("s0#2 bookmark 2.4", "store commit 2 3-4\ns0#2 bookmark 2.4"),
            ("p1 acked o2 2.3-3", ""),
            ("p2#2 acked o3 2.4-4 repeated", ""),
            ("s1 event 2.3 c", "p1 acked o2 2.3-3\np2#2 acked o3 2.4-4 repeated\ns1 event 2.3 c"),
        ),
        set(),
    ),
    (
        "C12",
        "a leader counts an append of unknown outcome as stored",
        PLAIN,
        _(PLAIN, ("a append 1 3-3 fenced", "a append 1 3-3 stored")),
        set(),
    ),
    (
        "C12",
        "what was committed is another change in the end",
        TRIMMED,
        _(
            TRIMMED,
            ("store entry 1.5 p0-1/1/5: e:delete f+state", "store entry 1.5 p0-1/1/5: e:delete g"),
            ("p0 submits o4: e:delete f+state", "p0 submits o4: e:delete f+state\np3 submits o5: g\np3 quit abandoned"),
        ),
        set(),
    ),
    # ---- C13
    (
        "C13",
        "a good position is refused as too old",
        PLAIN,
        after(PLAIN, "s0 handled 1.2", "s0 refused position-too-old 1.2"),
        {"C10"},
    ),
    (
        "C13",
        "an instance that is behind calls a good position one of the future",
        PLAIN,
        after(PLAIN, "s0 handled 1.2", "s0 refused future-position 1.2"),
        {"C10"},
    ),
    (
        "C13",
        "a trimmed position is called one of another log",
        TRIMMED,
        _(TRIMMED, ("s1#2 refused position-too-old 1.1", "s1#2 refused other-lineage 1.1")),
        set(),
    ),
    (
        "C13",
        "a trimmed position is gone on from",
        TRIMMED,
        _(TRIMMED, ("s1#3 connected 1.4", "s1#3 connected 1.4 asked 1.1")),
        {"C10"},
    ),
    (
        "C13",
        "a position of another log is gone on from",
        PLAIN,
        _(PLAIN, ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.2 asked bb:1.2")),
        {"C10"},
    ),
    (
        "C13",
        "a position of the term that was lost is gone on from",
        RESTORED,
        _(
            RESTORED,
            (
                "s0 refused other-lineage 1.2",
                "s0 refused other-lineage 1.2\ns0#2 reader from beginning\n"
                "s0#2 connected 2.2 asked 1.2\ns0#2 refused not-current",
            ),
        ),
        {"C10"},
    ),
    ("C13", "a publisher is not told that its receipt is lost", RESTORED, without(RESTORED, "p1 lost"), set()),
    (
        "C13",
        "a publisher is told of a loss that is none",
        RESTORED,
        after(RESTORED, "p0 acked o4 2.3-3", "p0 lost"),
        set(),
    ),
    ("C13", "a gap reaches the caller", PLAIN, after(PLAIN, "p1 submits o2: c", "p1 failed o2 number-gap"), set()),
    ("C13", "superseded by nobody", PLAIN, after(PLAIN, "p1 submits o2: c", "p1 failed o2 superseded"), set()),
    (
        "C13",
        "forgotten, though nothing was trimmed",
        PLAIN,
        after(PLAIN, "p1 submits o2: c", "p1 failed o2 forgotten"),
        set(),
    ),
    (
        "C13",
        "other bytes under a number, which nobody sent",
        PLAIN,
        after(PLAIN, "p1 submits o2: c", "p1 failed o2 number-reused"),
        set(),
    ),
    # ---- C14
    ("C14", "it does not converge", PLAIN, without(PLAIN, "nemesis converged"), set()),
    ("C14", "it converges too late", PLAIN, _(PLAIN, ("nemesis converged", "@11 nemesis converged")), set()),
    ("C14", "a publish hangs", PLAIN, _(PLAIN, ("p1 acked o2 2.3-3", "")), set()),
    (
        "C14",
        "a reader is left behind",
        PLAIN,
        without(
            _(PLAIN, ("end effects s1 from 0 at 2.4: c", "end effects s1 from 0: ")),
            "s1 event 2.3 c",
            "s1 bookmark 2.4",
            "s1 handled 2.4",
        ),
        set(),
    ),
    (
        "C14",
        "a reader whose filter selects nothing does not move",
        TRIMMED,
        _(
            TRIMMED,
            ('s0 reader {"ops": ["delete"]} from beginning', 's0 reader {"ops": ["none"]} from beginning'),
            ("s0 event 1.5 e:delete", ""),
            ("s0 bookmark 1.6", ""),
        ),
        set(),
    ),
    (
        "C14",
        "a reader that was refused never begins anew",
        TRIMMED,
        without(
            TRIMMED,
            "s1#3 reader from beginning",
            "s1#3 connected 1.4",
            "s1#3 event 1.5 e:delete more",
            "s1#3 event 1.6 f+state group 5",
            "s1#3 bookmark 1.6",
            "s1#3 handled 1.6",
            "end effects s1 from 1.4 at 1.6: e:delete f+state",
        ),
        set(),
    ),
    # ---- C15
    (
        "C15",
        "a receipt takes longer than is allowed after the leader was killed",
        after(PLAIN, "nemesis over 1", "nemesis limit freeze 3"),
        _(after(PLAIN, "nemesis over 1", "nemesis limit freeze 3"), ("b elected 2", "@4 b elected 2")),
        set(),
    ),
    (
        "C15",
        "the limit is just passed",
        _(after(PLAIN, "nemesis over 1", "nemesis limit freeze 3"), ("p1 acked o2 2.3-3", "@3 p1 acked o2 2.3-3")),
        _(after(PLAIN, "nemesis over 1", "nemesis limit freeze 3"), ("p1 acked o2 2.3-3", "@3.1 p1 acked o2 2.3-3")),
        set(),
    ),
    (
        "C15",
        "somebody waited; where nobody does, no time passes",
        _(
            after(PLAIN, "nemesis over 1", "nemesis limit freeze 3"),
            ("p1 submits o2: c", ""),
            ("p2(importer) submits o3: d", ""),
            ("b elected 2", "b elected 2\n@100 p1 submits o2: c\np2(importer) submits o3: d"),
        ),
        _(after(PLAIN, "nemesis over 1", "nemesis limit freeze 3"), ("b elected 2", "@100 b elected 2")),
        set(),
    ),
    (
        "C15",
        "a leader that nobody had harmed is replaced",
        PLAIN,
        _(PLAIN, ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 1 kill-client p1")),
        set(),
    ),
    (
        "C15",
        "a leader stops because the coordinator is away",
        _(PLAIN, ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 1 quorum all")),
        _(
            PLAIN,
            ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 1 quorum all"),
            ("nemesis over 1", ""),
            ("a deposed 1", "a deposed 1\nnemesis over 1"),
        ),
        set(),
    ),
    # ---- C16
    ("C16", "the history does not hold the log", PLAIN, without(PLAIN, "end log 2.4 floor 0"), set()),
    (
        "C16",
        "the run was too idle",
        after(PLAIN, "nemesis over 1", "nemesis want leader-changes 1"),
        after(PLAIN, "nemesis over 1", "nemesis want leader-changes 2"),
        set(),
    ),
    ("C16", "a fault had no effect", PLAIN, without(PLAIN, "nemesis effect 1 leader-changed"), set()),
    (
        "C16",
        "no fault had any effect",
        _(PLAIN, ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 1 freeze a")),
        without(
            _(PLAIN, ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 1 freeze a")),
            "nemesis effect 1 leader-changed",
        ),
        set(),
    ),
    (
        "C16",
        "what must be met now and then was not",
        after(PLAIN, "nemesis over 1", "nemesis want resume-mid-batch 1", "nemesis sighting resume-mid-batch"),
        after(PLAIN, "nemesis over 1", "nemesis want resume-mid-batch 1"),
        set(),
    ),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_break_nothing(name: str, told: Told) -> None:
    """What a right product writes is called right by every checker."""
    assert check(told(GOOD[name])) == []


@pytest.mark.parametrize(
    ("promise", "good", "bad", "others"),
    [pytest.param(promise, good, bad, others, id=f"{promise}: {what}") for promise, what, good, bad, others in TWINS],
)
def test_bad_histories_and_their_good_twins(promise: str, good: str, bad: str, others: set[str], told: Told) -> None:
    """The checker of the promise says so, nobody else without reason, and nobody of the twin."""
    assert check(told(good)) == []
    found = check(told(bad))
    assert {broken.promise for broken in found} == {promise, *others}, [broken.says for broken in found]
    assert all(broken.says and broken.says[0] != " " for broken in found)


def test_every_checker_has_three_bad_histories() -> None:
    """A checker that nobody has seen fail is none."""
    counts = {promise: sum(twin[0] == promise for twin in TWINS) for promise in CHECKERS}
    assert list(counts) == [f"C{n}" for n in range(1, 17)]
    assert min(counts.values()) >= 3, counts
