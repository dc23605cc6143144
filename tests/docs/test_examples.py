"""What the how-to pages show is what the examples hold, and each example runs against a real instance."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from changefeed.testing.processes import ServeProcess

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = DOCS / "examples"
PATIENCE_S = 60


def unindented(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("page", ["publish.md", "write-an-agent.md", "snapshot.md"])
def test_each_block_of_a_page_stands_in_the_example_that_it_names(page: str) -> None:
    """Line by line, but for the indentation; and every link to an example is one of a file."""
    text = (DOCS / "how-to" / page).read_text()
    named = [(EXAMPLES / name).read_text() for name in re.findall(r"examples/(\w+\.py)\)", text)]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2 and named
    for block in blocks:
        lines = unindented(block)
        assert any(
            lines == all_lines[at : at + len(lines)]
            for all_lines in map(unindented, named)
            for at in range(len(all_lines))
        ), f"no example holds this block of {page}:\n{block}"


def wait_for(what: Callable[[], bool], tell: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.05)


@contextmanager
def running(name: str, folder: Path, env: dict[str, str]) -> Iterator[Path]:
    """An example that runs for ever; gives the file of what it prints. It is killed in the end."""
    output = folder / f"{name}.out"
    with output.open("ab") as file:
        command = [sys.executable, "-u", str(EXAMPLES / name)]
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=env)
    try:
        yield output
        assert process.poll() is None, output.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.processes
def test_the_examples_do_what_they_say(tmp_path: Path) -> None:
    """The agent lists first, follows, and lists again once it was away for longer than the retention."""
    log = f"sqlite:{tmp_path / 'log'}"
    instance = ServeProcess(
        ["vmapi", "fwapi"],
        log=log,
        coordinator=f"file:{tmp_path / 'c'}",
        name="one",
        folder=tmp_path,
        flags=("--set", "retention_every=100ms"),
    )
    rest = {key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}
    env = {**rest, "CHANGEFEED_URL": instance.url}

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def changefeed(*words: str) -> str:
        return run(sys.executable, "-m", "changefeed.cli", *words)

    instance.start()
    try:
        wait_for(instance.ready, instance.tail)
        assert "1000 changes are durable" in run(sys.executable, str(EXAMPLES / "service.py"))
        with (
            running("agent.py", tmp_path, env) as agent,
            running("exactly_once.py", tmp_path, env) as once,
        ):
            wait_for(lambda: (tmp_path / "agent.cursor").exists(), agent.read_text)
            changefeed("publish", "fwapi", "rule", "r1", "create")
            changefeed("publish", "fwapi", "vm", "v1", "update", "--fields", "alias")
            changefeed("publish", "fwapi", "vm", "v1", "update", "--fields", "state")
            wait_for(lambda: "apply 3 update v1" in agent.read_text(), agent.read_text)
            wait_for(lambda: applied(tmp_path) == [1, 2, 3], once.read_text)
        assert agent.read_text().splitlines() == ["list everything", "apply 1 create r1", "apply 3 update v1"]
        for n in range(5):
            changefeed("publish", "fwapi", "rule", f"r{n}", "update")
        changefeed("feed", "set", "fwapi", "--retention-count", "1", "--log", log)
        wait_for(lambda: instance.get("/status")["feeds"]["fwapi"]["term"]["trimmed_to"] > 3, instance.tail)
        with running("agent.py", tmp_path, env):
            wait_for(lambda: agent.read_text().count("list everything") == 2, agent.read_text)
            changefeed("publish", "fwapi", "rule", "r9", "create")
            wait_for(lambda: "apply 9 create r9" in agent.read_text(), agent.read_text)
    finally:
        instance.kill()


def applied(folder: Path) -> list[int]:
    connection = sqlite3.connect(folder / "rules.db")
    try:
        return [seq for (seq,) in connection.execute("SELECT seq FROM applied ORDER BY seq")]
    except sqlite3.OperationalError:
        return []  # not made yet
    finally:
        connection.close()


@pytest.mark.processes
def test_a_table_is_rebuilt_from_a_list(tmp_path: Path) -> None:
    """Listed, followed, resumed after a kill, and listed again once it was away for longer than the retention: what was
    deleted meanwhile is gone, and a late update brings nothing back."""
    log = f"sqlite:{tmp_path / 'log'}"
    flags = ("--set", "retention_every=100ms", "--set", "snapshot_every=50ms")
    instance = ServeProcess(
        ["vmapi"], log=log, coordinator=f"file:{tmp_path / 'c'}", name="one", folder=tmp_path, flags=flags
    )
    rest = {key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}
    env = {**rest, "CHANGEFEED_URL": instance.url}

    def changefeed(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "changefeed.cli", *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=env,
        )
        assert done.returncode == 0, done.stderr

    def publish(id: str, op: str, version: int) -> None:
        body = () if op == "delete" else ("--body", f'{{"v": {version}}}')
        changefeed("publish", "vmapi", "vm", id, op, "--version", str(version), *body)

    def becomes(*expected: str) -> None:
        with running("rebuilt_table.py", tmp_path, env) as said:
            wait_for(lambda: table(tmp_path) == list(expected), lambda: f"{table(tmp_path)} {said.read_text()}")

    instance.start()
    try:
        wait_for(instance.ready, instance.tail)
        changefeed("feed", "set", "vmapi", "--snapshot", "--log", log)
        publish("a", "create", 1)
        publish("b", "create", 1)
        becomes("a 1", "b 1")
        publish("a", "update", 2)
        publish("c", "delete", 7)
        publish("c", "update", 6)  # it comes late
        becomes("a 2", "b 1")
        publish("a", "delete", 3)
        for version in (2, 3, 4):
            publish("b", "update", version)
        changefeed("feed", "set", "vmapi", "--retention-count", "1", "--log", log)
        wait_for(lambda: instance.get("/status")["feeds"]["vmapi"]["term"]["trimmed_to"] > 6, instance.tail)
        becomes("b 4")
        publish("d", "create", 1)
        becomes("b 4", "d 1")
    finally:
        instance.kill()


def table(folder: Path) -> list[str]:
    connection = sqlite3.connect(folder / "vms.db")
    try:
        rows = connection.execute("SELECT id, json_extract(body, '$.v') FROM vms WHERE body IS NOT NULL ORDER BY id")
        return [f"{id} {version}" for id, version in rows]
    except sqlite3.OperationalError:
        return []  # not made yet
    finally:
        connection.close()
