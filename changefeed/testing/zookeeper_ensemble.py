"""A real ZooKeeper ensemble on loopback, started in a few seconds from Debian's jars: for tests and simulations.

    with ZookeeperEnsemble() as ensemble:      # three servers, in a temporary folder, on free ports
        ensemble.url("/feeds")                 # zk://127.0.0.1:…,127.0.0.1:…,127.0.0.1:…/feeds
        ensemble.kill(0)

Everything is synchronous, and takes up to a few seconds where it waits for servers: call it in a thread from trio.
Servers are stopped by their process ids when the block ends; if this process dies without ending it, a watchdog
process (a shell that waits for our end of a pipe to close) kills them and removes the folder.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

JAVA_FOLDER: Final = Path("/usr/share/java")
PACKAGES: Final = "apt-get install default-jre-headless zookeeper"
#: Below Linux's range for outgoing connections, so that no client of anybody takes a port between two starts.
PORTS: Final = range(15_000, 32_000)
_JVM: Final = (
    "-Xmx96m",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Xshare:auto",
    "-Djava.net.preferIPv4Stack=true",
)
_WATCHDOG: Final = 'read _; while read pid; do kill -9 "$pid" 2>/dev/null; done < "$1"; rm -rf "$2"'

#: Sizes of the ensembles that this process has started: a test run says at its end whether it had a real one.
STARTED: list[int] = []


class EnsembleError(RuntimeError):
    """The ensemble cannot be started or did not come up; the message says what is missing or what the servers said."""


def missing() -> str:
    """A sentence that says what is missing on this machine, naming Debian's packages; "" if nothing is."""
    if shutil.which("java") is None:
        return f"no Java on this machine: {PACKAGES}"
    jars = [
        name for name in ("zookeeper.jar", "zookeeper-jute.jar", "slf4j-api.jar") if not (JAVA_FOLDER / name).exists()
    ]
    if jars:
        return f"{JAVA_FOLDER} lacks {', '.join(jars)}: {PACKAGES}"
    return ""


