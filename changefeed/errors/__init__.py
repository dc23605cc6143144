"""All errors as one tree. Each answers three questions: whose fault, may I retry, is the outcome known.

    ChangefeedError
      UsageError                 the caller's own mistake; nothing was sent
        InvalidChange InvalidName BadPosition BadConfig BadUrl InsecureListen NotDeclaredHere
      Refused                    a publish or a subscription was refused; nothing happened
        UnknownFeed UnknownResource UnknownField NoSnapshot BodyMissing VersionMissing ChangeTooLarge GroupTooLarge
        NumberReused NumberSkipped NumberGap Superseded Forgotten PublisherInUse TooManyPublishers LogFull
        FeedExists SettingsConflict
      AcknowledgedLost           the log lost what it had acknowledged to this publisher
      OutcomeUnknown             the caller stopped waiting; the change may still be stored
      CannotResume               a position cannot be resumed: position, earliest, head, what to do
        PositionTooOld OtherLineage FuturePosition
      CursorError                a saved position cannot be used
        CursorMoved CursorInUse CursorDamaged CursorOfOtherFeed
      Unavailable                the world is at fault; retrying may help
        Unreachable ConnectionLost NotCurrent Moved Stalled Draining TooManyConnections
        PortInUse NameTaken CoordinatorUnavailable TwoCoordinators
      ProtocolError              the peer broke the protocol
        BadMessage FrameTooLarge UnsupportedProtocol HandshakeTimeout
      LogError                   the log's storage (log.py)
        Fenced TailMoved AppendOutcomeUnknown LogUnavailable LogAccessDenied LogNotLaidOut LogUnsafe LogDamaged
        LogReplaced LogFormatUnknown TrimmedAway

Each class has `code` (kebab-case; the same on the wire, in JSON, logs, metrics and as a heading of
docs/reference/errors.md), `retryable` (the same request may succeed later, unchanged), `outcome` ("refused": nothing
happened; "unknown": it may have happened; "none": no request was in question) and `close_code`, the websocket close
code a server uses when the error ends a connection. Close codes from 4000 to 4499 mean "reconnect and resume", from
4500 to 4999 "do not reconnect": a client needs no table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from changefeed.errors.log import (
    AppendOutcomeUnknown as AppendOutcomeUnknown,
    Fenced as Fenced,
    LogAccessDenied as LogAccessDenied,
    LogDamaged as LogDamaged,
    LogError as LogError,
    LogFormatUnknown as LogFormatUnknown,
    LogNotLaidOut as LogNotLaidOut,
    LogReplaced as LogReplaced,
    LogUnavailable as LogUnavailable,
    LogUnsafe as LogUnsafe,
    TailMoved as TailMoved,
    TrimmedAway as TrimmedAway,
)
from changefeed.errors.root import ChangefeedError as ChangefeedError, Outcome as Outcome

if TYPE_CHECKING:
    from changefeed.change import Position


# ---- the caller's own mistake


class UsageError(ChangefeedError):
    code = "usage"
    outcome = "refused"
    close_code = 4500


class InvalidChange(UsageError):
    """A change breaks a rule for names, versions, bodies or metas."""

    code = "invalid-change"


class InvalidName(UsageError):
    """A feed, instance, publisher or subscriber name breaks the rules for names."""

    code = "invalid-name"


class BadPosition(UsageError):
    """Text that is not a position."""

    code = "bad-position"


class BadConfig(UsageError):
    """A flag, environment variable or configuration key is unknown or has an impossible value."""

    code = "bad-config"


class BadUrl(UsageError):
    """A URL of a log, coordinator or instance cannot be understood; the message names the known schemes."""

    code = "bad-url"


class InsecureListen(UsageError):
    """Listening beyond loopback without authentication was not allowed explicitly."""

    code = "insecure-listen"


class NotDeclaredHere(UsageError):
    """This instance does not take part in the feed."""

    code = "not-declared-here"


# ---- refused; nothing happened


class Refused(ChangefeedError):
    code = "refused"
    outcome = "refused"
    close_code = 4510


class UnknownFeed(Refused):
    """No such feed at this instance; the message names the nearest one."""

    code = "unknown-feed"
    close_code = 4511


class UnknownResource(Refused):
    """The feed declares its resources and this one is not among them."""

    code = "unknown-resource"
    close_code = 4512


class UnknownField(Refused):
    """The feed declares this resource's fields and this one is not among them."""

    code = "unknown-field"
    close_code = 4513


