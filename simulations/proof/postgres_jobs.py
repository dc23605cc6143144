"""proof-postgres: the store's contract, the main job, pgbench, freezes, bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from simulations import pgbench as bench
from simulations import postgres_freezes as freezes
from simulations.proof import postgres_basis as basis
from simulations.proof import steps
from simulations.proof.rows import Row

FILE_CHANGES: Final = 20_000
#: One kill every 4 s; the replay is spread over so many of them.
KILLS: Final = 12
#: When PostgreSQL is restarted and when it crashes: after these shares of the kills.
RESTART_AT, CRASH_AT = 1 / 3, 2 / 3
DEMO_LIMIT_S: Final = 900.0
FREEZES: Final = 1000
#: With a defence out: as many as meet each step this often.
WITHOUT_ROUNDS: Final = 14


def conformance(quick: bool = False) -> Iterator[Row]:
    """The published suite on a PostgreSQL of its own, then the lockstep machine from new seeds."""
    yield from steps.tests(
        "the store's contract: conformance suite, restored databases, lockstep with the memory store",
        "tests/postgresql/test_postgresql_conformance.py",
    )
    yield lockstep(5 if quick else 60, quick)


def lockstep(examples: int, quick: bool) -> Row:
    """More sequences of steps than the tests run, other ones each time."""
    from hypothesis import HealthCheck, settings

    from changefeed.testing.log_lockstep import lockstep_machine

    kit = imported("test_postgresql_conformance").kit
    with laid_out() as server:
        case = lockstep_machine(kit(server)[0]).TestCase
        case.settings = settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        )
        case().runTest()  # raises what differs, with the steps that lead there
    return Row(
        "lockstep machine beside the memory store, sequences of up to 30 steps from new seeds",
        f"{examples} sequences, 0 differ",
        f"0 differ{basis.quick_note(quick)}",
        not quick,
    )


def imported(name: str):  # type: ignore[no-untyped-def]  # a module of tests, which are no package
    """A module of tests/postgresql/."""
    import importlib

    folder = str(basis.ROOT / "tests" / "postgresql")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def laid_out():  # type: ignore[no-untyped-def]  # a context manager
    """A server as those tests have it: with a database `laid_out` from which others are copied."""
    from contextlib import contextmanager

    from changefeed.log.postgresql.connections import Server
    from changefeed.log.postgresql.layout import lay_out
    from changefeed.testing.postgresql_server import PostgresqlServer

    @contextmanager
    def made() -> Iterator[PostgresqlServer]:
        with PostgresqlServer.starting() as server:
            server.execute("CREATE DATABASE laid_out")
            lay_out(Server(server.url("laid_out"), 5.0))
            yield server

    return made()


# ---- the main job


def demo(git: Path | None = None, quick: bool = False) -> Iterator[Row]:
    """`changefeed demo --git` on PostgreSQL, whose server is restarted and crashes while leaders are killed."""
    kills = 5 if quick else KILLS
    with basis.database() as (server, url):
        command = [sys.executable, "-m", "changefeed.cli", "demo", "--json", "--log", url]
        command += ["--at-least", str(FILE_CHANGES // 10 if quick else FILE_CHANGES)]
        command += ["--kill-every", "4s", "--kills", str(kills)]
        command += ["--git", str(git)] if git is not None else []
        process = subprocess.Popen(
            command, cwd=basis.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        assert process.stdout is not None
        deadline = time.monotonic() + DEMO_LIMIT_S
        lines: list[str] = []
        seen, harm = 0, []
        due = [
            (RESTART_AT * kills, signal.SIGINT, "fast restart"),
            (CRASH_AT * kills, signal.SIGQUIT, "immediate crash"),
        ]
        try:
            for raw in process.stdout:
                lines.append(raw.decode(errors="replace"))
                seen += '"event": "kill"' in lines[-1] or '"event":"kill"' in lines[-1]
                if due and seen >= due[0][0]:
                    # Beside the kills of leaders, right behind one: while a new leader begins.
                    _, how, name = due.pop(0)
                    server.restart(how)
                    harm.append(f"{name} after kill {seen}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the demo did not end within {DEMO_LIMIT_S:g} s: {lines[-1].strip()}")
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(30)
    verdict = json.loads(steps.last_line("".join(lines)))
    kinds = ("lost", "skipped", "repeated", "reordered", "torn", "foreign", "unsettled")
    kept = {name: verdict[name] for name in kinds}
    yield Row(
        f"demo on PostgreSQL, {'a named clone' if git else 'a generated history'}; "
        f"PostgreSQL: {', '.join(harm) or 'untouched'}",
        f"exit {code}; {verdict['changes']:,} file changes; {verdict['kills_counted']} counted kills of leaders; "
        f"trees {verdict['trees_equal']}; {', '.join(f'{name} {count}' for name, count in kept.items())}; "
        f"no receipts median {verdict['gap_ms_median']} ms, worst {verdict['gap_ms_worst']} ms",
        f"{FILE_CHANGES:,} changes, 10 counted kills, a restart and a crash of PostgreSQL, exact trees, 0 lost, "
        f"0 repeated{basis.quick_note(quick)}",
        code == 0
        and verdict["clean"]
        and verdict["changes"] >= FILE_CHANGES
        and verdict["kills_counted"] >= 10
        and len(harm) == 2
        and verdict["trees_equal"] == "3 of 3"
        and not any(kept.values())
        and not quick,
    )


# ---- pgbench


def pgbench(quick: bool = False) -> Iterator[Row]:
    """simulations/pgbench.py: its options' defaults are what is asked for."""
    options = bench.parser().parse_args(["--seconds", "15", "--kills", "2"] if quick else [])
    report = bench.run(options)
    mirrors = report.mirrors
    yield Row(
        f"pgbench on four captured tables, {options.clients} clients, {report.seconds:.0f} s: tables rebuilt from the "
        "feed against the source",
        f"{report.transactions:,} transactions, {mirrors.changes:,} changes; {report.kills} leaders killed, PostgreSQL "
        f"restarted {report.restarts} x, crashed {report.crashes} x; "
        f"{'; '.join(report.errors) or 'every row of every table is equal'}",
        f"60 s, 6 kills, 1 restart, 1 crash; all rows equal{basis.quick_note(quick)}",
        not report.errors
        and report.transactions > 0
        and report.seconds >= 60
        and report.kills >= 6
        and report.restarts >= 1
        and report.crashes >= 1
        and not quick,
    )
    yield Row(
        "sums over accounts, tellers and branches at every group boundary",
        f"uneven at {mirrors.uneven} of {mirrors.groups:,} boundaries {mirrors.first_uneven}".rstrip(),
        f"0 uneven, a boundary for each transaction at least{basis.quick_note(quick)}",
        not mirrors.uneven and mirrors.groups >= report.transactions > 0 and not quick,
    )


