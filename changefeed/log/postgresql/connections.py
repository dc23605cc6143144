"""Connections to PostgreSQL, synchronously: how one is made and judged, and what its errors mean.

Every statement is one function call in a transaction of its own (autocommit, READ COMMITTED): no lock is ever held
while the server waits for us.

**What an error says of a write.** The server's word ("ERROR") means that the transaction was undone. Without its word
(the connection broke, or the server ended it: "FATAL") the commit may have happened: the outcome is unknown. So it is
after a warning that a synchronous commit stopped waiting: it is stored here, and perhaps on no standby.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from changefeed.errors import (
    AppendOutcomeUnknown,
    BadConfig,
    BadUrl,
    ChangefeedError,
    LogAccessDenied,
    LogDamaged,
    LogFull,
    LogNotLaidOut,
    LogUnavailable,
    LogUnsafe,
)

if TYPE_CHECKING:
    import psycopg

#: PostgreSQL 13 and newer.
SERVER_MIN: Final = 130000
#: A peer that acknowledges no byte for so long is gone, and so are a connection's outstanding calls.
TCP_GONE_S: Final = 10.0

_UNDEFINED: Final = {"3F000", "42P01", "42883", "42704", "42703"}
_DENIED: Final = {"28000", "28P01", "42501", "3D000", "0LP01"}
_FULL: Final = {"53100"}
_READ_ONLY: Final = {"25006"}
_DAMAGED: Final = {"XX001", "XX002", "P0002", "P0003", "23502", "23514"}

INIT_HINT: Final = "create it with: changefeed log init --log URL"


def import_psycopg() -> Any:
    """psycopg, or BadConfig that says how to get it."""
    try:
        import psycopg
    except ImportError as error:
        raise BadConfig(
            "a log in PostgreSQL needs psycopg, which is not installed;"
            " install it with: pip install 'changefeed[postgres]'"
        ) from error
    return psycopg


def without_password(url: str) -> str:
    """The URL for people: its password left out."""
    parts = urlsplit(url)
    user, at, rest = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{rest}"))


class Server:
    """How to reach the database of a URL. Raises BadUrl for what psycopg does not take as one."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._psycopg = import_psycopg()
        self.shown = without_password(url)
        self.timeout_s = timeout_s
        try:
            self._options = self._psycopg.conninfo.conninfo_to_dict(url)
        except self._psycopg.ProgrammingError as error:
            raise BadUrl(
                f"log URL {self.shown!r}: {_line(error)}; write postgresql://USER@HOST:5432/DATABASE"
            ) from None
        defaults = {
            "connect_timeout": max(2, math.ceil(timeout_s)),
            "tcp_user_timeout": int(1000 * max(TCP_GONE_S, timeout_s)),
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": "changefeed",
            "client_encoding": "UTF8",
        }
        self._options = defaults | self._options

    def connect(self, *, stamps: bool = False) -> psycopg.Connection[Any]:
        """A connection that is fit for a log. stamps: it only says that a leader lives, which need not be durable.

        Raises LogUnavailable, LogAccessDenied, LogUnsafe.
        """
        try:
            connection: psycopg.Connection[Any] = self._psycopg.connect(**self._options, autocommit=True)
        except self._psycopg.Error as error:
            raise self.meaning(error, "connecting") from error
        try:
            self._judge(connection)
            if stamps:
                connection.execute("SET synchronous_commit = off")
        except self._psycopg.Error as error:
            connection.close()
            raise self.meaning(error, "connecting") from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _judge(self, connection: psycopg.Connection[Any]) -> None:
        if connection.info.server_version < SERVER_MIN:
            raise LogUnsafe(
                f"{self.shown} is PostgreSQL {connection.info.parameter_status('server_version')};"
                " 13 or newer is needed"
            )
        row = connection.execute(
            "SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes'),"
            " current_setting('synchronous_commit'), current_setting('default_transaction_read_only')"
        ).fetchone()
        assert row is not None
        standby, fsync, pages, commit, read_only = row
        if standby:
            raise LogUnsafe(
                f"{self.shown} is a read-only standby: a log is written to, and read from, the primary only; name the"
                " primary, or add target_session_attrs=read-write to the URL"
            )
        if fsync == "off" or pages == "off":
            name = "fsync" if fsync == "off" else "full_page_writes"
            raise LogUnsafe(
                f"{self.shown} runs with {name} = off: acknowledged events could be lost with the power; set it to on"
            )
        if commit == "off":
            raise LogUnsafe(
                f"{self.shown} answers with synchronous_commit = off: acknowledged events could be lost; set it to on"
                " for this role or database"
            )
        if read_only == "on":
            raise LogUnsafe(
                f"{self.shown} opens read-only transactions (default_transaction_read_only = on); set it to off for"
                " this role or database"
            )
        connection.execute("SET default_transaction_isolation = 'read committed'")
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET idle_in_transaction_session_timeout = 0")

    def meaning(self, error: psycopg.Error, what: str) -> ChangefeedError:
        """What an error says when nothing was written."""
        state, text = error.sqlstate or "", f"{what}: {self.shown}: {_line(error)}"
        if state in _UNDEFINED:
            return LogNotLaidOut(f"{text}; the database holds no log, or one of an older release: {INIT_HINT}")
        if state in _DENIED or "password authentication failed" in str(error) or _no_such(error):
            return LogAccessDenied(f"{text}; check user, password, database and the privileges of the role")
        if state in _FULL:
            return LogFull(f"{text}; free room on the server's disk or lower the feed's retention")
        if state in _READ_ONLY:
            return LogUnsafe(f"{text}; the server became read-only: a log is written to the primary only")
        if state in _DAMAGED:
            return LogDamaged(f"{text}; restore the log from a backup")
        return LogUnavailable(text)


