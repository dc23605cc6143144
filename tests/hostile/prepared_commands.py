"""The real `changefeed` command, many times, without paying for Python's start each time.

A prepared process has imported the command line and forks for each command: the child has its own standard streams,
environment and folder, and ends with the exit status of `changefeed.cli.main`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class PreparedCommands:
    """count: how many commands run beside each other. `run` may be called from several threads."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._free: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        self._all = [self._start() for _ in range(count)]
        for process in self._all:
            self._free.put(process)
        self._numbers = iter(range(10**9))

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).resolve())]
        env = {key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """One command, with nothing on its standard input."""
        out, err = (self._folder / f"{next(self._numbers)}.{name}" for name in ("out", "err"))
        request = {"arguments": list(arguments), "env": dict(env), "cwd": str(cwd), "out": str(out), "err": str(err)}
        process = self._free.get()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
        finally:
            self._free.put(process)
        return subprocess.CompletedProcess(list(arguments), status, out.read_text(), err.read_text())

    def close(self) -> None:
        for process in self._all:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def prepared_commands(folder: Path, count: int) -> Iterator[PreparedCommands]:
    commands = PreparedCommands(folder, count)
    try:
        yield commands
    finally:
        commands.close()


def child(request: dict[str, Any]) -> None:
    """Become the command; never returns."""
    from changefeed.cli.run import main

    status = 70
    try:
        for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            fd = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(fd, number)
            os.close(fd)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        status = main(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def serve() -> None:
    import changefeed.cli.tail
    import changefeed.publisher.driver
    import changefeed.subscriber.driver
    import changefeed.transport.websocket  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
