"""Real `changefeed serve` processes on loopback: started, killed, frozen, thawed, asked. For tests, demo, dev, proofs.

Everything is synchronous; call it from trio through `trio.to_thread.run_sync` where it may wait. Processes are stopped
by process id, and each is in a session of its own so that a Ctrl-C meant for the parent does not reach it first. They
do not outlive the process that started them (see tied.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from changefeed.errors import Unavailable
from changefeed.testing.tied import leash, tied

#: The names of a cluster's instances, and so how many there may be.
INSTANCES: Final = "abcdefghijklmnopqrstuvwxyz"


#: Below Linux's range for outgoing connections: an instance that is started again finds its port free, whoever has
#: connected to somewhere meanwhile.
PORTS = range(15_000, 32_000)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class ServeProcess:
    """One instance as a process of its own; `start` may be called again after it died, with the same name and port."""

    def __init__(
        self,
        feeds: Sequence[str],
        *,
        log: str,
        coordinator: str,
        name: str,
        folder: Path,
        port: int = 0,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = port or free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self.output = folder / f"{name}.log"
        self._command = [
            *tied("changefeed.cli", "serve", *feeds),
            *("--log", log, "--coordinator", coordinator, "--name", name),
            *("--listen", f"127.0.0.1:{self.port}", *flags),
        ]
        self._env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                stdin=leash(),
                env=self._env,
                start_new_session=True,
            )

    def send(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.send(signal.SIGKILL)
        self.wait(10)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM: the instance drains."""
        self.send(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """The exit status; raises subprocess.TimeoutExpired."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def get(self, path: str, timeout_s: float = 2.0) -> Any:
        """The JSON of an HTTP route; raises OSError or ValueError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout_s) as response:
            return json.loads(response.read())

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                return True
        except (OSError, ValueError):
            return False

    def said(self) -> str:
        """Its last words, on one line."""
        return "it said: " + (" | ".join(self.tail(5).splitlines()) or "nothing")

    def tail(self, lines: int = 20) -> str:
        """The last lines of what it printed, for messages of failed tests."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


class ServeCluster:
    """Several instances of the same feeds over one log and one coordinator."""

    def __init__(
        self,
        feeds: Sequence[str],
        *,
        count: int,
        folder: Path,
        log: str | None = None,
        coordinator: str | None = None,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.feeds = list(feeds)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = log or f"sqlite:{folder / 'log'}"
        self.coordinator = coordinator or f"file:{folder / 'coordinator'}"
        names = list(INSTANCES)[:count]
        self.instances = [
            ServeProcess(
                feeds, log=self.log, coordinator=self.coordinator, name=name, folder=folder, flags=flags, env=env
            )
            for name in names
        ]

    @property
    def servers(self) -> str:
        return ",".join(instance.url for instance in self.instances)

    def start(self, timeout_s: float = 30.0) -> None:
        for instance in self.instances:
            instance.start()
        self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Until every running instance is ready; raises Unavailable with what the one that is not printed."""
        deadline = time.monotonic() + timeout_s
        for instance in self.instances:
            while instance.running and not instance.ready():
                if time.monotonic() > deadline:
                    raise Unavailable(f"instance {instance.name} is not ready after {timeout_s:g} s; {instance.said()}")
                time.sleep(0.02)
            if not instance.running:
                status = instance.wait(0)
                raise Unavailable(f"instance {instance.name} ended with exit status {status}; {instance.said()}")

    def leader(self, feed: str | None = None) -> ServeProcess | None:
        """The instance that leads, as any running one says; None if nobody is known to lead."""
        for instance in self.instances:
            if not instance.running:
                continue
            with contextlib.suppress(OSError, ValueError, KeyError):
                status = instance.get("/status")["feeds"][feed or self.feeds[0]]
                if status["leads"]:
                    return instance
        return None

    def wait_leader(
        self, feed: str | None = None, *, but: ServeProcess | None = None, timeout_s: float = 30.0
    ) -> ServeProcess:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            leader = self.leader(feed)
            if leader is not None and leader is not but:
                return leader
            time.sleep(0.01)
        raise TimeoutError(f"nobody leads after {timeout_s} s")

    def stop(self) -> None:
        """SIGKILL whatever still runs."""
        for instance in self.instances:
            if instance.running:
                instance.thaw()
                instance.kill()

    def __enter__(self) -> ServeCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
