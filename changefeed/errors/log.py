"""Errors of the log's storage. See changefeed.errors."""

from __future__ import annotations

from changefeed.errors.root import ChangefeedError


class LogError(ChangefeedError):
    code = "log-error"
    close_code = 4430


class Fenced(LogError):
    """The log's fence is not of this epoch and term: another leads (or led). Nothing was written.

    epoch, term: what the fence says now. coordinator: id of the coordinator under which it was written.
    """

    code = "fenced"
    outcome = "refused"

    def __init__(self, message: str, epoch: int = 0, term: str = "", coordinator: str = "") -> None:
        super().__init__(message)
        self.epoch = epoch
        self.term = term
        self.coordinator = coordinator


class TailMoved(LogError):
    """An append expected another tail. Nothing was written."""

    code = "tail-moved"
    outcome = "refused"


class AppendOutcomeUnknown(LogError):
    """A write to the log failed in a way that leaves open whether it is stored."""

    code = "append-outcome-unknown"
    outcome = "unknown"


class LogUnavailable(LogError):
    """The log cannot be asked now. Nothing was written."""

    code = "log-unavailable"
    retryable = True


class LogAccessDenied(LogError):
    """The log's server refuses this role, password or database, or the role lacks a privilege."""

    code = "log-access-denied"
    retryable = True  # at another instance, or once the role may


class LogNotLaidOut(LogError):
    """The database holds no tables of a log, or those of an older release: `changefeed log init` or `log upgrade`."""

    code = "log-not-laid-out"
    retryable = True  # at another instance, or once it is laid out


class LogUnsafe(LogError):
    """The log's server would not keep what it acknowledges, or is a read-only copy: nothing is written to it."""

    code = "log-unsafe"
    retryable = True  # at another instance, or once the server is set right


class LogDamaged(LogError):
    """The log's content contradicts itself: it is not served, and this instance does not contend."""

    code = "log-damaged"
    retryable = True  # at another instance, or once the log is repaired


class LogReplaced(LogError):
    """The log's file was replaced under a running process."""

    code = "log-replaced"
    retryable = True  # at another instance, or once the log is repaired


class LogFormatUnknown(LogError):
    """The log was written by a newer release."""

    code = "log-format-unknown"
    retryable = True  # at another instance, or once the log is repaired


class TrimmedAway(LogError):
    """Entries asked for have been trimmed. Drivers turn it into PositionTooOld, with the log's floor."""

    code = "trimmed-away"
