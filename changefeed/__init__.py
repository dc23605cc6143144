"""changefeed: a multi-publisher changefeed broker with leader election; nothing lost or repeated under failover.

The tree follows an event, stage by stage; in each stage `machine.py` decides (pure) and `driver.py` does:

    change.py        Change, Event, Position, Receipt …          errors/      all errors as one tree
    batch.py         the bytes: batch, entry, digest chain       wire/        messages, two encodings, limits
    publisher/       1  numbers, encodes, keeps until acknowledged
    peer/               carries batches to whoever leads, and entries back
    election/           who leads: candidacy, challenge, suspicion, term
    leader/          2  sequences under a term, deduplicates, commits in groups, sends receipts
    log/             3  durable, fenced, readable
    coordination/       who is here, who should lead             transport/   messages between processes
    serving/         4  ranges of the log to subscribers; publishers' connections to the leader
    subscriber/      5  contiguous, deduplicated, resumed
    feednode.py, instance.py   wire one process's part in its feeds
    testing/         conformance suites, fakes, strategies       cli/         one module per command
    demo/            the main job: a git history through a failing cluster
    conformance/     grades subscribers in any language against a scripted server

docs/internals/architecture.md shows the seams. What follows is the public API.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; at run time each name is imported when it is first used
    from changefeed.change import Change, Event, FeedSettings, Filter, Position, Receipt, Resource
    from changefeed.errors import (
        AcknowledgedLost,
        CannotResume,
        ChangefeedError,
        CursorMoved,
        FuturePosition,
        OtherLineage,
        OutcomeUnknown,
        PositionTooOld,
        Refused,
        Superseded,
    )
    from changefeed.instance import Instance, open_instance
    from changefeed.publisher.driver import Pending, Publisher, open_publisher
    from changefeed.settings import Settings
    from changefeed.subscriber.cursors import FileCursor, MemoryCursor, SqliteCursor
    from changefeed.subscriber.driver import Subscription, open_subscription
    from changefeed.subscriber.postgresql_cursor import PostgresqlCursor

__all__ = [
    "AcknowledgedLost",
    "CannotResume",
    "Change",
    "ChangefeedError",
    "CursorMoved",
    "Event",
    "FeedSettings",
    "FileCursor",
    "Filter",
    "FuturePosition",
    "Instance",
    "MemoryCursor",
    "OtherLineage",
    "OutcomeUnknown",
    "Pending",
    "Position",
    "PositionTooOld",
    "PostgresqlCursor",
    "Publisher",
    "Receipt",
    "Refused",
    "Resource",
    "Settings",
    "SqliteCursor",
    "Subscription",
    "Superseded",
    "open_instance",
    "open_publisher",
    "open_subscription",
]

if not TYPE_CHECKING:  # or type checkers would take any name at all for granted
    #: Where each name lives. Whoever only publishes does not pay for what a whole instance imports.
    _HOMES = {
        name: home
        for home, names in {
            "changefeed.change": "Change Event FeedSettings Filter Position Receipt Resource",
            "changefeed.errors": "AcknowledgedLost CannotResume ChangefeedError CursorMoved FuturePosition "
            "OtherLineage OutcomeUnknown PositionTooOld Refused Superseded",
            "changefeed.instance": "Instance open_instance",
            "changefeed.publisher.driver": "Pending Publisher open_publisher",
            "changefeed.settings": "Settings",
            "changefeed.subscriber.cursors": "FileCursor MemoryCursor SqliteCursor",
            "changefeed.subscriber.postgresql_cursor": "PostgresqlCursor",
            "changefeed.subscriber.driver": "Subscription open_subscription",
        }.items()
        for name in names.split()
    }
    _PARTS = ("errors", "settings")

    def __getattr__(name: str) -> Any:
        if name in _PARTS:
            return importlib.import_module(f"changefeed.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