class NoSnapshot(Refused):
    """The feed keeps no snapshot, so that no subscription can start with one."""

    code = "no-snapshot"
    close_code = 4522


class BodyMissing(Refused):
    """A create or an update without a body, on a feed that keeps a snapshot: the object would be lost from it."""

    code = "body-missing"
    close_code = 4523


class VersionMissing(Refused):
    """A change without `version` of an object whose changes carry one, on a feed that keeps a snapshot: nobody could
    say which of the two is the newer one."""

    code = "version-missing"
    close_code = 4524


class ChangeTooLarge(Refused):
    """One encoded change is above `change_bytes_max`."""

    code = "change-too-large"
    close_code = 4514


class GroupTooLarge(Refused):
    """One group's encoded changes are above `group_bytes_max`."""

    code = "group-too-large"
    close_code = 4515


class NumberReused(Refused):
    """A publisher's number came again with other bytes: a copied or restored outbox, or an edited file."""

    code = "number-reused"
    close_code = 4516


class NumberSkipped(Refused):
    """A number that was never stored, sent after higher ones were: nothing is stored out of order. It was refused when
    it was sent first (`log-full`), or left out. The publisher goes on."""

    code = "number-skipped"
    close_code = 4519


class NumberGap(Refused):
    """A publisher skipped a number. Never reaches an application: the publisher resends from its first pending one."""

    code = "number-gap"
    retryable = True
    close_code = 4402


class Superseded(Refused):
    """A newer incarnation of this publisher id has been opened.

    last_number: the last number that the log holds of the old incarnation, or None where that is trimmed away.
    """

    code = "superseded"
    close_code = 4517

    def __init__(self, message: str, last_number: int | None = None) -> None:
        super().__init__(message)
        self.last_number = last_number

    def details(self) -> dict[str, Any]:
        return {"last_number": self.last_number}


class Forgotten(Refused):
    """The log no longer holds anything of this publisher's incarnation, so a retry cannot be told from a newcomer."""

    code = "forgotten"
    close_code = 4518


class PublisherInUse(Refused):
    """Another live process publishes under this name."""

    code = "publisher-in-use"
    retryable = True
    close_code = 4424


class TooManyPublishers(Refused):
    """The feed remembers `publishers_max` publishers and none of them can be dropped."""

    code = "too-many-publishers"
    retryable = True
    close_code = 4420


class LogFull(Refused):
    """The log's disk is below `min_free`: publishes are refused until trimming or a person frees room; reads go on."""

    code = "log-full"
    retryable = True
    close_code = 4421


class FeedExists(Refused):
    code = "feed-exists"
    close_code = 4520


class SettingsConflict(Refused):
    """The feed's settings were changed by somebody else meanwhile; read them again."""

    code = "settings-conflict"
    retryable = True
    close_code = 4422


# ---- a publisher learns that acknowledged events are gone


class AcknowledgedLost(ChangefeedError):
    """The log does not hold the position of this publisher's last receipt: it was lost, restored or replaced.

    Raised once to the application, which decides; the publisher then goes on under a new incarnation.
    last_number: the last of this publisher's numbers that the log still knows (0: none).
    """

    code = "acknowledged-lost"
    outcome = "unknown"
    close_code = 4521

    def __init__(self, message: str, last_number: int = 0) -> None:
        super().__init__(message)
        self.last_number = last_number

    def details(self) -> dict[str, Any]:
        return {"last_number": self.last_number}


class OutcomeUnknown(ChangefeedError):
    """The caller stopped waiting, or the answer can no longer be had; the change may be stored or may yet be.

    pending: the handle of the change (its `wait()` may still answer), or None.
    """

    code = "outcome-unknown"
    outcome = "unknown"
    close_code = 4423

    def __init__(self, message: str, pending: Any = None) -> None:
        super().__init__(message)
        self.pending = pending


# ---- a position cannot be resumed


class CannotResume(ChangefeedError):
    """A position was refused, for a reason that the log itself bears out.

    position: the refused one. earliest, head: what the log offers now. Decide: start at `beginning`, `now`, or list
    again from the source and start at `head`.
    """

    code = "cannot-resume"
    close_code = 4530

    def __init__(
        self,
        message: str,
        position: Position | None = None,
        earliest: Position | None = None,
        head: Position | None = None,
    ) -> None:
        super().__init__(message)
        self.position = position
        self.earliest = earliest
        self.head = head

    def details(self) -> dict[str, Any]:
        return {
            name: None if value is None else str(value)
            for name, value in (("position", self.position), ("earliest", self.earliest), ("head", self.head))
        }


