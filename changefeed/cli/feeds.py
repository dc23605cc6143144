"""changefeed feeds: the feeds that the servers know."""

from __future__ import annotations

from typing import Any

from changefeed.change import check_feed_name
from changefeed.cli.ask import ask_all, merged_feeds
from changefeed.cli.command import ASK_TIMEOUT, SERVER, Command, Values
from changefeed.cli.output import Output
from changefeed.config import hint
from changefeed.errors import UnknownFeed
from changefeed.log import FeedLog, LogStore


async def run(values: Values, output: Output) -> int:
    answers = await ask_all(values.server, values.settings, values.timeout)
    for answer in answers:
        if answer.error:
            await output.note(f"{answer.url} does not answer: {answer.error}")
    for feed, status in merged_feeds(answers).items():
        record = {"feed": feed, **{key: status[key] for key in ("leader", "epoch", "head", "seq")}}
        record |= {"snapshot": bool(status.get("settings", {}).get("snapshot")), "folded": folded(status)}
        text = f"{feed}  leader {status['leader'] or 'unknown'}  epoch {status['epoch']}  seq {status['seq']}"
        text += snapshot_words(status)
        await output.line(record, text)
    return 0


def folded(status: dict[str, Any]) -> int | None:
    """Up to which seq the events of a feed are in its snapshot, as an instance tells it; None: in none."""
    found = status.get("log", {}).get("folded")
    return found if isinstance(found, int) else None


def snapshot_words(status: dict[str, Any]) -> str:
    """Of a feed that keeps a snapshot: up to where; "" of any other."""
    if not status.get("settings", {}).get("snapshot"):
        return ""
    reached = folded(status)
    return "  snapshot not begun" if reached is None else f"  snapshot up to seq {reached}"


async def open_known(store: LogStore, feed: str, *, check: bool = True) -> FeedLog:
    """The log of a feed that must exist; raises UnknownFeed that names the nearest one. check: see LogStore.open."""
    check_feed_name(feed)
    known = await store.feeds()
    if feed not in known:
        there = f"; there are: {', '.join(known)}" if known else ""
        raise UnknownFeed(f"{store.url} holds no feed {feed!r}{hint(feed, known)}{there}")
    return await store.open(feed, create=False, check=check)


COMMAND = Command(name="feeds", run=run, options=(SERVER, ASK_TIMEOUT))
