"""Rows of the checkers: each fires on bad histories, is silent on good ones, and takes time that grows as they do."""

from __future__ import annotations

import importlib.util
import random
import statistics
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from changefeed.history.checkers import CHECKERS, check
from changefeed.history.records import Record, read_file
from changefeed.testing.histories import MadeUp
from changefeed.testing.history_edits import EDITS, apply
from simulations.proof.rows import Row

TESTS: Final = Path(__file__).resolve().parents[2] / "tests"
#: Made-up histories, half of them with a log that is put back to a copy; each gets all edits.
SEEDS: Final = 400
#: Events of the long history: about a million records.
LONG: Final = 150_000


def rows(quick: bool = False) -> Iterator[Row]:
    """quick: a twentieth of the seeds, of the long history, and one checker's mutants; such rows do not pass."""
    yield by_hand()
    yield kept()
    yield from made_up(SEEDS // 20 if quick else SEEDS, not quick)
    yield speed(LONG // 20 if quick else LONG, not quick)
    yield mutants(quick)


def load(name: str) -> types.ModuleType:
    """A module of tests/history, which is no package."""
    spec = importlib.util.spec_from_file_location(f"proof_history_{name}", TESTS / "history" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def promises(records: list[Record]) -> set[str]:
    return {broken.promise for broken in check(records)}


def by_hand() -> Row:
    told = load("conftest").told
    hand, corners, more = (load(f"test_checkers_{name}") for name in ("by_hand", "corners", "corners_more"))
    bad = [(promise, told(text)) for promise, _, _, text, _ in hand.TWINS]
    bad += [(promise, told(text)) for promise, _, text, _ in (*corners.BAD, *more.BAD)]
    good = [told(twin[2]) for twin in hand.TWINS]
    good += [told(text) for text in (*corners.GOOD.values(), *more.GOOD.values())]
    missed = [promise for promise, records in bad if promise not in promises(records)]
    alarms = sum(bool(check(records)) for records in good)
    fewest = min(Counter(promise for promise, _ in bad)[promise] for promise in CHECKERS)
    return Row(
        "bad histories made by hand, each called bad by the checker of its promise; their good twins by none",
        f"{len(bad) - len(missed)} of {len(bad)} bad (at least {fewest} per checker), {alarms} of {len(good)} good",
        "all bad, at least 3 per checker, no good",
        not missed and not alarms and fewest >= 3,
    )


def kept() -> Row:
    files = sorted((TESTS / "histories").glob("*.jsonl"))
    verdicts = load("test_history_edits").verdict_of
    wrong = [path.stem for path in files if promises(list(read_file(path))) != verdicts(path)]
    return Row(
        "kept histories get the verdict that they got", f"{len(files) - len(wrong)} of {len(files)}", "all", not wrong
    )


def made_up(seeds: int, whole: bool) -> Iterator[Row]:
    alarms = records = edits = 0
    missed: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for seed in range(seeds):
        history = MadeUp(random.Random(f"proof-{seed}"), restores=bool(seed % 2)).history()
        records += len(history)
        alarms += bool(check(history))
        for name, (promise, _) in EDITS.items():
            broken = apply(name, history, random.Random(f"{seed}-{name}"))
            if broken is not None:
                edits += 1
                done[promise] += 1
                missed[name] += promise not in promises(broken)
    yield Row(f"{seeds} made-up good histories ({records} records) called bad", str(alarms), "0", not alarms and whole)
    yield Row(
        f"edits that break one promise in one place ({len(EDITS)} kinds), noticed by the checker of that promise",
        f"{edits - missed.total()} of {edits}; fewest of a checker: {min(done.values())}",
        "all; at least 100 per checker",
        not missed.total() and set(done) == set(CHECKERS) and (min(done.values()) >= 100 or not whole) and whole,
    )


def speed(events: int, whole: bool) -> Row:
    small = []
    for seed in range(40):
        history = MadeUp(random.Random(f"speed-{seed}"), steps=80).history()
        begun = time.process_time()
        check(history)
        small.append((time.process_time() - begun) * 1e3 / len(history) * 300)
    history = long_history(events)
    begun = time.process_time()
    broken = check(history)
    took = time.process_time() - begun
    return Row(
        "time of a processor to judge 300 records, and a long history",
        f"{statistics.median(small):.1f} ms; {len(history) / 1e6:.2f} million records in {took:.1f} s",
        "2 ms; a million in 60 s",
        not broken and statistics.median(small) <= 2 and took <= 60 * len(history) / 1e6 and whole,
    )


def mutants(quick: bool) -> Row:
    module = load("checker_mutants")
    parts = [part for part in module.PARTS if part.startswith("checkers.")]
    results = module.run(["checkers.duplicate"] if quick else parts, seeds=40)
    total, killed, explained = (sum(column) for column in zip(*results.values(), strict=True))
    return Row(
        "mutants of the checkers' own code, killed by the histories above, or explained",
        f"{killed} killed + {explained} explained of {total}",
        "96 % (docs/internals/checkers.md says what the others are about)",
        killed + explained >= 0.96 * total and not quick,
    )


def long_history(events: int) -> list[Record]:
    """A plain run: four publishers, four readers (two with a filter), a new leader every 2,000 groups."""
    chance = random.Random(1)
    records: list[Record] = []
    lineage, seq, epoch, t = "00000000000000aa", 0, 1, 0
    entries: list[dict[str, Any]] = []

    def write(node: str, f: str, life: int = 1, **facts: Any) -> None:
        nonlocal t
        t += 1000
        records.append({"t": t, "node": node, "life": life, "f": f, "feed": "vmapi", **facts})

    for n in range(4):
        wanted = None if n % 2 else {"resources": {"vm": ["state"]}}
        write(f"s{n}", "reader", reader=f"s{n}", filter=wanted, groups=False, start="beginning")
        write(f"s{n}", "connected", reader=f"s{n}", instance="a", position=f"{lineage}.0.00000000.0")
    write("a", "elected", epoch=1, term="00000001", why="start")
    write("a", "fence", epoch=1, term="00000001", tail=0)
    numbers = Counter[int]()
    while seq < events:
        if len(entries) % 2000 == 1999:
            epoch += 1
            write("a", "elected", epoch, epoch=epoch, term=f"{epoch:08x}", why="handover")
            write("a", "fence", epoch, epoch=epoch, term=f"{epoch:08x}", tail=seq)
        who, size, op = chance.randrange(4), chance.choice((1, 1, 3)), f"o{len(entries)}"
        keys = [f"{op}-{n}" for n in range(size)]
        digests = [f"{chance.getrandbits(64):016x}" for _ in keys]
        heads = [[chance.choice(("vm", "nic")), key, "update", [chance.choice(("state", "ram"))]] for key in keys]
        write(f"p{who}", "submit", op=op, keys=keys, digests=digests, name=None, heads=heads)
        stamp, first, last = f"{lineage}.{epoch}.{epoch:08x}", seq + 1, seq + size
        entries.append(
            {"epoch": epoch, "term": f"{epoch:08x}", "seq": first, "publisher": f"P{who}", "incarnation": who + 1}
            | {"number": numbers[who] + 1, "sizes": [size], "keys": keys, "digests": digests, "heads": heads}
        )
        numbers[who] += size
        write(f"p{who}", "acked", op=op, first=f"{stamp}.{first}", last=f"{stamp}.{last}", repeated=False)
        for n in range(4):
            chosen = [i for i, head in enumerate(heads) if n % 2 or (head[0] == "vm" and head[3] == ["state"])]
            for i in chosen:
                facts = {"key": keys[i], "digest": digests[i], "publisher": f"P{who}", "group": first}
                position = f"{stamp}.{first + i}"
                write(f"s{n}", "event", reader=f"s{n}", position=position, last=i == chosen[-1], **facts)
                write(f"s{n}", "handled", reader=f"s{n}", position=position)
        seq = last
    write("end", "log", lineage=lineage, tail=seq, floor=0)
    for entry in entries:
        write("end", "entry", **entry)
    return records
