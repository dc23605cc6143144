"""What the README shows is what the examples hold, and the examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from changefeed.testing.processes import ServeProcess

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def shown() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("index", "name"), [(0, "publisher.py"), (1, "subscriber.py")])
def test_the_readme_shows_the_examples(index: int, name: str) -> None:
    """Each block is the body of its example, word for word, and at most ten lines."""
    assert textwrap.indent(shown()[index], "    ") in (ROOT / "docs" / "examples" / name).read_text()
    assert len(shown()[index].splitlines()) <= 10


def test_the_readme_names_what_people_run() -> None:
    """The two commands, the sandbox, and the sentence about order beside the first publish()."""
    for command in ("make demo", "make test", "changefeed dev"):
        assert command in README
    assert README.index("publish(") < README.index("order of the publishes") < README.index("A subscriber")


def test_the_readme_links_to_what_is_there() -> None:
    """No link of the README leads nowhere."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.processes
def test_the_examples_run(tmp_path: Path) -> None:
    """The publisher's change arrives at the subscriber, and after a restart of the subscriber nothing comes twice."""
    instance = ServeProcess(
        ["vmapi"], log=f"sqlite:{tmp_path / 'log'}", coordinator=f"file:{tmp_path / 'c'}", name="one", folder=tmp_path
    )
    env = {**os.environ, "CHANGEFEED_URL": instance.url, "PYTHONUNBUFFERED": "1"}
    examples = ROOT / "docs" / "examples"

    def publish() -> str:
        done = subprocess.run(
            [sys.executable, str(examples / "publisher.py")], capture_output=True, text=True, timeout=60, env=env
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def subscribed() -> str:
        process = subprocess.Popen(
            [sys.executable, str(examples / "subscriber.py")], stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        deadline = time.monotonic() + 60
        while not (tmp_path / "vmapi.cursor").exists() or f'.{line.split()[0]}"' not in saved():
            assert time.monotonic() < deadline, "the cursor was not saved"
            time.sleep(0.02)
        process.kill()
        process.communicate()
        return line

    def saved() -> str:
        return (tmp_path / "vmapi.cursor").read_text()

    instance.start()
    try:
        deadline = time.monotonic() + 60
        while not instance.ready():
            assert time.monotonic() < deadline, instance.tail()
            time.sleep(0.02)
        assert publish().startswith("durable at ")
        assert subscribed() == "1 update vm 8ad35ea4 {'state': 'running'}\n"
        publish()
        assert subscribed().startswith("2 update")
    finally:
        instance.kill()
