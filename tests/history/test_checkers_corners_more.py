"""More corners of the checkers, by hand: copies that were put back, refusals, figures of steadiness. See
test_checkers_corners.py; a second file for the reader's sake."""

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


def behind(line: str, *more: str) -> tuple[str, str]:
    return line, "\n".join((line, *more))


FREEZE = "nemesis fault 1 freeze a expects leader-changed"
UNHARMED = _(PLAIN, (FREEZE, "nemesis fault 1 kill-client p1"))
UNSEEN = _(
    without(TRIMMED, "store entry", "store commit"),
    behind("s1 handled 1.1", "s2 reader from beginning", "s2 event 1.1 a", "s2 quit"),
)
UNTOLD_TRIM = _(
    without(UNSEEN, "store trimmed", "s1#2", "s1#3", "end effects"),
    behind("s1 quit", "s1#3 reader from 1.4", "s1#3 quit"),
)
#: The copy is trimmed after it was put back; s1 had read what is trimmed, s0 begins anew at the floor.
RESTORED_TRIMMED = _(
    without(RESTORED, "p1 lost", "end entry 1.1", "end entry 2.2", "s0#2 event 1.1", "s0#2 event 2.2"),
    ("s1 event 2.2 c", ""),
    behind("store entry 2.3 p0-1/1/2: d", "s1 event 2.2 c", "store trimmed 2"),
    ("s0#2 connected 0", "s0#2 connected 2.2"),
    ("end log 2.3 floor 0", "end log 2.3 floor 2"),
    ("end effects s0 from 0 at 2.3: a c d", "end effects s0 from 2.2 at 2.3: d"),
)