class PositionTooOld(CannotResume):
    """What comes after the position has been trimmed by retention."""

    code = "position-too-old"
    close_code = 4531


class OtherLineage(CannotResume):
    """The position is of another log, or of a term that this log does not hold: it was lost, restored or replaced."""

    code = "other-lineage"
    close_code = 4532


class FuturePosition(CannotResume):
    """The position lies beyond the log's tail: the log was restored from an older copy."""

    code = "future-position"
    close_code = 4533


# ---- cursors


class CursorError(ChangefeedError):
    code = "cursor-error"


class CursorMoved(CursorError):
    """Somebody else moved the cursor since it was read: roll back; another process works on it."""

    code = "cursor-moved"


class CursorInUse(CursorError):
    """Another process holds the cursor file."""

    code = "cursor-in-use"


class CursorDamaged(CursorError):
    """The cursor's content is not what this library writes: truncated, edited or another file."""

    code = "cursor-damaged"


class CursorOfOtherFeed(CursorError):
    """The cursor was saved for another feed."""

    code = "cursor-other-feed"


# ---- the world is at fault


class Unavailable(ChangefeedError):
    code = "unavailable"
    retryable = True


class Unreachable(Unavailable):
    """No server could be reached; the message names each and why."""

    code = "unreachable"


class ConnectionRefused(Unreachable):
    """Nothing listens there: evidence that the process is gone."""

    code = "connection-refused"


class ConnectionLost(Unavailable):
    """The connection ended; `close_code_received` and `reason` as the peer gave them (1006: it gave none)."""

    code = "connection-lost"
    outcome = "unknown"

    def __init__(self, message: str, close_code: int = 1006, reason: str = "") -> None:
        super().__init__(message)
        self.close_code_received = close_code
        self.reason = reason


class NotCurrent(Unavailable):
    """This instance cannot give a final answer now (it does not lead, or the log cannot be asked): ask again."""

    code = "not-current"
    outcome = "refused"
    close_code = 4401


class Moved(Unavailable):
    """The instance asks its peers to go elsewhere; `servers` says where."""

    code = "moved"
    close_code = 4410


class Draining(Unavailable):
    """The instance is shutting down."""

    code = "draining"
    outcome = "refused"
    close_code = 4411


class Stalled(Unavailable):
    """The peer took no byte for `stall_after_s`, or sent nothing for the heartbeat's limit."""

    code = "stalled"
    close_code = 4412


class TooManyConnections(Unavailable):
    code = "too-many-connections"
    close_code = 4413


class PortInUse(Unavailable):
    """The address to listen on is taken."""

    code = "port-in-use"
    retryable = False


class NameTaken(Unavailable):
    """Another live process takes part under this instance name."""

    code = "name-taken"
    retryable = False


class CoordinatorUnavailable(Unavailable):
    """The coordinator does not answer (ZooKeeper has no quorum, the folder cannot be written)."""

    code = "coordinator-unavailable"


class TwoCoordinators(Unavailable):
    """Instances with different coordinators use one log."""

    code = "two-coordinators"
    retryable = False


# ---- the peer broke the protocol


class ProtocolError(ChangefeedError):
    code = "protocol-error"
    close_code = 4540


class BadMessage(ProtocolError):
    """A message is not what the protocol says: not msgpack or JSON, an unknown type, a missing or wrong part."""

    code = "bad-message"
    close_code = 4541


class FrameTooLarge(ProtocolError):
    """A message is above the limit that the welcome announced."""

    code = "frame-too-large"
    close_code = 4542


class UnsupportedProtocol(ProtocolError):
    """Client and server share no sub-protocol."""

    code = "unsupported-protocol"
    close_code = 4543


class HandshakeTimeout(ProtocolError):
    """The first message did not come within `handshake_s`."""

    code = "handshake-timeout"
    close_code = 4403


def every_error() -> Iterator[type[ChangefeedError]]:
    """All classes of the tree, parents first."""
    todo: list[type[ChangefeedError]] = [ChangefeedError]
    while todo:
        cls = todo.pop(0)
        yield cls
        todo.extend(cls.__subclasses__())


def by_code(code: str) -> type[ChangefeedError]:
    """The class with that code; ChangefeedError for a code that this release does not know."""
    return next((cls for cls in every_error() if cls.code == code), ChangefeedError)
