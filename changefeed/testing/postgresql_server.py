"""A PostgreSQL server of a test's own: from Debian's packages, on a free loopback port, in a temporary folder.

    with PostgresqlServer.starting() as server:
        store = open_log(server.url("postgres"))

As root it runs under the system's user "postgres" (or "nobody"), since PostgreSQL refuses to run as root. Debian's own
cluster is neither used nor started. The server is stopped by its process id.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Final

from changefeed.testing.processes import free_port

START_S: Final = 30.0
_SETTINGS: Final = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_min_messages": "warning",
    "autovacuum_naptime": "5s",
}


class NoPostgresql(Exception):
    """PostgreSQL's programs are not installed; the message says what to do."""


def programs() -> Path:
    """The folder of initdb and postgres, the newest version's. Raises NoPostgresql."""
    found = sorted(glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda p: int(re.findall(r"/(\d+)/", p)[0]))
    if found:
        return Path(found[-1]).parent
    which = shutil.which("initdb")
    if which is None:
        raise NoPostgresql("PostgreSQL's server is not installed; on Debian: apt-get install postgresql")
    return Path(os.path.realpath(which)).parent


def _user() -> dict[str, int]:
    """Under whom the server runs: arguments for subprocess."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid}
    raise NoPostgresql("PostgreSQL does not run as root, and there is no user postgres or nobody")


class PostgresqlServer:
    """One server. host: an address of this machine, or of a network namespace that the test made. prefix: of the
    server's command, to enter that namespace; it must exec it, so that the process id stays."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.host = host
        self.port = free_port()
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def starting(cls, **settings: str) -> Iterator[PostgresqlServer]:
        """A server in a temporary folder that goes with it. Not below pytest's: that one is root's alone."""
        with tempfile.TemporaryDirectory(prefix="changefeed-postgresql-", ignore_cleanup_errors=True) as directory:
            server = cls(Path(directory))
            server.create(**settings)
            server.start()
            try:
                yield server
            finally:
                server.stop(signal.SIGQUIT)  # nobody wants its data: no time for a checkpoint

    def url(self, database: str = "postgres", user: str = "postgres", password: str = "") -> str:
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@{self.host}:{self.port}/{database}"

    def own(self, path: Path) -> None:
        """Give a file or folder, with all in it, to the server's user."""
        user = _user()
        if user:
            for each in (path, *path.rglob("*")):
                os.chown(each, user["user"], user["group"])

    def call(self, command: list[str]) -> None:
        """Run one of PostgreSQL's programs as the server's user. Raises NoPostgresql with what it said."""
        done = subprocess.run(command, capture_output=True, check=False, cwd="/", **_user())  # type: ignore[call-overload]
        if done.returncode:
            raise NoPostgresql(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[-500:]}")

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser, each in a transaction of its own."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def create(self, **settings: str) -> None:
        """Lay out an empty cluster whose superuser is postgres, without passwords (trust) on loopback."""
        self.directory.mkdir(parents=True, exist_ok=True)
        user = _user()
        if user:  # which must reach its folder, wherever that lies
            self.directory.chmod(0o755)
            os.chown(self.directory, user["user"], user["group"])
        command = [programs() / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]
        made = subprocess.run([*command, "--no-sync"], capture_output=True, check=False, cwd="/", **user)  # type: ignore[call-overload]
        if made.returncode:
            raise NoPostgresql(f"initdb failed: {made.stderr.decode(errors='replace').strip()[-500:]}")
        lines = [f"{name} = {value}\n" for name, value in {**_SETTINGS, **settings}.items()]
        with open(self.data / "postgresql.auto.conf", "a", encoding="utf-8") as file:
            file.writelines([*lines, f"port = {self.port}\n"])
        if self.host != "127.0.0.1":
            self.configure(listen_addresses=f"'{self.host}'")
            with open(self.data / "pg_hba.conf", "a", encoding="utf-8") as file:
                file.write("host all all samenet trust\n")

    def configure(self, **settings: str) -> None:
        """Settings for the next start (or `reload`)."""
        with open(self.data / "postgresql.auto.conf", "a", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def start(self) -> None:
        """Start and wait until it answers."""
        log = open(self.directory / "server.log", "ab")  # noqa: SIM115  # handed to the child
        user, drop = _user(), []
        if user and self._prefix:  # what enters a namespace is root still, and gives that up behind it
            drop = ["setpriv", f"--reuid={user['user']}", f"--regid={user['group']}", "--clear-groups"]
            user = {}
        command = [*self._prefix, *drop, str(programs() / "postgres"), "-D", str(self.data)]
        with log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
                **user,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_S
        ready = [*self._prefix, str(programs() / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.directory / "server.log").read_text(errors="replace")[-1000:]
                raise NoPostgresql(f"PostgreSQL did not start: {text}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: a fast shutdown; SIGQUIT: at once, as a crash, recovered at the next start. Waits for its end."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def backends(self) -> list[int]:
        """Pids of the server's processes that serve connections, as the system's process table has them."""
        found = []
        for path in glob("/proc/[0-9]*/stat"):
            try:
                text = Path(path).read_text()
                line = Path(path).with_name("cmdline").read_text()
            except OSError:
                continue
            parent = int(text.rpartition(")")[2].split()[1])
            if parent == self.pid and "127.0.0.1(" in line:
                found.append(int(path.split("/")[2]))
        return found