def _no_such(error: Exception) -> bool:
    text = str(error)
    return ("role" in text or "database" in text) and "does not exist" in text


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class Link:
    """One connection, used by one thread at a time: made when it is first needed, and anew after it broke."""

    def __init__(self, server: Server, *, stamps: bool = False) -> None:
        self._server = server
        self._stamps = stamps
        self._connection: psycopg.Connection[Any] | None = None
        self._warned = ""
        self._shut = False
        self._errors = import_psycopg()

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection, made now if there is none that lives."""
        if self._connection is not None and self._broken(self._connection):
            self.close()
        if self._connection is None:
            self._connection = self._server.connect(stamps=self._stamps)
            self._connection.add_notice_handler(self._note)
        connection = self._connection
        if self._shut:
            self.close()
            raise LogUnavailable(f"the log in {self._server.shown} was closed by this process")
        return connection

    def _broken(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether the server has ended an idle connection: told without a round trip, before anything is sent."""
        if connection.closed or connection.broken:
            return True
        try:
            # First its last words come, then the end.
            # poll, not select: an instance may have more than 1,024 descriptors.
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            for _ in range(8):
                if not poll.poll(0):
                    break
                connection.pgconn.consume_input()
        except (self._errors.Error, OSError, ValueError):
            return True
        return bool(connection.pgconn.status != self._errors.pq.ConnStatus.OK)

    def _note(self, notice: Any) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warned = notice.message_primary or "a warning"

    @property
    def shown(self) -> str:
        return self._server.shown

    @contextmanager
    def transaction(self, what: str) -> Iterator[Callable[[str, Sequence[Any] | None], Any]]:
        """One transaction of several statements, for who lays out tables. Raises what nothing was written with."""
        connection = self.connection
        try:
            with connection.transaction():
                yield connection.execute
        except self._errors.Error as error:
            raise self._server.meaning(error, what) from error

    def read(self, what: str, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Rows of a statement that writes nothing; tried once more on a new connection where this one broke."""
        for again in (True, False):
            connection = self.connection
            try:
                return connection.execute(statement, parameters, binary=True).fetchall()
            except self._errors.Error as error:
                ended = self._ended(error)
                if ended:
                    self.close()
                if not (ended and again):
                    raise self._server.meaning(error, what) from error
        raise AssertionError("the second try returns or raises")

    def write(self, what: str, statement: str, parameters: Sequence[Any]) -> tuple[Any, ...]:
        """The one row of a call that writes. Raises what nothing was written with, or AppendOutcomeUnknown."""
        connection = self.connection
        self._warned = ""
        try:
            row = connection.execute(statement, parameters, binary=True).fetchone()
        except self._errors.Error as error:
            if self._ended(error):
                self.close()
                raise AppendOutcomeUnknown(
                    f"{what}: the connection to {self._server.shown} ended before the answer ({_line(error)}): it may"
                    " be stored"
                ) from error
            raise self._undone(error, what) from error
        if self._warned:
            raise AppendOutcomeUnknown(
                f"{what}: {self._server.shown} warned: {self._warned}; it may not be on every synchronous standby"
            )
        if row is None:
            raise LogDamaged(f"{what}: {self._server.shown} gave no answer: the feed's rows are missing")
        return tuple(row)

    def _undone(self, error: psycopg.Error, what: str) -> ChangefeedError:
        found = self._server.meaning(error, what)
        if isinstance(found, LogFull) and what not in ("append", "open_publisher", "fold"):
            # LogFull is what publishers are refused with; a fence or a trim that finds no room just waits for it.
            return LogUnavailable(str(found))
        return found

    def _ended(self, error: psycopg.Error) -> bool:
        """Whether the server's last word is missing: the connection is gone, or goes with this error."""
        if self._connection is None or self._connection.closed or self._connection.broken:
            return True
        severity = error.diag.severity_nonlocalized
        if severity is None:
            # psycopg's own: of a connection, or of a parameter that cannot be sent at all.
            return isinstance(error, self._errors.OperationalError | self._errors.InterfaceError)
        return severity in ("FATAL", "PANIC")

    def shut(self) -> None:
        """Close for good, also what another thread is about to open."""
        self._shut = True
        self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except self._errors.Error:
                pass


def pause(deadline: float, seconds: float) -> bool:
    """Sleep a little; False when the deadline (time.monotonic) has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    time.sleep(min(left, seconds))
    return True
