"""What `changefeed status` shows to people of the answers that it got."""

from __future__ import annotations

from typing import Any

from changefeed.cli.ask import Told
from changefeed.cli.status import feed_lines, instance_lines, subscriber_line


def feed(**more: Any) -> dict[str, Any]:
    return {"leader": "a", "epoch": 3, "seq": 7, "head": "x.3.y.7", "leads": False, **more}


def answer(**more: Any) -> dict[str, Any]:
    return {"instance": "b", "feeds": {"vmapi": feed()}, "coordinator": {"connected": True}, **more}


def test_what_is_unusual_at_any_instance_is_shown() -> None:
    """Also what only a follower knows, such as that it uses another coordinator."""
    noted = feed(election={"notes": ["two coordinators: …"]})
    broken = feed(problem="the log is damaged\x1b[2J")
    lines = instance_lines(
        [
            Told("ws://one:1", answer(instance="a", feeds={"vmapi": feed(leads=True)})),
            Told("ws://two:2", answer(feeds={"vmapi": noted, "napi": broken})),
            Told("ws://three:3", error="nothing listens there"),
            Told("ws://four:4", answer(draining=True, not_ready=["draining"], coordinator={"connected": False})),
        ]
    )
    assert lines == [
        "ws://one:1  a  leads vmapi",
        "ws://two:2  b  follows",
        "  vmapi: two coordinators: …",
        "  napi: NOT SERVED: the log is damaged\\x1b[2J",
        "ws://three:3  DOES NOT ANSWER: nothing listens there",
        "ws://four:4  b  follows; draining; NOT READY: draining; COORDINATOR AWAY: a dead leader is not replaced "
        "meanwhile",
    ]


def test_a_feed_and_its_leaders() -> None:
    """Who leads and why, where the head is; the history only when it is asked for."""
    epochs = [{"epoch": 2, "time": 0, "instance": "b", "first": 1, "why": "start"}]
    told = feed(election={"why": "handover"}, log={"epochs": epochs})
    assert feed_lines("vmapi", told, False) == ["", "vmapi  leader a (handover)  epoch 3  seq 7", "  head x.3.y.7"]
    assert feed_lines("vmapi", told, True)[3:] == ["  epoch 2  1970-01-01 00:00:00.000Z  b  from seq 1: start"]
    assert "leader UNKNOWN" in feed_lines("vmapi", feed(leader=""), False)[1]


def test_subscribers_by_name() -> None:
    """How far each is behind; of one that left when, and why unless it said goodbye."""
    here = {"name": "dns", "instance": "a", "handled_seq": 5, "lag": 2, "connected": True}
    assert subscriber_line(here) == "dns at a: handled 5, 2 behind"
    assert subscriber_line({**here, "handled_seq": None, "lag": None}) == "dns at a: has told nothing handled"
    gone = {**here, "connected": False, "left": 0}
    assert subscriber_line({**gone, "reason": "left"}).endswith("; left 1970-01-01 00:00:00.000Z")
    assert subscriber_line({**gone, "reason": "stalled"}).endswith("00.000Z: stalled")
