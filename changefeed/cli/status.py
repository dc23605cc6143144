"""changefeed status: instances, leaders, heads, subscribers; with --elections, why the leader changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from changefeed.cli.ask import Told, ask_all, merged_feeds
from changefeed.cli.command import ASK_TIMEOUT, SERVER, Command, Values
from changefeed.cli.feeds import folded, snapshot_words
from changefeed.cli.output import Output, printable
from changefeed.config import Option


async def run(values: Values, output: Output) -> int:
    answers = await ask_all(values.server, values.settings, values.timeout)
    feeds = merged_feeds(answers)
    record: dict[str, Any] = {
        "servers": [
            {"url": answer.url, "error": answer.error} if answer.error else {**answer.status, "url": answer.url}
            for answer in answers
        ],
        "unreachable": [answer.url for answer in answers if answer.error],
        "feeds": {feed: _feed_record(status, elections=values.elections) for feed, status in feeds.items()},
    }
    lines = [line for feed, status in feeds.items() for line in feed_lines(feed, status, values.elections)]
    await output.line(record, "\n".join([*instance_lines(answers), *lines]))
    if not output.human:
        for answer in answers:
            if answer.error:
                await output.note(f"{answer.url} does not answer: {answer.error}")
    return 0


def _feed_record(status: dict[str, Any], *, elections: bool) -> dict[str, Any]:
    kept = ("leader", "epoch", "head", "seq", "lineage", "problem", "subscribers", "settings")
    record = {key: status[key] for key in kept if key in status}
    record["folded"] = folded(status)
    record["why"] = status.get("election", {}).get("why", "")
    if elections:
        record["elections"] = status.get("log", {}).get("epochs", [])
    return record


def instance_lines(answers: Sequence[Told]) -> list[str]:
    """One line per server, also for one that does not answer; below it what is unusual there, feed by feed."""
    lines = []
    for answer in answers:
        if answer.error:
            lines.append(f"{answer.url}  DOES NOT ANSWER: {printable(answer.error)}")
            continue
        status = answer.status
        leads = [feed for feed, told in status["feeds"].items() if told.get("leads")]
        words = [f"leads {', '.join(leads)}" if leads else "follows"]
        words += ["draining"] if status.get("draining") else []
        words += [f"NOT READY: {reason}" for reason in status.get("not_ready", ())]
        if not status.get("coordinator", {}).get("connected", True):
            words.append("COORDINATOR AWAY: a dead leader is not replaced meanwhile")
        lines.append(f"{answer.url}  {status.get('instance', '?')}  {'; '.join(words)}")
        for feed, told in status["feeds"].items():
            lines += [f"  {feed}: {printable(str(note))}" for note in told.get("election", {}).get("notes", ())]
            if told.get("problem"):
                lines.append(f"  {feed}: NOT SERVED: {printable(str(told['problem']))}")
    return lines


def feed_lines(feed: str, status: dict[str, Any], elections: bool) -> list[str]:
    """What there is to say of one feed."""
    why = status.get("election", {}).get("why", "")
    leader = f"{status['leader']} ({why})" if status["leader"] and why else status["leader"] or "UNKNOWN"
    lines = ["", f"{feed}  leader {leader}  epoch {status['epoch']}  seq {status['seq']}{snapshot_words(status)}"]
    if status.get("head"):
        lines.append(f"  head {status['head']}")
    for subscriber in status.get("subscribers", ()):
        lines.append("  " + subscriber_line(subscriber))
    if elections:
        for item in status.get("log", {}).get("epochs", []):
            who = f"{item['instance']}  from seq {item['first']}: {item['why']}"
            lines.append(f"  epoch {item['epoch']}  {clock(item['time'])}  {who}")
    return lines


def subscriber_line(subscriber: dict[str, Any]) -> str:
    """Who, where, how far behind; of one that left also when and why."""
    seq, lag = subscriber.get("handled_seq"), subscriber.get("lag")
    handled = "has told nothing handled" if seq is None else f"handled {seq}"
    behind = "" if lag is None else f", {lag} behind"
    line = f"{printable(str(subscriber.get('name', '?')))} at {subscriber['instance']}: {handled}{behind}"
    if not subscriber.get("connected", True):
        reason = printable(str(subscriber.get("reason", "")))
        line += f"; left {clock(subscriber['left'])}" + (f": {reason}" if reason not in ("", "left") else "")
    return line


def clock(milliseconds: int) -> str:
    """A wall time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds / 1000)) + f".{milliseconds % 1000:03}Z"


COMMAND = Command(
    name="status",
    run=run,
    options=(
        Option("elections", "also the history of leaders, and why each took over", kind="flag"),
        SERVER,
        ASK_TIMEOUT,
    ),
    about="Asks every server that is named and the leaders that they know. A server that does not answer is named; "
    "if none answers the exit status is 4.",
)