@dataclass(slots=True)
class _Server:
    number: int
    folder: Path
    client_port: int
    peer_port: int
    election_port: int
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class ZookeeperEnsemble:
    """size: number of servers. tick_ms: ZooKeeper's clock; the shortest session is two ticks, any up to 60 s is
    granted. init_s, sync_s: how long its servers try to reach a new leader of theirs, and wait for one that is silent.
    read_only: servers without a quorum answer clients that ask for read-only sessions. hosts: an address for each
    server, loopback without; within: what the command of the server with that index is prefixed with (to put it into a
    network namespace, say); it must exec it, so that the process id stays.

    Raises EnsembleError at once if Java or the jars are missing."""

    def __init__(
        self,
        size: int = 3,
        *,
        tick_ms: int = 500,
        read_only: bool = False,
        init_s: float = 20.0,
        sync_s: float = 5.0,
        folder: Path | None = None,
        hosts: Sequence[str] | None = None,
        within: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        sentence = missing()
        if sentence:
            raise EnsembleError(sentence)
        self.size = size
        self.tick_ms = tick_ms
        self.read_only = read_only
        self._init_s, self._sync_s = init_s, sync_s
        self._given = folder
        self._hosts = tuple(hosts or ["127.0.0.1"] * size)
        self._within = within or (lambda _: ())
        self.folder = Path()
        self._servers: list[_Server] = []
        self._watchdog: subprocess.Popen[bytes] | None = None

    # -- addresses

    @property
    def connect_string(self) -> str:
        """HOST:PORT of every server, comma-separated."""
        return ",".join(f"{server.host}:{server.client_port}" for server in self._servers)

    def url(self, chroot: str = "") -> str:
        """The coordinator URL of this ensemble."""
        return f"zk://{self.connect_string}{chroot}"

    @property
    def ports(self) -> list[int]:
        """All of all servers: for clients, and between them."""
        return [port for s in self._servers for port in (s.client_port, s.peer_port, s.election_port)]

    def pid(self, index: int) -> int:
        process = self._servers[index].process
        if process is None:
            raise EnsembleError(f"server {index} has not been started")
        return process.pid

    # -- life

    def __enter__(self) -> ZookeeperEnsemble:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self, limit_s: float = 30.0) -> None:
        """Start all servers and wait until each serves. Ports taken meanwhile by others are drawn again."""
        for attempt in (1, 2, 3):
            self._make()
            try:
                self._launch_all(limit_s)
                STARTED.append(self.size)
                return
            except EnsembleError as error:
                self.close()
                if attempt == 3 or "in use" not in str(error):
                    raise

    def close(self) -> None:
        """Stop everything and remove the temporary folder."""
        for server in self._servers:
            self._signal(server, signal.SIGKILL)
        for server in self._servers:
            if server.process is not None:
                server.process.wait()
        self._servers.clear()
        if self._watchdog is not None:
            self._watchdog.kill()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None
        if self._given is None and self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = Path()

    # -- one server

    def kill(self, index: int) -> None:
        """SIGKILL."""
        self._end(index, signal.SIGKILL)

    def stop(self, index: int) -> None:
        """SIGTERM, and wait."""
        self._end(index, signal.SIGTERM)

    def pause(self, index: int) -> None:
        """SIGSTOP: the server freezes with its connections open; returns once none of its threads runs."""
        self._signal(self._servers[index], signal.SIGSTOP)
        deadline = time.monotonic() + 5.0
        tasks = Path(f"/proc/{self.pid(index)}/task")
        while time.monotonic() < deadline:
            states = [path.read_text().rpartition(")")[2].split()[0] for path in tasks.glob("*/stat")]
            if all(state == "T" for state in states):
                return
            time.sleep(0.001)

    def resume(self, index: int) -> None:
        self._signal(self._servers[index], signal.SIGCONT)

    def restart(self, index: int, limit_s: float = 30.0) -> None:
        """End the server if it runs, start it on its data, and wait until it serves."""
        self._end(index, signal.SIGKILL)
        self._launch(self._servers[index])
        self._wait_serving([self._servers[index]], limit_s)

    def launch(self, index: int) -> None:
        """Start a server that does not run, on its data, and do not wait: without a quorum it serves nobody."""
        self._launch(self._servers[index])

    def mode(self, index: int) -> str:
        """What a server does: "leader", "follower", "standalone", "read-only"; "" if it serves nobody."""
        for line in _ask(self._servers[index], "srvr").splitlines():
            if line.startswith("Mode: "):
                return line.removeprefix("Mode: ").strip()
        return ""

    def leader(self) -> int:
        """Index of the server that leads the ensemble. Raises EnsembleError if none does."""
        for index in range(len(self._servers)):
            if self.mode(index) == "leader":
                return index
        raise EnsembleError("no server leads the ensemble now")

    # -- all of them

    def kill_all(self) -> None:
        for server in self._servers:
            self._signal(server, signal.SIGKILL)
        for index in range(len(self._servers)):
            self.kill(index)

    def restart_all(self, limit_s: float = 30.0) -> None:
        """Start again, on their data, all servers (those that run are ended first); wait until each serves."""
        self.kill_all()
        self._launch_all(limit_s)

    def wipe(self, limit_s: float = 30.0) -> None:
        """End all servers, delete their data, and start them again, empty."""
        self.kill_all()
        for server in self._servers:
            shutil.rmtree(server.folder / "data" / "version-2", ignore_errors=True)
        self._launch_all(limit_s)

    # -- inside

    def _make(self) -> None:
        if self._given is None:
            self.folder = Path(tempfile.mkdtemp(prefix="changefeed-zookeeper-"))
        else:
            self.folder = self._given
            self.folder.mkdir(parents=True, exist_ok=True)
        pids = self.folder / "pids"
        pids.touch()
        removed = str(self.folder) if self._given is None else str(pids)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(pids), removed],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C meant for us must not end it first
        )
        ports = _free_ports(3 * self.size)
        for number in range(1, self.size + 1):
            folder = self.folder / f"server-{number}"
            client, peer, election = ports[3 * number - 3 : 3 * number]
            self._servers.append(_Server(number, folder, client, peer, election, self._hosts[number - 1]))
        for server in self._servers:
            (server.folder / "data").mkdir(parents=True, exist_ok=True)
            (server.folder / "data" / "myid").write_text(f"{server.number}\n")
            (server.folder / "zoo.cfg").write_text(self._config(server))

    def _config(self, server: _Server) -> str:
        lines = [
            f"tickTime={self.tick_ms}",
            f"initLimit={round(self._init_s * 1000 / self.tick_ms)}",
            f"syncLimit={round(self._sync_s * 1000 / self.tick_ms)}",
            f"dataDir={server.folder / 'data'}",
            f"clientPort={server.client_port}",
            f"clientPortAddress={server.host}",
            "maxClientCnxns=0",
            f"minSessionTimeout={2 * self.tick_ms}",
            "maxSessionTimeout=60000",
            "admin.enableServer=false",
            "4lw.commands.whitelist=srvr,ruok",
            "preAllocSize=64",
        ]
        if self.size > 1:
            lines += [f"server.{s.number}={s.host}:{s.peer_port}:{s.election_port}" for s in self._servers]
        return "\n".join(lines) + "\n"

    def _launch_all(self, limit_s: float) -> None:
        for server in self._servers:
            self._launch(server)
        self._wait_serving(self._servers, limit_s)

    def _launch(self, server: _Server) -> None:
        classpath = [JAVA_FOLDER / "zookeeper.jar"]  # its manifest names the other jars
        logging = JAVA_FOLDER / "slf4j-simple.jar"
        if logging.exists():
            classpath.append(logging)
        command = ["java", *_JVM, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        command.append(f"-Dreadonlymode.enabled={'true' if self.read_only else 'false'}")
        command += ["-cp", ":".join(map(str, classpath)), "org.apache.zookeeper.server.quorum.QuorumPeerMain"]
        with (server.folder / "log").open("ab") as log:
            server.process = subprocess.Popen(
                [*self._within(server.number - 1), *command, str(server.folder / "zoo.cfg")],
                cwd=server.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # Only those that run now: an old process id may be somebody else's by the time the watchdog reads it.
        running = [f"{other.process.pid}\n" for other in self._servers if other.running and other.process is not None]
        (self.folder / "pids").write_text("".join(running))

    def _wait_serving(self, servers: list[_Server], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        waiting = list(servers)
        while waiting:
            waiting = [server for server in waiting if not self.mode(server.number - 1)]
            for server in waiting:
                if not server.running:
                    raise EnsembleError(f"ZooKeeper server {server.number} ended: {self._said(server)}")
            if waiting and time.monotonic() > deadline:
                which = ", ".join(str(server.number) for server in waiting)
                raise EnsembleError(
                    f"ZooKeeper server {which} did not serve in {limit_s:g} s: {self._said(waiting[0])}"
                )
            if waiting:
                time.sleep(0.02)

    def _said(self, server: _Server) -> str:
        try:
            return (server.folder / "log").read_text(errors="replace")[-1500:].strip() or "(it said nothing)"
        except OSError as error:
            return str(error)

    def _signal(self, server: _Server, number: signal.Signals) -> None:
        if server.process is not None and server.running:
            server.process.send_signal(number)

    def _end(self, index: int, number: signal.Signals) -> None:
        server = self._servers[index]
        self._signal(server, number)
        self._signal(server, signal.SIGCONT)  # one that is frozen ends only when it goes on
        if server.process is not None:
            server.process.wait(timeout=20.0)


def _ask(server: _Server, word: str) -> str:
    """The server's answer to a four-letter word; "" if it gives none."""
    try:
        with socket.create_connection((server.host, server.client_port), timeout=1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(word.encode())
            parts = []
            while part := connection.recv(4096):
                parts.append(part)
            return b"".join(parts).decode(errors="replace")
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise EnsembleError(f"{count} free ports between {PORTS.start} and {PORTS.stop} are not to be found")


def main() -> None:
    """`python -m changefeed.testing.zookeeper_ensemble`: run one until Enter or Ctrl-C, for trying things by hand."""
    with ZookeeperEnsemble() as ensemble:
        print(ensemble.url(), flush=True)
        try:
            sys.stdin.readline()
        except KeyboardInterrupt:
            print(file=sys.stderr)


if __name__ == "__main__":
    main()
