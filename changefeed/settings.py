"""Every tunable of a process, with its default: the table docs/reference/defaults.md is held equal to this by a test.

Durations are float seconds, sizes are bytes. Settings of a *feed* (retention, declared resources) live in its log:
see change.FeedSettings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Final

from changefeed.errors import BadConfig

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
DEFAULT_PORT: Final = 7557


def setting(default: float | int, why: str) -> float:
    return field(default=default, metadata={"why": why})


def count(default: int, why: str) -> int:
    return field(default=default, metadata={"why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One process's settings; frozen, validated when built. Raises BadConfig for a value below zero."""

    change_bytes_max: int = count(MIB, "peers: NATS 1 MiB, etcd 1.5 MiB")
    group_bytes_max: int = count(8 * MIB, "one group travels in one frame")
    frame_bytes_aim: int = count(256 * KIB, "large frames are where throughput comes from")
    frame_bytes_max: int = count(9 * MIB, "the largest group with its stamp")
    batch_bytes_aim: int = count(256 * KIB, "a publisher seals a batch at this size")
    in_flight_max: int = count(16, "batches that a publisher sends ahead of their receipts")
    publisher_buffer_bytes: int = count(16 * MIB, "seconds of outage, bounded in a web worker")
    publish_timeout_s: float = setting(10.0, "longer than any failover, shorter than a proxy's cut")
    heartbeat_s: float = setting(10.0, "below common proxies' idle cuts; both ways")
    heartbeat_dead_s: float = setting(25.0, "two heartbeats lost, and a half")
    bookmark_s: float = setting(1.0, "a subscriber whose filter selects nothing is told at most so often how far it is")
    peer_heartbeat_s: float = setting(0.3, "between instances")
    suspect_after_s: float = setting(
        1.5, "survives a collector's pause; raise to 5 s where virtual machines migrate live"
    )
    coordinator_session_s: float = setting(10.0, "asked of ZooKeeper; only the slow path uses it")
    stall_after_s: float = setting(30.0, "a peer that takes no byte for so long is cut")
    handshake_s: float = setting(10.0, "from connection to first message")
    stale_after_s: float = setting(5.0, "without proof of being current, subscribers are sent to a fresh instance")
    log_timeout_s: float = setting(2.0, "a look into the log that takes longer counts as no answer")
    log_look_s: float = setting(1.0, "how often each instance looks at the log's fence and tail")
    drain_s: float = setting(20.0, "inside Kubernetes' 30 s and systemd's 90 s")
    redirect_spread_s: float = setting(10.0, "subscribers told to go elsewhere are spread over this time")
    reconnect_min_s: float = setting(0.1, "the first retry is at once and hides a failover; this is the second")
    reconnect_max_s: float = setting(15.0, "the cap protects a restart of 10,000 agents")
    window_bytes: int = count(64 * MIB, "newest entries kept in memory, per feed")
    leader_queue_bytes: int = count(64 * MIB, "waiting batches of a leader; beyond it no publisher is read")
    append_bytes_max: int = count(8 * MIB, "of one transaction on the log; a fence waits for at most one")
    cursor_interval_s: float = setting(1.0, "a file cursor is saved at most so often")
    cursor_events: int = count(1000, "or after so many events")
    subscriber_memory_s: float = setting(7 * 86400.0, "how long status lists a subscriber that left")
    subscribers_named_max: int = count(100_000, "names that status remembers")
    publishers_max: int = count(100_000, "publisher states kept in a log")
    min_free_bytes: int = count(256 * MIB, "below this, or below min_free_share, publishes are refused")
    min_free_share: float = setting(0.05, "share of the disk, capped by min_free_bytes")
    wal_bytes_shown: int = count(512 * MIB, "a write-ahead log above this is shown in status with its holder")
    wal_bytes_truncate: int = count(64 * MIB, "above this the leader truncates the write-ahead log beside appends")
    outbox_poll_s: float = setting(0.05, "how often a leader looks into an outbox that was empty")
    snapshot_every_s: float = setting(1.0, "how often a leader brings the snapshot up to the log's end")
    snapshot_list_bytes: int = count(256 * KIB, "of one message of a snapshot's list")
    retention_every_s: float = setting(10.0, "how often the leader looks whether anything can be trimmed")
    handshakes_max: int = count(256, "connections that have not yet said hello")
    connections_max: int = count(20_000, "of one instance")
    challenge_backoff_min_s: float = setting(1.0, "after a challenge for silence that was won")
    challenge_backoff_max_s: float = setting(60.0, "doubling up to this; reset by a term of this length")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise BadConfig(f"{item.name} must be a number of at least 0, got {value!r}")
        if self.frame_bytes_max < self.group_bytes_max + MIB:
            raise BadConfig(
                f"frame_bytes_max ({self.frame_bytes_max}) must be at least group_bytes_max ({self.group_bytes_max}) "
                "and 1 MiB for stamps: a group travels in one frame. Raise the one, or lower the other"
            )
        if self.group_bytes_max < self.change_bytes_max:
            raise BadConfig("group_bytes_max must be at least change_bytes_max")


_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?\Z", re.IGNORECASE)
_SIZE_UNIT: Final = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": GIB * KIB} | {
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4
}  # fmt: skip


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "1.5s", "10m", "7d", "1h30m"; raises BadConfig."""
    position, total = 0, 0.0
    for match in _DURATION.finditer(text):
        if match.start() != position:
            break
        total += float(match[1]) * _DURATION_UNIT[match[2]]
        position = match.end()
    if position == 0 or position != len(text):
        raise BadConfig(f"{text!r} is not a duration; write 500ms, 1.5s, 10m, 2h, 7d or 1h30m")
    return total


def parse_size(text: str) -> int:
    """Bytes of a size such as "4GiB", "256KiB", "1000"; raises BadConfig."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise BadConfig(f"{text!r} is not a size; write 1000, 256KiB, 64MiB, 4GiB or 1TB")
    return int(float(match[1]) * _SIZE_UNIT[(match[2] or "").lower()])