GOOD: dict[str, str] = {
    "two terms at a trimmed place, one of them lost": _(
        without(RESTORED, "store entry", "store commit", "end entry", "effects"),
        ("end log 2.3 floor 0", "end log 2.3 floor 3"),
    ),
    "what was lost is published again, behind what came since": _(
        RESTORED,
        behind(
            "p1 acked o3 2.2-2",
            "p1 submits o2: b",
            "store commit 2 4-4",
            "store entry 2.4 p1-1/2/3: b",
            "p1 acked o2 2.4-4",
        ),
        ("s0#2 handled 2.3", "s0#2 event 2.4 b\ns0#2 handled 2.4"),
        ("s1 handled 2.3", "s1 event 2.4 b\ns1 handled 2.4"),
        ("end log 2.3 floor 0", "end log 2.4 floor 0"),
        behind("end entry 2.3 p0-1/1/2: d", "end entry 2.4 p1-1/2/3: b"),
        ("end effects s0 from 0 at 2.3: a c d", "end effects s0 from 0 at 2.4: a c d b"),
        ("end effects s1 from 0 at 2.3: a c d", "end effects s1 from 0 at 2.4: a c d b"),
    ),
    "it went on from a place that was lost only later": _(
        RESTORED, ("nemesis restored 1", "x reader from 1.2\nx connected 1.2 asked 1.2\nx quit\nnemesis restored 1")
    ),
    "a place of another term below a floor that nobody told of": _(
        UNTOLD_TRIM,
        (
            "nemesis heal 10",
            "x reader from 9.2\nx refused other-lineage 9.2\nx#2 reader from now\nx#2 quit\nnemesis heal 10",
        ),
    ),
    "a lost receipt on its way comes before the news, and the next one after it": _(
        RESTORED,
        ("p1 submits o2: b", "p1 submits o2: b\np1 submits o9: z"),
        ("store commit 1 1-2", "store commit 1 1-3"),
        behind("store entry 1.2 p1-1/2/1: b", "store entry 1.3 p1-1/2/2: z"),
        behind("nemesis restored 1", "p1 acked o9 1.3-3"),
    ),
    "what was lost was trimmed since: nobody can tell": RESTORED_TRIMMED,
    "a leader that nobody saw elected": without(UNHARMED, "a elected 1"),
    "a later life of a leader tells of an epoch that was not its own": _(UNHARMED, ("a deposed 1", "a#2 deposed 1")),
    "another instance does": _(UNHARMED, ("a deposed 1", "c deposed 1")),
    "the log was put back under a leader": _(RESTORED, behind("b elected 2", "a deposed 1")),
    "on a real machine, where nobody tells of commits, load is a reason": without(UNHARMED, "store commit"),
    "the coordinator was back when the term ended": _(
        PLAIN, (FREEZE, "nemesis fault 2 kill-client p1\nnemesis effect 2 killed\nnemesis fault 1 quorum all")
    ),
    "a filtered reader that tells of no bookmarks need not know how far it is": _(
        without(TRIMMED, "s0 "),
        behind("p0 acked o3 1.4-4", 's0 reader {"ops": ["none"]} from beginning', "s0 connected 0"),
    ),
    "the second try with other bytes is what is stored": _(
        PLAIN, ("p1 submits o2: c", "p1 submits o2: c!\np1 submits o2: c")
    ),
    "everybody began at the end: there was nothing to deliver": _(
        without(PLAIN, "s0", "s1"),
        ("nemesis heal 10", "s0 reader from now\ns0 connected 2.4\ns0 bookmark 2.4\nnemesis heal 10"),
    ),
    "a bookmark again": _(PLAIN, behind("s1 bookmark 2.4", "s1 bookmark 2.4")),
    "a bookmark of what is lost, on its way": _(RESTORED, behind("nemesis restored 1", "s0 bookmark 1.2")),
    "what began now goes on, and nobody tells where": without(PLAIN, " connected ", "end effects s0")
    .replace("s0 reader from beginning", "s0 reader from now")
    .replace("s0#2 reader from beginning", "s0#2 reader from now"),
    "sent away in the middle of a life": _(
        PLAIN, ("s0 event 1.2 b group 1", "s0 refused unavailable 1.1\ns0 connected 1.2\ns0 event 1.2 b group 1")
    ),
    "killed before it said that it saved, and it had begun at the beginning": _(
        PLAIN, ("s0 handled 1.2", ""), ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 1.2")
    ),
    "whole groups from a place of which nothing tells where its group began": _(
        UNSEEN,
        ("s2 reader from beginning", "s2 reader groups from 1.3"),
        ("s2 event 1.1 a", "s2 connected 1.1 asked 1.3\ns2 event 1.2 b more\ns2 event 1.3 c group 2"),
    ),
    "it began at a floor that nobody told of": _(
        UNTOLD_TRIM,
        (
            "nemesis heal 10",
            "x reader from beginning\nx event 1.5 e:delete more\nx event 1.6 f+state group 5\nx quit\nnemesis heal 10",
        ),
    ),
    "the database of who never connected": _(
        PLAIN,
        behind("s0 handled 1.2", "s5 reader from beginning", "s5 quit"),
        behind("end effects s1 from 0 at 2.4: c", "end effects s5 from -:"),
    ),
    "the last event was given, and not saved": _(
        PLAIN,
        behind("s0#2 event 2.3 c", "s0#2 handled 2.3"),
        ("s0#2 handled 2.4", "s0#2 quit"),
        ("end effects s0 from 0 at 2.4: a b c d", "end effects s0 from 0: a b c"),
    ),
    "a database from before the trim": _(
        UNSEEN,
        behind("s1 handled 1.1", "s4 reader from beginning", "s4 connected 0", "s4 event 1.1 a"),
        ("store trimmed 4", "s4 event 1.2 b more\ns4 event 1.3 c group 2\ns4 event 1.4 d\nstore trimmed 4"),
        behind("s1#3 handled 1.6", "s4 event 1.5 e:delete more", "s4 event 1.6 f+state group 5", "s4 handled 1.6"),
        behind(
            "end effects s1 from 1.4 at 1.6: e:delete f+state", "end effects s4 from 0 at 1.6: a b c d e:delete f+state"
        ),
    ),
    "what is lost is refused when it is tried again": _(
        RESTORED,
        ("p1 submits o2: b", "p1 submits o2: b\np1 submits o9: z"),
        ("store commit 1 1-2", "store commit 1 1-3"),
        behind("store entry 1.2 p1-1/2/1: b", "store entry 1.3 p1-1/2/2: z"),
        behind("nemesis restored 1", "p1 failed o9 log-full"),
    ),
    "a receipt and a publish of one instant": _(
        PLAIN,
        ("p1 submits o2: c", ""),
        ("p1 acked o2 2.3-3", ""),
        ("p2#2 acked o3 2.4-4 repeated", "@0.5 p2#2 acked o3 2.4-4 repeated\n@0.5 p1 submits o2: c\np1 acked o2 2.3-3"),
    ),
    "an epoch comes again after its fence went away with the storage": _(
        RESTORED,
        (
            "nemesis restored 1",
            "c elected 2/eeeeeeee\nc fence 2/eeeeeeee tail 1.2\nnemesis restored 1",
        ),
    ),
    "a fence of the log that went away is told of afterwards, and its epoch comes again": _(
        RESTORED,
        ("a elected 1", "store fenced 1\na elected 1"),
        (
            "nemesis restored 1",
            "store fenced 2/eeeeeeee\nnemesis restored 1\nc elected 2/eeeeeeee\nc fence 2/eeeeeeee tail 1.2",
        ),
        ("b elected 2", "store fenced 2\nb elected 2"),
    ),
    "a fence of the log that went away is told of afterwards, and lower epochs write": _(
        RESTORED,
        ("a elected 1", "store fenced 1\na elected 1"),
        ("nemesis restored 1", "store fenced 3/eeeeeeee\nnemesis restored 1\nc fence 3/eeeeeeee tail 1.2"),
        ("b elected 2", "store fenced 2\nb elected 2"),
    ),
    "the same, of a copy that had lost nothing": """
store fenced 1
a elected 1
a fence 1 tail 0
p0 submits o1: a
store commit 1 1-1
p0 acked o1 1.1-1
store fenced 3
nemesis restored 1
b fence 3 tail 1.1
store fenced 2
c elected 2
c fence 2 tail 1.1
p0 submits o2: b
store commit 2 2-2
p0 acked o2 2.2-2
s0 reader from beginning
s0 connected 0
s0 event 1.1 a
s0 event 2.2 b
s0 handled 2.2
nemesis heal 10
nemesis converged
end log 2.2 floor 0
end entry 1.1 p0-1/1/1: a
end entry 2.2 p0-1/1/2: b
""",
    "a named publisher tries again what was refused, after what it submitted behind it was stored": _(
        PLAIN,
        ("p2(importer) submits o3: d", "p2(importer) submits o8: x\np2 failed o8 log-full\np2(importer) submits o3: d"),
        behind("p2#2 acked o3 2.4-4 repeated", "p2(importer)#2 submits o8: x", "p2#2 failed o8 number-skipped"),
    ),
    "the same, of a store that does not tell": without(
        _(
            PLAIN,
            (
                "p2(importer) submits o3: d",
                "p2(importer) submits o8: x\np2 failed o8 log-full\np2(importer) submits o3: d",
            ),
            (
                "p2#2 acked o3 2.4-4 repeated",
                "p2(importer)#2 submits o8: x\np2#2 failed o8 number-skipped\np2#2 acked o3 2.4-4 repeated",
            ),
        ),
        "store ",
    ),
    "a leader of a log that was put back is replaced": _(RESTORED, behind("s1 handled 2.3", "b deposed 2")),
    "the second try with other bytes was stored, and is trimmed": _(
        UNSEEN, ("p0 submits o1: a", "p0 submits o1: a!\np0 submits o1: a")
    ),
    "it began at a floor that nobody told of, and does not tell": _(
        without(TRIMMED, "store trimmed", "s1#2", "s1#3", "end effects"),
        (
            "nemesis heal 10",
            "x reader from beginning\nx event 1.5 e:delete more\nx event 1.6 f+state group 5\nx quit\nnemesis heal 10",
        ),
    ),
}