# ---- freezes


def frozen(quick: bool = False) -> Iterator[Row]:
    """A deposed leader thawed after the new one has appended; then the same without the defences."""
    wanted = FREEZES // 20 if quick else FREEZES
    report = freezes.run(wanted)
    counts = {step: counter.total() for step, counter in report.outcomes.items()}
    outcomes = sum(report.outcomes.values(), start=type(next(iter(report.outcomes.values())))())
    yield Row(
        "a leader frozen in an append, thawed after the new one has appended: its commit came before the fence, or "
        "failed",
        f"{report.freezes:,} freezes: {'; '.join(f'{step} {count}' for step, count in counts.items())}; "
        f"outcomes {', '.join(f'{name} {count}' for name, count in sorted(outcomes.items()))}; "
        f"broken: {'; '.join(report.broken) or 'none'}",
        f"{FREEZES:,} freezes, none of the steps 0, 0 broken{basis.quick_note(quick)}",
        not report.broken and report.freezes >= FREEZES and all(counts.values()) and not quick,
    )
    for defence, gone, other in (("fence", "fence", "the tail check"), ("tail", "tail check", "the fence")):
        held = freezes.run(len(freezes.STEPS) * WITHOUT_ROUNDS, defence)
        yield Row(
            f"the same with the {gone} taken out of the store: {other} holds",
            f"{held.freezes} freezes; broken: {'; '.join(held.broken) or 'none'}",
            "0 broken",
            not held.broken and held.freezes >= len(freezes.STEPS) * WITHOUT_ROUNDS,
        )
    both = freezes.run(len(freezes.STEPS) * WITHOUT_ROUNDS, "both")
    yield Row(
        "the same with both taken out: the log must break, or this proves nothing",
        f"{'broken after' if both.broken else 'whole after'} {both.freezes} freezes"
        f"{': ' + both.broken[0] if both.broken else ''}",
        "broken",
        bool(both.broken),
    )


# ---- bad input


def bad_input(quick: bool = False) -> Iterator[Row]:
    """The table of errors: which tests hold what. `quick` is the same: they are short."""
    for line, *selection in BAD_INPUT:
        yield from steps.tests(f"bad input: {line}", *selection)


_SERVER: Final = "tests/postgresql/test_postgresql_server.py"
_OUTBOX: Final = "tests/postgresql/test_outbox.py"
_CAPTURE: Final = "tests/postgresql/test_capture.py"
BAD_INPUT: Final = (
    ("wrong password, database, role; nobody answers", _SERVER, "-k", "wrong_password or nobody_answers"),
    ("missing, older, newer schema", _SERVER, "-k", "missing_older or laying_out"),
    ("missing privilege", _SERVER, "-k", "privileges or no_more_than_the_page"),
    ("read-only standby; fsync, full_page_writes, synchronous_commit off", _SERVER, "-k", "standby or would_lose"),
    ("disk full (needs root, to mount a small one)", _SERVER, "-k", "full_disk"),
    ("a change that is none, a transaction above the group limit", _OUTBOX, "-k", "refused or declared"),
    (
        "no such table or column, a table without a key, a transaction above the group limit",
        _CAPTURE,
        "-k",
        "cannot_be_captured or without_a_key or too_large or above_the_group",
    ),
    ("a column type without a JSON form", _CAPTURE, "-k", "have_a_form or has_no_form or jsonb_refuses"),
)
