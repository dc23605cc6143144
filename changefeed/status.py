"""What an instance says of itself: the JSON of /status, which `changefeed status` shows. Pure reading."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from changefeed.feednode import FeedNode
    from changefeed.instance import Instance

#: An append that waits longer is shown to people.
SLOW_SHOWN_S = 1.0


def instance_status(instance: Instance) -> dict[str, Any]:
    """Everything of one instance; keys are documented in docs/reference/status.md."""
    ready, reasons = instance.readiness()
    coordinator = instance.coordinator.state()
    return {
        "instance": instance.name,
        "process": instance.process,
        "url": instance.url,
        "listen": f"{instance.address[0]}:{instance.address[1]}",
        "started": instance.started,
        "time": instance.world.wall_ms(),
        "ready": ready,
        "not_ready": reasons,
        "draining": instance.draining,
        "log": instance.store.url,
        "coordinator": {
            "url": instance.coordinator.url,
            "id": coordinator.id,
            "connected": coordinator.connected,
            "session_s": coordinator.session_s,
            "read_only": coordinator.read_only,
        },
        "feeds": {feed: _feed(instance, feed) for feed in instance.feeds},
    }


def _feed(instance: Instance, feed: str) -> dict[str, Any]:
    node = instance.node(feed)
    if node is None:
        problem = instance.problem(feed)
        return {"leader": "", "epoch": 0, "head": None, "seq": 0, "problem": str(problem) if problem else "opening"}
    return feed_status(node)


def feed_status(node: FeedNode) -> dict[str, Any]:
    """One feed at one instance. head: the visible tail's position; seq: its number; notes: sentences for people."""
    name, epoch = node.leading()
    tail = node.window.tail
    election = node.elector.status
    near = node.near_leader()
    seen = node.look_seen()
    status: dict[str, Any] = {
        "leader": name,
        "epoch": epoch,
        "head": None if tail is None else str(tail.position(node.log.lineage)),
        "seq": 0 if tail is None else tail.seq,
        "lineage": node.log.lineage,
        "leads": near is not None,
        "stale_s": round(min(node.stale_s(), 1e9), 3),
        "election": asdict(election),
        "window": {"from": None if node.window.floor is None else node.window.floor.seq, "bytes": node.window.bytes},
        "subscribers": node.subscribers.snapshot(None if tail is None else tail.seq),
        "settings": asdict(node.declared()),
    }
    if seen is not None:
        look = seen[0]
        status["log"] = {
            "earliest": str(look.earliest),
            "tail": look.tail.seq,
            "bytes": look.bytes,
            "folded": look.folded,
            "fence": asdict(look.fence),
            "epochs": [asdict(record) for record in look.epochs[-64:]],
        }
    if near is not None:
        term = status["term"] = node.term_stats()
        if term.get("wal_bytes", 0) > node.settings.wal_bytes_shown:
            holder = f": process {term['wal_holder_pid']} reads it" if "wal_holder_pid" in term else ""
            large = f"the log's write-ahead log has grown to {term['wal_bytes'] >> 20} MiB{holder}"
            status["election"]["notes"] = (large, *status["election"]["notes"])
        waiting = term.get("waiting_s", 0.0)
        if waiting >= SLOW_SHOWN_S:
            since = f"log slow since {waiting:.1f} s: an append has been waiting so long"
            status["election"]["notes"] = (since, *status["election"]["notes"])
    return status