BAD: list[tuple[str, str, str, str]] = [
    (
        "C13",
        "a publisher is too late for its number, though it submitted nothing behind it",
        _(
            PLAIN,
            behind("p2#2 acked o3 2.4-4 repeated", "p2(importer)#2 submits o8: x", "p2#2 failed o8 number-skipped"),
        ),
        "too late for its number",
    ),
    (
        "C13",
        "a publisher is too late for its number before what is behind it was stored",
        _(
            PLAIN,
            (
                "p2(importer) submits o3: d",
                "p2(importer) submits o8: x\np2(importer) submits o3: d\np2 failed o8 number-skipped",
            ),
        ),
        "too late for its number",
    ),
    (
        "C13",
        "a publisher without a name is too late for its number",
        _(PLAIN, ("p1 submits o2: c", "p1 submits o8: x\np1 failed o8 number-skipped\np1 submits o2: c")),
        "too late for its number",
    ),
    (
        "C8",
        "the log lets two terms fence one epoch, and one never hears of it",
        _(PLAIN, ("a elected 1", "store fenced 1/eeeeeeee\nstore fenced 1\na elected 1")),
        "the log let epoch 1 be fenced with term 00000001, after term eeeeeeee",
    ),
    (
        "C8",
        "a leader of an epoch that the log never let it fence",
        _(PLAIN, ("a elected 1", "store fenced 1\na elected 1")),
        "says that it fenced epoch 2 with term 00000002: the log never did",
    ),
    (
        "C8",
        "a fence is told of before the log makes it",
        _(
            PLAIN,
            ("a fence 1 tail 0", "a fence 1 tail 0\nstore fenced 1"),
            ("b elected 2", "store fenced 2\nb elected 2"),
        ),
        "says that it fenced epoch 1",
    ),
    (
        "C8",
        "an epoch is fenced twice in the copy that was put back",
        _(
            RESTORED,
            ("a elected 1", "store fenced 1\na elected 1"),
            ("nemesis restored 1", "nemesis restored 1\nstore fenced 2/eeeeeeee\nc fence 2/eeeeeeee tail 1.1"),
            ("b elected 2", "store fenced 2\nb elected 2"),
        ),
        "the log let epoch 2 be fenced with term 00000002, after term eeeeeeee",
    ),
    (
        "C4",
        "two terms at a place that is trimmed and was not seen",
        _(UNSEEN, ("s2 event 1.1 a", "s2 event 1/ffffffff.1 a")),
        "and somebody else",
    ),
    (
        "C6",
        "a group lacks its first change",
        _(
            PLAIN,
            ("end entry 1.1 p0-1/1/1: a b", "end entry 1.1 p0-1/1/1: x b"),
            ("s0 event 1.1 a more", "s0 event 1.1 x more"),
            behind("p1 submits o2: c", "p9 submits o9: x", "p9 quit abandoned"),
        ),
        "at nowhere, 2",
    ),
    (
        "C13",
        "a publisher gets one receipt before the news, and one after it",
        _(
            RESTORED,
            ("p1 submits o3: c", "p1 submits o5: x\np1 submits o3: c"),
            ("store commit 2 2-3", "store commit 2 2-4"),
            behind("store entry 2.3 p0-1/1/2: d", "store entry 2.4 p1-1/2/3: x"),
            ("p1 lost", ""),
            ("p1 acked o3 2.2-2", "p1 acked o3 2.2-2\np1 lost\np1 acked o5 2.4-4"),
        ),
        "was never told",
    ),
    (
        "C13",
        "what was lost was not trimmed since, and is not told",
        _(
            without(RESTORED, "p1 lost", "end entry 1.1"),
            behind("store entry 2.3 p0-1/1/2: d", "store trimmed 1"),
            ("end log 2.3 floor 0", "end log 2.3 floor 1"),
        ),
        "was never told",
    ),
    (
        "C9",
        "after a copy was put back, a commit comes after a later fence",
        _(RESTORED, behind("b fence 2 tail 1.1", "c elected 3", "c fence 3 tail 1.1")),
        "after the fence of epoch 3",
    ),
    (
        "C15",
        "only clients were harmed, and then the coordinator",
        _(without(PLAIN, "nemesis over"), (FREEZE, "nemesis fault 2 kill-client p1\nnemesis fault 1 quorum all")),
        "while only the coordinator was away",
    ),
    (
        "C15",
        "another was frozen only afterwards",
        _(
            without(PLAIN, "nemesis over"),
            (FREEZE, "nemesis fault 1 quorum all"),
            behind("a deposed 1", "nemesis fault 3 freeze b", "nemesis effect 3 frozen"),
        ),
        "while only the coordinator was away",
    ),
    (
        "C14",
        "it was refused and never began anew",
        without(TRIMMED, "s1#3", "end effects"),
        "was refused (position-too-old) and never began anew",
    ),
    (
        "C1",
        "a receipt names the place of another's change",
        _(
            PLAIN,
            ("end entry 2.3 p1-1/2/1: c", "end entry 2.3 p1-1/2/1: d"),
            ("end entry 2.4 importer/3/1: d", "end entry 2.4 importer/3/1: c"),
        ),
        "where the log holds d",
    ),
    (
        "C1",
        "a receipt names a trimmed place that was seen to be another's",
        _(
            without(TRIMMED, "store entry 1.2"),
            ("store entry 1.1 p0-1/1/1: a", "store entry 1.1 p0-1/1/1: b"),
            ("p0 submits o1: a", "p0 submits o1: a"),
        ),
        "where the log holds b",
    ),
    (
        "C7",
        "the first of two receipts counts",
        _(
            PLAIN,
            ("p1 submits o2: c", ""),
            ("p1 acked o2 2.3-3", ""),
            (
                "p2#2 acked o3 2.4-4 repeated",
                "p2#2 acked o3 2.4-4\np1 submits o2: c\np1 acked o2 2.3-3\np2#2 quit\np2(importer)#3 submits o3: d\n"
                "p2#3 acked o3 2.4-4 repeated",
            ),
        ),
        "was published after the receipt of op o3",
    ),
    (
        "C5",
        "whole groups begin behind a term, and skip one",
        _(
            without(PLAIN, "end effects s1", "s1 bookmark"),
            ('s1 reader {"ids": ["c"]} groups from beginning', "s1 reader groups from 1.2"),
            ("s1 connected 0", "s1 connected 1.2"),
            ("s1 event 2.3 c", "s1 event 2.4 d"),
        ),
        "was never given 3 ",
    ),
    (
        "C5",
        "the same event twice, of a filter, where nobody saw the log",
        _(
            UNSEEN,
            ("s2 reader from beginning", 's2 reader {"resources": {"vm": []}} from beginning'),
            ("s2 event 1.1 a", "s2 event 1.1 a\ns2 event 1.1 a"),
        ),
        "again",
    ),
    (
        "C10",
        "its second life began before the position where it was to begin",
        _(
            without(PLAIN, "end effects s0"),
            ("s0 reader from beginning", "s0 reader from 1.1"),
            ("s0 connected 0", "s0 connected 1.1"),
            ("s0 event 1.1 a more", ""),
            ("s0 handled 1.2", ""),
            ("s0#2 reader from beginning", "s0#2 reader from 1.1"),
            ("s0#2 connected 1.2 asked 1.2", "s0#2 connected 0\ns0#2 event 1.1 a more\ns0#2 event 1.2 b group 1"),
        ),
        "was to begin after",
    ),
    (
        "C10",
        "single events go on before the group that was asked for",
        _(
            without(PLAIN, "end effects s0"),
            ("s0 handled 1.2", "s0 handled 1.1"),
            (
                "s0#2 connected 1.2 asked 1.2",
                "s0#2 connected 0 asked 1.1\ns0#2 event 1.1 a more\ns0#2 event 1.2 b group 1",
            ),
        ),
        "asked to go on after",
    ),
    (
        "C10",
        "whole groups from a place of which nothing is told go on behind it",
        _(
            UNSEEN,
            ("s2 reader from beginning", "s2 reader groups from 1.1"),
            ("s2 event 1.1 a", "s2 connected 1.3 asked 1.1\ns2 event 1.4 d"),
        ),
        "asked to go on after",
    ),
    (
        "C13",
        "a foreign term is refused as of the future",
        _(
            PLAIN,
            (
                "nemesis heal 10",
                "x reader from 9.4\nx refused future-position 9.4\nx#2 reader from now\nx#2 quit\nnemesis heal 10",
            ),
        ),
        "is of another term",
    ),
    (
        "C6",
        "after a copy was put back, two groups stand in the other order",
        _(
            RESTORED,
            ("p1 submits o3: c", "p1 submits o5: x\np1 submits o3: c"),
            ("store commit 2 2-3", "store commit 2 2-4"),
            behind("store entry 2.3 p0-1/1/2: d", "store entry 2.4 p1-1/2/3: x"),
            behind("end entry 2.3 p0-1/1/2: d", "end entry 2.4 p1-1/2/3: x"),
        ),
        "published op o5 before op o3",
    ),
    (
        "C16",
        "somebody began before the end, and nothing was delivered",
        _(
            without(PLAIN, "s0", "s1"),
            ("nemesis heal 10", "s0 reader from now\ns0 connected 2.3\ns0 quit\nnemesis heal 10"),
        ),
        "0 events",
    ),
    ("C16", "nobody read", without(PLAIN, "s0", "s1"), "0 events"),
    (
        "C4",
        "a receipt and a reader differ in the bytes of what is trimmed",
        _(UNSEEN, ("p0 submits o1: a", "p0 submits o1: a!")),
        "has bytes",
    ),
]

