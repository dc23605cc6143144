"""Members and leader records as JSON: what stands in ZooKeeper's nodes and in the file coordinator's files (pure).

Reading is forgiving towards newer releases (unknown keys are ignored) and strict towards damage: whatever is not a
record of ours reads as None, and the caller treats the record as missing.
"""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import quote

from changefeed.coordination import LeaderRecord, Member
from changefeed.errors import InvalidName

#: A record is a few hundred bytes; what is larger was not written by us.
RECORD_BYTES_MAX: Final = 64 * 1024
INSTANCE_NAME_BYTES_MAX: Final = 200


def quoted_name(name: str) -> str:
    """An instance's name as one part of a path, in a folder or in ZooKeeper. Raises InvalidName."""
    quoted = quote(name, safe="", errors="surrogatepass")
    if quoted in ("", ".", "..") or len(quoted) > INSTANCE_NAME_BYTES_MAX:
        raise InvalidName(
            f"instance name {name!r} must be 1 to {INSTANCE_NAME_BYTES_MAX} bytes in its URL form, not '.' or '..'"
        )
    return quoted


def dump(value: dict[str, Any]) -> bytes:
    """One JSON object, keys in the order given, as UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def load(data: bytes) -> dict[str, Any] | None:
    """The JSON object, or None for anything else (torn, foreign, too large)."""
    if not data or len(data) > RECORD_BYTES_MAX:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def member_to_json(member: Member) -> dict[str, Any]:
    return {
        "instance": member.name,
        "process": member.process,
        "url": member.url,
        "candidate": member.candidate,
        "feeds": list(member.feeds),
    }


def member_from_json(value: dict[str, Any] | None) -> Member | None:
    if value is None:
        return None
    name, process, url = value.get("instance"), value.get("process"), value.get("url")
    candidate, feeds = value.get("candidate", True), value.get("feeds", [])
    if not (isinstance(name, str) and name and isinstance(process, str) and isinstance(url, str)):
        return None
    if not isinstance(candidate, bool) or not isinstance(feeds, list) or not all(isinstance(f, str) for f in feeds):
        return None
    return Member(name, process, url, candidate, tuple(feeds))


def leader_to_json(record: LeaderRecord) -> dict[str, Any]:
    """Without the session: who holds the record is told by the coordinator itself."""
    return {
        "instance": record.name,
        "process": record.process,
        "url": record.url,
        "epoch": record.epoch,
        "leaving": record.leaving,
        "successor": record.successor,
    }


def leader_from_json(value: dict[str, Any] | None, session: str) -> LeaderRecord | None:
    if value is None:
        return None
    name, process, url, epoch = (value.get(key) for key in ("instance", "process", "url", "epoch"))
    leaving, successor = value.get("leaving", False), value.get("successor", "")
    if not (isinstance(name, str) and name and isinstance(process, str) and isinstance(url, str)):
        return None
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
        return None
    if not isinstance(leaving, bool) or not isinstance(successor, str):
        return None
    return LeaderRecord(name, process, url, epoch, session, leaving, successor)
