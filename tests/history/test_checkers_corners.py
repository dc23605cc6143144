"""Corners of the checkers, by hand: what little is told, what is lost or trimmed, and the figures. Each was found by a
mutant of the checkers that nothing noticed (checker_mutants.py), or by a history that was called bad without reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from changefeed.history.checkers import check

Told = Callable[[str], list[dict[str, Any]]]

FOLDER = Path(__file__).parents[1] / "histories" / "by_hand"
PLAIN = "\n" + (FOLDER / "plain.txt").read_text()
TRIMMED = "\n" + (FOLDER / "trimmed.txt").read_text()
RESTORED = "\n" + (FOLDER / "restored.txt").read_text()


def _(text: str, *pairs: tuple[str, str]) -> str:
    """Lines replaced; "" removes one, and a replacement of two lines adds one."""
    for line, other in pairs:
        assert f"\n{line}\n" in text, line
        text = text.replace(f"\n{line}\n", f"\n{other}\n" if other else "\n", 1)
    return text


def without(text: str, *words: str) -> str:
    """Without the lines that hold any of the words."""
    return "\n".join(line for line in text.split("\n") if not any(word in line for word in words))


#: Nobody tells where a life began.
SILENT = without(PLAIN, " connected ")
#: Nobody saw what is trimmed.
UNSEEN = _(
    without(TRIMMED, "store entry", "store commit"),
    ("s1 handled 1.1", "s1 event 1.2 b more\ns1 event 1.3 c group 2\ns1 event 1.4 d\ns1 handled 1.4"),
    ("s1#2 refused position-too-old 1.1", "s1#2 refused position-too-old 1.3"),
    (
        "store trimmed 4",
        's2 reader {"resources": {"vm": []}} from beginning\ns2 event 1.1 a\ns2 event 1.3 c group 2\n'
        "s2 event 1.4 d\ns2 quit\nstore trimmed 4",
    ),
)
#: What was lost with the storage was not seen before.
LOST = without(RESTORED, "store entry", "store commit")
#: A reader with a filter lives on what is lost.
LOST_FILTER = _(RESTORED, ("s0 reader from beginning", 's0 reader {"resources": {"vm": []}} from beginning'))
GROUPS = PLAIN.replace('s1 reader {"ids": ["c"]} groups from beginning', "s1 reader groups from 1.1")
GROUPS = _(
    GROUPS,
    ("s1 connected 0", "s1 connected 1.1\ns1 event 1.1 a more\ns1 event 1.2 b group 1"),
    ("s1 bookmark 2.4", "s1 event 2.4 d\ns1 bookmark 2.4"),
    ("end effects s1 from 0 at 2.4: c", "end effects s1 from 1.1 at 2.4: a b c d"),
)

#: Good, and a checker in haste would say otherwise.
GOOD: dict[str, str] = {
    "nobody tells where lives began": SILENT,
    "a life began at a position, and does not tell": _(
        SILENT,
        ("s0 reader from beginning", "s0 reader from 1.1"),
        ("s0 event 1.1 a more", ""),
        ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 1.1 at 2.4: b c d"),
    ),
    "what was trimmed was not seen": UNSEEN,
    "it began at the floor, and does not tell": _(
        TRIMMED,
        ("s1#3 reader from beginning", "s2 reader from beginning"),
        ("s1#3 connected 1.4", ""),
        ("s1#3 event 1.5 e:delete more", "s2 event 1.5 e:delete more"),
        ("s1#3 bookmark 1.6", ""),
        ("s1#3 event 1.6 f+state group 5", "s2 event 1.6 f+state group 5"),
        ("s1#3 handled 1.6", "s2 handled 1.6"),
        ("end effects s1 from 1.4 at 1.6: e:delete f+state", "end effects s2 from 1.4 at 1.6: e:delete f+state"),
        ("s1#2 reader from beginning", ""),
        ("s1#2 refused position-too-old 1.1", ""),
    ),
    "what was lost was not seen": LOST,
    "a filter lives on what is lost": LOST_FILTER.replace("a c d\nend effects s1", "a c d\nend effects s1"),
    "whole groups from inside of one": GROUPS,
    "the database does not tell its cursor": PLAIN.replace(" at 2.4:", ":"),
    "the database of a reader that never came back": _(
        RESTORED,
        ("s0 refused other-lineage 1.2", "s0 quit"),
        ("s0#2 reader from beginning", ""),
        ("s0#2 connected 0", ""),
        ("s0#2 event 1.1 a", ""),
        ("s0#2 event 2.2 c", ""),
        ("s0#2 event 2.3 d", ""),
        ("s0#2 handled 2.3", ""),
        ("end effects s0 from 0 at 2.3: a c d", "end effects s0 from 0 at 1.2: a b"),
    ),
    "the same, and nobody saw the log": without(
        _(
            RESTORED,
            ("s0 refused other-lineage 1.2", "s0 quit"),
            ("s0#2 reader from beginning", ""),
            ("s0#2 connected 0", ""),
            ("s0#2 event 1.1 a", ""),
            ("s0#2 event 2.2 c", ""),
            ("s0#2 event 2.3 d", ""),
            ("s0#2 handled 2.3", ""),
            ("end effects s0 from 0 at 2.3: a c d", "end effects s0 from 0 at 1.2: a b"),
        ),
        "store entry",
        "store commit",
    ),
    "a bookmark where nobody knows where the life began": _(
        SILENT, ("s0#2 event 2.3 c", "s0#2 bookmark 1.2\ns0#2 event 2.3 c")
    ),
    "a reader that begins now begins now again": _(
        PLAIN,
        ('s1 reader {"ids": ["c"]} groups from beginning', "s1 reader from now"),
        ("s1 connected 0", "s1 connected 1.2"),
        ("s1 event 2.3 c", "s1#2 reader from now\ns1#2 connected 2.4"),
        ("s1 bookmark 1.2", ""),
        ("s1 bookmark 2.4", "s1#2 bookmark 2.4"),
        ("s1 handled 2.4", "s1#2 handled 2.4"),
        ("end effects s1 from 0 at 2.4: c", "end effects s1 from 2.4 at 2.4:"),
    ),
    "it was killed between saving and saying so": _(
        PLAIN, ("s0 handled 1.2", "s0 handled 1.1"), ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.2")
    ),
    "it saved nothing yet, and begins at the beginning again": _(
        PLAIN,
        ("s0 handled 1.2", ""),
        ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 0\ns0#2 event 1.1 a more\ns0#2 event 1.2 b group 1"),
    ),
    "an application heals a reset in the same life": _(
        RESTORED,
        ("s0#2 reader from beginning", ""),
        ("s0#2 connected 0", "s0 connected 0"),
        ("s0#2 event 1.1 a", "s0 event 1.1 a"),
        ("s0#2 event 2.2 c", "s0 event 2.2 c"),
        ("s0#2 event 2.3 d", "s0 event 2.3 d"),
        ("s0#2 handled 2.3", "s0 handled 2.3"),
    ),
    "a reader that is over need not reach the end": _(
        PLAIN,
        ("s1 event 2.3 c", ""),
        ("s1 bookmark 2.4", ""),
        ("s1 handled 2.4", "s1 quit"),
        ("end effects s1 from 0 at 2.4: c", ""),
    ),
    "a refusal that is not for good": _(PLAIN, ("s0 quit", "s0 refused unavailable 1.2\ns0 refused stalled\ns0 quit")),
    "what a stranger asked of the future came to be": _(
        PLAIN,
        (
            "nemesis over 1",
            "nemesis over 1\nx reader from 2.4\nx refused future-position 2.4\nx#2 reader from now\n"
            "x#2 connected 1.2\nx#2 quit",
        ),
    ),
    "the same before there were commits to tell": without(
        _(
            PLAIN,
            (
                "p0 submits o1: a b",
                "x reader from 1.2\nx refused future-position 1.2\nx#2 reader from now\nx#2 quit\np0 submits o1: a b",
            ),
        ),
        "store commit",
    ),
    "a publisher that sent other bytes is refused": _(
        PLAIN, ("p1 submits o2: c", "p8 submits o8: x\np8 submits o8: x!\np8 failed o8 number-reused\np1 submits o2: c")
    ),
    "a publisher of a name is superseded by the next": _(
        PLAIN,
        (
            "p2 quit",
            "p2(importer) submits o7: x\np2(importer)#2 submits o6: y\np2#2 failed o6 log-full\n"
            "p2 failed o7 superseded\np2 quit",
        ),
    ),
    "a publisher is forgotten after a trim": _(
        TRIMMED,
        (
            "p0 submits o4: e:delete f+state",
            "p9 submits o9: x\np9 failed o9 forgotten\np0 submits o4: e:delete f+state",
        ),
    ),
    "or after a copy was put back": _(
        RESTORED, ("p0 submits o4: d", "p9 submits o9: x\np9 failed o9 forgotten\np0 submits o4: d")
    ),
    "or in a log that was trimmed before anybody wrote about it": _(
        without(TRIMMED, "store trimmed", "s1#2 reader", "s1#2 refused"),
        (
            "p0 submits o4: e:delete f+state",
            "p9 submits o9: x\np9 failed o9 forgotten\np0 submits o4: e:delete f+state",
        ),
        ("s1 quit", "s1 quit"),
        ("s1#3 reader from beginning", "s2 reader from beginning"),
        ("s1#3 connected 1.4", "s2 connected 1.4"),
        ("s1#3 event 1.5 e:delete more", "s2 event 1.5 e:delete more"),
        ("s1#3 bookmark 1.6", "s2 bookmark 1.6"),
        ("s1#3 event 1.6 f+state group 5", "s2 event 1.6 f+state group 5"),
        ("s1#3 handled 1.6", "s2 handled 1.6"),
        ("end effects s1 from 1.4 at 1.6: e:delete f+state", "end effects s2 from 1.4 at 1.6: e:delete f+state"),
    ),
    "what was refused may be published again, and stand later": _(
        TRIMMED, ("p0 submits o1: a", "p0 submits o4: e:delete f+state\np0 failed o4 log-full\np0 submits o1: a")
    ),
    "the copy holds the newest receipt of one, and not of the other": _(
        RESTORED, ("p0 acked o1 1.1-1", "p0 acked o1 1.1-1\np0 submits o0: z\np0 quit abandoned")
    ),
    "a receipt on its way when the copy was put back": _(
        RESTORED,
        ("p1 acked o2 1.2-2", ""),
        ("p1 lost", ""),
        ("nemesis restored 1", "nemesis restored 1\np1 acked o2 1.2-2"),
    ),
    "a publisher hears of the loss from its damaged log": _(
        without(PLAIN, "nemesis heal", "nemesis converged"), ("p0 acked o1 1.1-2", "p0 acked o1 1.1-2")
    ),
    "an event of equal age as its receipt": PLAIN.replace("p1 acked o2 2.3-3", "p1 acked o2 2.3-3"),
    "two feeds of one leader would be two histories; a leader that comes back has a later life": _(
        PLAIN,
        ("a deposed 1", "a deposed 1\na#2 elected 3"),
        ("nemesis heal 10", "a#2 fence 3 tail 2.4\nnemesis heal 10"),
    ),
    "kills, and the killed leader says nothing": without(PLAIN, "a append 1 3-3 fenced", "a deposed 1").replace(
        "freeze a", "kill a"
    ),
    "a leader ends by itself after a kill of another": PLAIN.replace("freeze a", "kill c")
    .replace("a deposed 1", "a deposed 1")
    .replace("fault 1 kill c", "fault 1 freeze c"),
    "the coordinator is away, and before that somebody was killed": _(
        PLAIN,
        ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 2 freeze a\nnemesis fault 1 quorum all"),
        ("nemesis over 1", ""),
    ),
    "the coordinator was away before the term began": _(
        without(PLAIN, "nemesis over", "nemesis effect 1", "nemesis fault 1"),
        ("a elected 1", "nemesis fault 1 quorum all\nnemesis effect 1 seen\na elected 1"),
    ),
    "nobody tells when now was, of two lives": _(
        without(PLAIN, "end effects s1", "s1 "),
        (
            "b append 2 3-4 stored",
            "b append 2 3-4 stored\ns1 reader from now\ns1 event 2.3 c\ns1#2 reader from now\ns1#2 handled 2.4",
        ),
    ),
    "a welcome in the middle of a life is ahead of what was given": _(
        PLAIN, ("s0 event 1.2 b group 1", "s0 connected 1.2\ns0 event 1.2 b group 1")
    ),
    "single events were saved inside of a group, and then whole groups are wanted": _(
        without(PLAIN, "end effects s0"),
        ("s0 handled 1.2", "s0 handled 1.1"),
        ("s0#2 reader from beginning", "s0#2 reader groups from beginning"),
        ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 0 asked 1.1\ns0#2 event 1.1 a more\ns0#2 event 1.2 b group 1"),
    ),
    "the same, and nobody tells where it began": _(
        without(SILENT, "end effects s0"),
        ("s0 handled 1.2", "s0 handled 1.1"),
        ("s0#2 reader from beginning", "s0#2 reader groups from beginning"),
        ("s0#2 event 2.3 c", "s0#2 event 1.1 a more\ns0#2 event 1.2 b group 1\ns0#2 event 2.3 c"),
    ),
    "it began at a position, and was killed between saving and saying so": _(
        without(PLAIN, "end effects s0"),
        ("s0 reader from beginning", "s0 reader from 1.1"),
        ("s0 connected 0", "s0 connected 1.1"),
        ("s0 event 1.1 a more", ""),
        ("s0 handled 1.2", ""),
        ("s0#2 reader from beginning", "s0#2 reader from 1.1"),
        ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.2"),
    ),
    "whole groups begin before the position inside of one": GROUPS.replace(
        "s1 connected 1.1", "s1 connected 0 asked 1.1"
    ),
    "a filter passes over what was lost, where something else stands now": _(
        without(LOST, "end effects s0", "s0 event 1.2 b"),
        ("s0 reader from beginning", 's0 reader {"ids": ["a", "c", "d"]} from beginning'),
        ("s0#2 reader from beginning", 's0#2 reader {"ids": ["a", "c", "d"]} from beginning'),
    ),
}

#: (promise, what is wrong, the history, a part of the sentence).
BAD: list[tuple[str, str, str, str]] = [
    (
        "C5",
        "nobody tells where it began: at the beginning",
        _(SILENT, ("s0 event 1.1 a more", "")),
        "was never given 1 ",
    ),
    (
        "C5",
        "nobody tells where it began: at a position",
        _(
            SILENT,
            ("s0 reader from beginning", "s0 reader from 1.1"),
            ("s0 event 1.1 a more", ""),
            ("s0 event 1.2 b group 1", ""),
            ("s0 handled 1.2", ""),
            ("s0 quit", "s0 event 2.3 c\ns0 quit"),
        ),
        "was never given 2 ",
    ),
    (
        "C5",
        "a gap behind a bookmark, where nobody tells where the life began",
        _(SILENT, ("s0#2 event 2.3 c", "s0#2 bookmark 1.2")),
        "was never given 3 ",
    ),
    (
        "C5",
        "whole groups from inside of one lack its beginning",
        _(GROUPS, ("s1 event 1.1 a more", "")),
        "was never given 1 ",
    ),
    ("C5", "a gap where nobody saw the log", _(UNSEEN, ("s1 event 1.2 b more", "")), "with a gap after 1"),
    (
        "C5",
        "an event again where nobody saw the log",
        _(UNSEEN, ("s1 event 1.2 b more", "s1 event 1.2 b more\ns1 event 1.2 b more")),
        "again",
    ),
    (
        "C5",
        "a filtered event again where nobody saw the log",
        _(UNSEEN, ("s2 event 1.3 c group 2", "s2 event 1.3 c group 2\ns2 event 1.1 a")),
        "again",
    ),
    (
        "C5",
        "a gap in what was lost",
        _(LOST, ("s0 event 1.1 a", ""), ("s0 connected 0", "s0 connected 0")),
        "was never given 1 (a)",
    ),
    (
        "C5",
        "a gap of a filter in what was lost, and was seen",
        _(LOST_FILTER, ("s0 event 1.1 a", "")),
        "was never given 1 ",
    ),
    (
        "C5",
        "a database of what was lost, and was seen, is wrong",
        _(
            GOOD["the database of a reader that never came back"],
            ("end effects s0 from 0 at 1.2: a b", "end effects s0 from 0 at 1.2: a"),
        ),
        "holds nothing as effect 2, where the log has b",
    ),
    (
        "C5",
        "a database that does not tell its cursor ends too early",
        _(PLAIN, ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0: a b c")),
        "holds nothing as effect 4",
    ),
    (
        "C5",
        "a database without a reader",
        _(
            PLAIN,
            (
                "end effects s1 from 0 at 2.4: c",
                "end effects s1 from 0 at 2.4: c\nend effects s9 from 0 at 2.4: a b c d",
            ),
        ),
        "was never there",
    ),
    (
        "C5",
        "a database with one effect too many",
        _(PLAIN, ("end effects s1 from 0 at 2.4: c", "end effects s1 from 0 at 2.4: c d")),
        "holds d as effect 2, where the log has nothing",
    ),
    (
        "C5",
        "a database of whole groups lacks the beginning of the first",
        _(GROUPS, ("end effects s1 from 1.1 at 2.4: a b c d", "end effects s1 from 1.1 at 2.4: b c d")),
        "holds b as effect 1",
    ),
    (
        "C5",
        "what the database holds twice",
        _(PLAIN, ("end effects s1 from 0 at 2.4: c", "end effects s1 from 0 at 2.4: c c")),
        "holds c twice",
    ),
    ("C5", "a filter that cannot be judged", without(PLAIN, "p2(importer)"), "nothing tells the head of 'd'"),
    (
        "C5",
        "an event beyond the log",
        _(PLAIN, ("s0#2 bookmark 2.4", "s0#2 event 2.5 x\ns0#2 bookmark 2.4")),
        "which the log does not hold",
    ),
    (
        "C5",
        "an event that is not selected",
        _(PLAIN, ("s1 event 2.3 c", "s1 event 2.3 c\ns1 event 2.4 d")),
        "which its filter does not select",
    ),
    (
        "C5",
        "an event again",
        _(PLAIN, ("s0#2 event 2.4 d", "s0#2 event 2.3 c\ns0#2 event 2.4 d")),
        "again or out of order",
    ),
    ("C5", "the bookmark skips one", _(PLAIN, ("s0#2 event 2.4 d", "")), "although the bookmark says"),
    (
        "C6",
        "a group lacks one of its changes",
        _(
            PLAIN,
            ("end entry 1.1 p0-1/1/1: a b", "end entry 1.1 p0-1/1/1: a x"),
            ("p1 submits o2: c", "p1 submits o2: c\np9 submits o9: x\np9 quit abandoned"),
            ("s0 event 1.2 b group 1", "s0 event 1.2 x group 1"),
        ),
        "at 1, nowhere",
    ),
    (
        "C6",
        "a group stands in two places",
        _(
            PLAIN,
            ("end entry 1.1 p0-1/1/1: a b", "end entry 1.1 p0-1/1/1: a | c"),
            ("end entry 2.3 p1-1/2/1: c", "end entry 2.3 p1-1/2/1: b"),
        ),
        "at 1, 3",
    ),
    (
        "C6",
        "a group has a stranger in it",
        _(PLAIN, ("p0 submits o1: a b", "p0 submits o1: a\np0 submits o9: b")),
        "a group from 1 to 2",
    ),
    (
        "C6",
        "two groups of a name in two lives stand in the other order",
        _(
            PLAIN,
            ("p2 quit", "p2(importer) submits o4: y\np2 quit"),
            ("p2#2 acked o3 2.4-4 repeated", "p2#2 acked o3 2.4-4\np2#2 acked o4 2.3-3"),
            ("end entry 2.3 p1-1/2/1: c", "end entry 2.3 importer/3/0: y"),
        ),
        "published op o3 before op o4",
    ),
    (
        "C8",
        "an entry of another lineage",
        _(PLAIN, ("end entry 2.4 importer/3/1: d", "end entry bb:2.4 importer/3/1: d")),
        "has an entry of lineage bbbbbbbbbbbbbbbb at 4",
    ),
    ("C8", "a log that holds nothing, and says it does", without(PLAIN, "end entry"), "its last entry ends at 0"),
    (
        "C10",
        "nobody tells where it began: one again that was saved",
        _(SILENT, ("s0#2 event 2.3 c", "s0#2 event 1.2 b group 1\ns0#2 event 2.3 c")),
        "again, although 2 was saved",
    ),
    (
        "C10",
        "nobody tells where it began: one too late",
        _(SILENT, ("s0#2 event 2.3 c", "")),
        "had been given only 2 before",
    ),
    (
        "C10",
        "a reader was to begin at a position",
        _(
            PLAIN,
            ("s0 reader from beginning", "s0 reader from 1.1"),
            ("s0 event 1.1 a more", ""),
            ("s0 connected 0", "s0 connected 1.2"),
            ("s0 event 1.2 b group 1", ""),
        ),
        "was to begin after",
    ),
    (
        "C10",
        "it was to go on from a place of another term",
        _(PLAIN, ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 2.2")),
        "was to go on after",
    ),
    (
        "C10",
        "a welcome names the serving leader's term",
        _(PLAIN, ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 2.2 asked 1.2")),
        "asked to go on after",
    ),
    (
        "C10",
        "what was saved early, of what was lost",
        _(RESTORED, ("s0 event 1.2 b", ""), ("s0 handled 1.2", "s0 handled 1.2\ns0 event 1.2 b")),
        "had been given only 1",
    ),
    (
        "C10",
        "saved back, and forth, and back",
        _(PLAIN, ("s0 handled 1.2", "s0 handled 1.2\ns0 handled 1.1\ns0 handled 1.1")),
        "its position went back",
    ),
    (
        "C10",
        "it begins before the highest that was saved",
        _(
            PLAIN,
            ("s0 handled 1.2", "s0 handled 1.2\ns0 handled 1.1"),
            ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.1"),
        ),
        "although 2 was saved",
    ),
    (
        "C11",
        "a bookmark at the log's end and one beyond, nothing tells of commits",
        _(without(PLAIN, "store commit"), ("s1 bookmark 2.4", "s1 bookmark 2.4\ns1 bookmark 2.5")),
        "but the log ends at 4",
    ),
    (
        "C12",
        "what stood there is gone, at the seq of another",
        _(
            TRIMMED,
            ("end entry 1.5 p0-1/1/5: e:delete f+state", "end entry 1/ffffffff.5 p0-1/1/5: e:delete f+state"),
            ("end log 1.6 floor 4", "end log 1/ffffffff.6 floor 4"),
        ),
        "was e:delete once",
    ),
    (
        "C12",
        "counted as stored; the first half was",
        _(PLAIN, ("a append 1 1-2 stored", "a append 1 1-3 stored")),
        "counted 1 to 3",
    ),
    (
        "C12",
        "counted as stored; the second half was",
        _(PLAIN, ("b append 2 3-4 stored", "b append 2 2-4 stored")),
        "counted 2 to 4",
    ),
    (
        "C13",
        "a position of the future is refused as too old",
        _(
            PLAIN,
            (
                "nemesis heal 10",
                "x reader from 2.9\nx refused position-too-old 2.9\nx#2 reader from now\nx#2 quit\nnemesis heal 10",
            ),
        ),
        "the reason is another",
    ),
    (
        "C13",
        "a position of another log is refused as of the future",
        _(
            PLAIN,
            (
                "nemesis heal 10",
                "x reader from bb:2.4\nx refused future-position bb:2.4\nx#2 reader from now\nx#2 quit\n"
                "nemesis heal 10",
            ),
        ),
        "is of lineage",
    ),
    (
        "C13",
        "a foreign term is refused as too old",
        _(
            PLAIN,
            (
                "nemesis heal 10",
                "x reader from 9.4\nx refused position-too-old 9.4\nx#2 reader from now\nx#2 quit\nnemesis heal 10",
            ),
        ),
        "is of another term",
    ),
    (
        "C13",
        "the beginning is refused",
        _(
            PLAIN,
            (
                "nemesis heal 10",
                "x reader from 0\nx refused other-lineage 0\nx#2 reader from now\nx#2 quit\nnemesis heal 10",
            ),
        ),
        "is a place of this log",
    ),
    (
        "C13",
        "the floor is refused as too old",
        _(
            TRIMMED,
            (
                "nemesis heal 10",
                "x reader from 1.4\nx refused position-too-old 1.4\nx#2 reader from now\nx#2 quit\nnemesis heal 10",
            ),
        ),
        "but the log's floor is 4",
    ),
    (
        "C13",
        "a good position gets an error that is no answer, and a bad one too",
        _(
            TRIMMED,
            ("s1#2 refused position-too-old 1.1", "s1#2 refused position-too-old 1.1\ns1#2 refused bad-message 1.1"),
        ),
        "was refused with bad-message",
    ),
    (
        "C13",
        "after the copy was put back, a place that it holds is refused",
        _(
            RESTORED,
            (
                "s1 event 2.2 c",
                "x reader from 1.1\nx refused other-lineage 1.1\nx#2 reader from now\nx#2 quit\ns1 event 2.2 c",
            ),
        ),
        "is a place of this log",
    ),
    (
        "C13",
        "two copies: the second loss is not told",
        _(
            RESTORED,
            (
                "nemesis heal 10",
                "nemesis restored 1\nc elected 3\nc fence 3 tail 1.1\np1 submits o5: x\nstore commit 3 2-2\n"
                "p1 acked o5 3.2-2\nnemesis heal 10",
            ),
        ),
        "was never told that its receipt for",
    ),
    (
        "C13",
        "another lineage, trimmed beyond the receipt: the loss is not told",
        without(
            _(
                RESTORED,
                ("nemesis restored 1", "nemesis restored 0 bb"),
                ("p1 acked o3 2.2-2", ""),
                ("p0 acked o4 2.3-3", "store trimmed 2\np0 acked o4 bb:2.3-3"),
            ),
            "p1 lost",
        ),
        "was never told",
    ),
    (
        "C13",
        "another lineage: the loss is not told",
        without(
            _(RESTORED, ("nemesis restored 1", "nemesis restored 0 bb"), ("p0 acked o4 2.3-3", "p0 acked o4 bb:2.3-3")),
            "p1 lost",
        ),
        "was never told",
    ),
    (
        "C13",
        "a name is superseded by its own life",
        _(
            PLAIN,
            ("p2 quit", "p2(importer) submits o7: x\np2 failed o7 superseded\np2 quit"),
            ("p2(importer)#2 submits o3: d", ""),
            ("p2#2 acked o3 2.4-4 repeated", "p2 acked o3 2.4-4"),
        ),
        "by nobody",
    ),
    (
        "C13",
        "a loss is told before any receipt",
        _(PLAIN, ("p0 submits o1: a b", "p0 submits o1: a b\np0 lost")),
        "the log holds all",
    ),
    (
        "C14",
        "an unfiltered reader is short of the last event",
        without(PLAIN, "s0#2 event 2.4", "s0#2 bookmark", "s0#2 handled", "effects"),
        "and never 4 (d)",
    ),
    (
        "C14",
        "the second heal is not answered",
        _(PLAIN, ("nemesis converged", "nemesis converged\nnemesis heal 10")),
        "did not converge",
    ),
    (
        "C14",
        "a named publisher's last life ends without an outcome",
        _(PLAIN, ("p2#2 acked o3 2.4-4 repeated", "p2#2 quit")),
        "op o3 of p2 has no outcome",
    ),
    (
        "C10",
        "a welcome in the middle of a life gives nothing",
        _(
            PLAIN,
            ("s0 event 1.2 b group 1", "s0 connected 1.2"),
            ("s0 handled 1.2", "s0 handled 1.2\ns0 event 1.2 b group 1"),
        ),
        "had been given only 1",
    ),
    (
        "C10",
        "it saved what came after its bookmark, before it came",
        _(
            without(PLAIN, "end effects s1", "s1 "),
            (
                "b append 2 3-4 stored",
                "b append 2 3-4 stored\ns1 reader from now\ns1 bookmark 1.2\ns1 handled 2.3\ns1 event 2.3 c\ns1 quit",
            ),
        ),
        "had been given only 2",
    ),
    (
        "C10",
        "it was sent away, and then began too late",
        _(
            PLAIN,
            ("s0#2 connected 1.2 asked 1.2", "s0#2 refused unavailable 1.2\ns0#2 connected 2.3"),
            ("s0#2 event 2.3 c", ""),
        ),
        "although it had been given only 2",
    ),
    (
        "C10",
        "single events begin before a position inside of a group",
        _(
            without(PLAIN, "end effects s0"),
            ("s0 handled 1.2", "s0 handled 1.1"),
            ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 0\ns0#2 event 1.1 a more\ns0#2 event 1.2 b group 1"),
        ),
        "although 1 was saved",
    ),
    (
        "C10",
        "the same, and nobody tells where it began",
        _(
            without(SILENT, "end effects s0"),
            ("s0 handled 1.2", "s0 handled 1.1"),
            ("s0#2 event 2.3 c", "s0#2 event 1.1 a more\ns0#2 event 1.2 b group 1\ns0#2 event 2.3 c"),
        ),
        "again, although 1 was saved",
    ),
    (
        "C10",
        "what began now goes on too late",
        _(
            without(PLAIN, "end effects s0")
            .replace("s0 reader from beginning", "s0 reader from now")
            .replace("s0#2 reader from beginning", "s0#2 reader from now"),
            ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 2.3"),
            ("s0#2 event 2.3 c", ""),
        ),
        "although it had been given only 2",
    ),
    (
        "C10",
        "it began before the position where it was to begin",
        _(
            without(PLAIN, "end effects s0"),
            ("s0 reader from beginning", "s0 reader from 1.2"),
            ("s0 handled 1.2", ""),
            ("s0#2 reader from beginning", "s0#2 reader from 1.2"),
        ),
        "was to begin after",
    ),
    (
        "C10",
        "saved twice, and it begins after the first",
        _(
            PLAIN,
            ("s0 event 1.1 a more", "s0 event 1.1 a more\ns0 handled 1.1"),
            ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.1\ns0#2 event 1.2 b group 1"),
        ),
        "although 2 was saved",
    ),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_corners(name: str, told: Told) -> None:
    """Nothing is held against what cannot be known, or is allowed."""
    assert check(told(GOOD[name])) == []


@pytest.mark.parametrize(
    ("promise", "text", "says"), [pytest.param(p, text, says, id=f"{p}: {what}") for p, what, text, says in BAD]
)
def test_bad_corners(promise: str, text: str, says: str, told: Told) -> None:
    """The checker of the promise says what is wrong, in its words."""
    found = [broken.says for broken in check(told(text)) if broken.promise == promise]
    assert any(says in one for one in found), found