#: (what, the history, all promises that it breaks): also what is not held against it.
EXACT: list[tuple[str, str, set[str]]] = [
    (
        "the log lost its end, and the publisher is told: it is not a false alarm",
        _(
            without(PLAIN, "end entry 2.4"),
            ("end log 2.4 floor 0", "end log 2.3 floor 0"),
            behind("p2#2 acked o3 2.4-4 repeated", "p2#2 lost"),
        ),
        {"C1", "C5", "C11", "C12"},
    ),
    (
        "another change stands there, and the publisher is told",
        _(
            PLAIN,
            ("end entry 2.4 importer/3/1: d", "end entry 2/ffffffff.4 importer/3/1: d"),
            behind("p2#2 acked o3 2.4-4 repeated", "p2#2 lost"),
        ),
        {"C1", "C4", "C8", "C10", "C11", "C12"},
    ),
    (
        "told of a loss before the receipt that is lost",
        _(
            without(PLAIN, "end entry 2.4"),
            ("end log 2.4 floor 0", "end log 2.3 floor 0"),
            ("p2#2 acked o3 2.4-4 repeated", "p2#2 lost\np2#2 acked o3 2.4-4 repeated"),
        ),
        {"C1", "C5", "C11", "C12", "C13"},
    ),
]


@pytest.mark.parametrize("name", GOOD)
def test_more_good_corners(name: str, told: Told) -> None:
    """Nothing is held against what cannot be known, or is allowed."""
    assert check(told(GOOD[name])) == []


@pytest.mark.parametrize(
    ("promise", "text", "says"), [pytest.param(p, text, says, id=f"{p}: {what}") for p, what, text, says in BAD]
)
def test_more_bad_corners(promise: str, text: str, says: str, told: Told) -> None:
    """The checker of the promise says what is wrong, in its words."""
    found = [broken.says for broken in check(told(text)) if broken.promise == promise]
    assert any(says in one for one in found), found


@pytest.mark.parametrize(("text", "promises"), [pytest.param(text, broken, id=what) for what, text, broken in EXACT])
def test_what_is_broken_and_what_is_not(text: str, promises: set[str], told: Told) -> None:
    """All of what a history breaks, and nothing else."""
    assert {broken.promise for broken in check(told(text))} == promises
