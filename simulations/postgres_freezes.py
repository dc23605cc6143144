"""A deposed leader frozen in the middle of an append, thawed after the new leader has appended.

    python simulations/postgres_freezes.py [--freezes 1000] [--without fence|tail|both]

The append function is given gates: at each of its steps (and before it is called, and after its commit, before the
answer is read) the old leader can be held. Then a new leader fences and appends, then the old one goes on. Its commit
must have come before the fence, or fail; the log must be whole. `--without` takes a defence out of the store's
function: with one of them out, the other one holds; with both out the log must break, or this would prove nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

import psycopg  # noqa: E402
import trio  # noqa: E402

from changefeed.errors import ChangefeedError, LogDamaged, LogError  # noqa: E402
from changefeed.log.postgresql.connections import Server  # noqa: E402
from changefeed.log.postgresql.layout import lay_out  # noqa: E402
from changefeed.log.urls import open_log  # noqa: E402
from changefeed.log.verify import verify_log  # noqa: E402
from changefeed.settings import Settings  # noqa: E402
from changefeed.testing.log_scribe import Scribe, everything  # noqa: E402
from changefeed.testing.postgresql_server import PostgresqlServer  # noqa: E402

FEED: Final = "vmapi"
GATE: Final = 0x67617465
#: Where the old leader is held -> the text of the function before which the gate stands.
INSIDE: Final = {
    "before the lock": "    SELECT * INTO STRICT v_locked FROM changefeed.locked",
    "after the lock, before the checks": "    outcome := v_locked.outcome;",
    "after the checks, before the entries": "    INSERT INTO changefeed.entries",
    "after the entries, before the publishers": "    -- One row per publisher",
    "before the tail": "    UPDATE changefeed.heads SET tail_seq",
    "before the commit": "    -- What the entries hold of the outbox",
}
#: After so many freezes a new feed begins: each freeze reads the whole log of its feed.
FEED_FREEZES: Final = 40
STEPS: Final = ("before it is sent", *INSIDE, "after the commit, before the answer")


@dataclass
class Report:
    """outcomes: what the old leader's append came to, by step. broken: what must not be."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {step: Counter() for step in STEPS})
    broken: list[str] = field(default_factory=list)

    @property
    def freezes(self) -> int:
        return sum(counter.total() for counter in self.outcomes.values())

    def lines(self) -> list[str]:
        return [f"{step:42} {dict(counter)}" for step, counter in self.outcomes.items()]


def gated(source: str, without: str) -> str:
    """The append function with gates, and without the defences that are to be taken out."""
    begin = source.index("CREATE FUNCTION changefeed.append")
    text = source[begin : source.index("END $$;", begin) + len("END $$;")]
    text = text.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
    for number, (step, before) in enumerate(INSIDE.items(), 1):
        assert text.count(before) == 1, f"the gate {step!r} finds its place {text.count(before)} times"
        text = text.replace(before, f"    PERFORM public.gate({number});\n{before}")
    for defence, check in (("fence", "IF outcome = 'fenced' THEN"), ("tail", "ELSIF head.tail_seq <> p_tail THEN")):
        assert text.count(check) == 1, check
        if without in (defence, "both"):
            text = text.replace(check, check.split()[0] + " false THEN")
    return text


def prepare(server: PostgresqlServer, without: str) -> str:
    server.execute("CREATE DATABASE freezes")
    url = server.url("freezes")
    lay_out(Server(url, 10.0))
    source = (ROOT / "changefeed/log/postgresql/layout_1.sql").read_text()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.gate(p_number integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
            "  IF current_setting('changefeed.gate', true) = p_number::text THEN"
            f"    PERFORM pg_advisory_lock({GATE}); PERFORM pg_advisory_unlock({GATE}); END IF; END $$"
        )
        connection.execute(gated(source, without))
    return url


