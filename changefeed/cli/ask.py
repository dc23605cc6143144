"""Asks instances for their /status, all at once, and lays the answers together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from changefeed.errors import ChangefeedError, Unreachable
from changefeed.servers import resolve
from changefeed.settings import Settings
from changefeed.transport import Network
from changefeed.transport.websocket import WebsocketNetwork


@dataclass(frozen=True, slots=True)
class Told:
    """What a server said: its status, or why there is none."""

    url: str
    status: dict[str, Any] = field(default_factory=dict)
    error: str = ""


async def ask(network: Network, url: str, timeout_s: float) -> Told:
    """One server's status. Never raises for a server that does not answer or answers nonsense."""
    try:
        response = await network.get(url.rstrip("/") + "/status", timeout_s=timeout_s)
        if response.status != 200:
            return Told(url, error=f"it answers with HTTP status {response.status}")
        status = json.loads(response.body)
        if not isinstance(status, dict) or not isinstance(status.get("feeds"), dict):
            return Told(url, error="it is no changefeed instance")
        return Told(url, status)
    except ChangefeedError as error:
        return Told(url, error=str(error))
    except ValueError:
        return Told(url, error="it is no changefeed instance")


async def ask_all(
    servers: Sequence[str], settings: Settings, timeout_s: float, *, network: Network | None = None
) -> list[Told]:
    """The status of every server, and of leaders whom they name and who were not asked yet, in that order.

    A zk:// server stands for everybody who takes part there. Raises Unreachable, which names each server, if none
    answers.
    """
    network = network or WebsocketNetwork(settings)
    told: dict[str, Told] = {}

    async def ask_one(url: str) -> None:
        told[url] = await ask(network, url, timeout_s)

    servers = await resolve(servers)
    more = list(servers)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for url in more:
                nursery.start_soon(ask_one, url)
        named = [status.get("election", {}).get("url") for answer in told.values() for status in _feeds(answer)]
        more = sorted({url for url in named if url and url not in told})
        servers = [*servers, *more]
    answers = [told[url] for url in dict.fromkeys(servers) if url in told]
    if all(answer.error for answer in answers):
        raise Unreachable("no server answers: " + "; ".join(f"{answer.url}: {answer.error}" for answer in answers))
    return answers


def _feeds(answer: Told) -> list[dict[str, Any]]:
    return [status for status in answer.status.get("feeds", {}).values() if isinstance(status, dict)]


def merged_feeds(answers: Sequence[Told]) -> dict[str, dict[str, Any]]:
    """Per feed the word of who knows best: its leader of the highest epoch, else the highest epoch and seq.

    Subscribers are those of all instances, each with its instance.
    """
    merged: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for feed, status in answer.status.get("feeds", {}).items():
            best = merged.get(feed)
            if best is None or _weight(status) > _weight(best):
                merged[feed] = dict(status)
    for feed, status in merged.items():
        status["subscribers"] = [
            {**subscriber, "instance": answer.status.get("instance", "")}
            for answer in answers
            for subscriber in answer.status.get("feeds", {}).get(feed, {}).get("subscribers", ())
        ]
    return dict(sorted(merged.items()))


def _weight(status: dict[str, Any]) -> tuple[int, bool, int]:
    return (status.get("epoch", 0), bool(status.get("leads")), status.get("seq", 0))
