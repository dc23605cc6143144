"""What is played, in the order in which an implementer would make it work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from changefeed.conformance import connections, events
from changefeed.conformance.stage import Stage

Scenario = Callable[[Stage], Awaitable[None]]

SCENARIOS: Final[tuple[Scenario, ...]] = (
    events.in_order,
    events.resume,
    events.trimmed_start,
    events.opaque_positions,
    events.restart,
    events.effects_first,
    events.empty_cursor,
    events.range_gap,
    events.bookmark_gap,
    events.bookmark,
    events.bookmark_saved,
    events.repeat,
    events.sparse,
    events.groups,
    events.large,
    events.strange_ids,
    events.unknown_parts,
    events.heartbeat,
    events.heartbeat_busy,
    events.quiet_feed,
    events.silence,
    connections.slow,
    connections.half_frame,
    connections.closed_handshake,
    connections.hanging_handshake,
    connections.failover,
    connections.redirect,
    connections.backoff,
    connections.not_current,
    connections.flapping,
    connections.close_reconnect,
    connections.close_other,
    connections.close_final,
    connections.refused,
    connections.reset,
    connections.reset_by_code,
)


def name_of(scenario: Scenario) -> str:
    """As it is called on the command line: range-gap."""
    return getattr(scenario, "__name__", "").replace("_", "-")


def title_of(scenario: Scenario) -> str:
    """What is right, in one line."""
    return " ".join((scenario.__doc__ or "").split())