class Freezes:
    """Runs freezes one after the other on one log."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.chance = random.Random(seed)
        self.report = Report()
        self.epoch = 0
        self.gate = psycopg.connect(url, autocommit=True)
        self.watch = psycopg.connect(url, autocommit=True)

    async def run(self, freezes: int) -> Report:
        for number in range(freezes):
            await self.freeze(STEPS[number % len(STEPS)], f"{FEED}-{number // FEED_FREEZES}")
            if self.report.broken:
                break
        return self.report

    async def freeze(self, step: str, feed: str) -> None:
        old_store, new_store = open_log(self.url, Settings()), open_log(self.url, Settings())
        old, new = await old_store.open(feed), await new_store.open(feed)
        try:
            await self._freeze(step, old, new)
        except LogDamaged as error:
            self.report.broken.append(f"{step}: {error}")
        finally:
            await old.aclose()
            await new.aclose()

    async def _freeze(self, step: str, old: Any, new: Any) -> None:
        self.epoch += 1
        leader = await Scribe.fencing(old, self.epoch)
        if (await old.look()).incarnations < 2:
            await old.open_publisher(leader.epoch, leader.term, "q", named=False)
        await leader.write(self.chance.randint(1, 3))
        # Its groups are larger than the new leader's, so that no primary key stands in for a defence.
        entries = [leader.entry(sizes=(4, 3))]
        number = STEPS.index(step)
        outcome = "thawed"
        self.gate.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        held = True
        result: list[str] = []

        async def append() -> None:
            try:
                await leader.append(entries)
                result.append("stored")
            except ChangefeedError as error:
                result.append(error.code)

        async with trio.open_nursery() as nursery:
            if 0 < number < len(STEPS) - 1:
                await trio.to_thread.run_sync(self._gate_of, old, number)
                nursery.start_soon(append)
                await self._until_held()
            elif number:
                await append()
            self.epoch += 1
            look, fence = None, None
            try:
                fence = await Scribe.fencing(new, self.epoch, opens=False)
                look = await new.look()
                # Another publisher's, so that no unique number stands in for a defence either.
                fence.numbers["q", 2] = await new.last_number("q", 2) or 0
                await fence.append([fence.entry("q", 2)])
            except LogError as error:
                self.report.broken.append(f"{step}: the new leader met {error}")
            self.gate.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
            held = False
            if number == 0:
                await append()
        assert not held
        outcome = result[0]
        self.report.outcomes[step][outcome] += 1
        if look is not None and fence is not None:
            await self._judge(step, new, look, entries[0], outcome)

    def _gate_of(self, log: Any, number: int) -> None:
        log._rows._writer.connection.execute(f"SET changefeed.gate = '{number}'")

    async def _until_held(self) -> None:
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        with trio.fail_after(10):
            while self.watch.execute(waiting).fetchone() != (1,):  # noqa: ASYNC110  # another process
                await trio.sleep(0.001)

    async def _judge(self, step: str, log: Any, look: Any, entry: Any, outcome: str) -> None:
        """The old leader's entry is there if and only if it was there when the new one's fence returned."""
        found = await everything(log)
        there = any(each.digest == entry.digest for each in found)
        before = look.tail.seq >= entry.last_seq and there
        fault = (await verify_log(log)).fault
        if fault is not None:
            self.report.broken.append(f"{step}: {fault.what}")
        elif there and not before:
            self.report.broken.append(f"{step}: the old leader's entry came after the new one's fence")
        elif outcome == "stored" and not there:
            self.report.broken.append(f"{step}: an acknowledged entry is not there")
        elif outcome == "stored" and step not in STEPS[-1:]:
            self.report.broken.append(f"{step}: a deposed leader was told that its entry is stored")


def run(freezes: int, without: str = "", seed: int = 1) -> Report:
    """So many freezes, each step in turn, on a server of this run's own."""
    with PostgresqlServer.starting() as server:
        url = prepare(server, without)
        found = Freezes(url, seed)
        return trio.run(found.run, freezes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--freezes", type=int, default=1000)
    parser.add_argument("--without", choices=("", "fence", "tail", "both"), default="")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = run(options.freezes, options.without, options.seed)
    print("\n".join([*report.lines(), f"{report.freezes} freezes", *(f"BROKEN {each}" for each in report.broken)]))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
