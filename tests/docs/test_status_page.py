"""docs/reference/status.md has a row for every key of /status, and none for a key that is not there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from changefeed import open_instance
from changefeed.coordination.memory import MemoryCoordination
from changefeed.instance import Instance
from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.log.sqlite import SqliteLogStore
from changefeed.ports import SeededEntropy
from changefeed.transport.memory import MemoryNetwork

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "status.md"


def told() -> dict[str, tuple[set[str], set[str]]]:
    """Per section: the keys that have a row, and all words in backticks."""
    found = {}
    for section in re.split(r"^##+ ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, text = section.split("\n", 1)
        rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
        keys = {key for first, _ in rows for key in re.findall(r"`(\w+)`", first)}
        found[title] = keys, set(re.findall(r"`(\w+)`", text))
    return found


async def status() -> dict[str, Any]:
    """Of a leader with a subscriber that left, after some seconds; the feed keeps a snapshot."""

    async def use(instance: Instance) -> dict[str, Any]:
        await instance.wait_ready()
        subscribed = instance.subscribe("vmapi", start="beginning", resources=["vm"])
        async with instance.publisher("vmapi") as publisher, subscribed as subscription:
            await publisher.publish("vm", "1", "create", body={})
            await anext(subscription)
        await trio.sleep(5)
        return instance.status()

    network, coordination = MemoryNetwork(), MemoryCoordination(SeededEntropy("seed"))
    store = MemoryLogStore(MemoryPlace())
    log = await store.open("vmapi")
    await log.set_settings(replace(await log.settings(), snapshot=True))
    await log.aclose()
    async with open_instance(
        ["vmapi"],
        log=store,
        coordinator=coordination.coordinator(),
        network=network.host("a"),
        listen="127.0.0.1:7000",
        name="a",
    ) as instance:
        return await use(instance)


async def sqlite_facts(tmp_path: Path) -> set[str]:
    store = SqliteLogStore(f"sqlite:{tmp_path}", str(tmp_path))
    log = await store.open("vmapi")
    facts = await log.maintain()
    await log.aclose()
    return set(facts)


async def test_each_key_has_its_row(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Section by section, in both directions; nested values are named in the row of their key."""
    page, found = told(), await status()
    feed = found["feeds"]["vmapi"]
    (subscriber,) = feed["subscribers"]
    shown = {
        "Of the instance": set(found),
        "Of a feed": {*feed, "problem"},
        "Of a feed's election": set(feed["election"]),
        "Of a subscriber": set(subscriber),
        "Of a feed's settings": set(feed["settings"]),
        "Of a feed's log": set(feed["log"]),
        "Of a leader's term": {*feed["term"], *await sqlite_facts(tmp_path), "wal_holder_pid"},
    }
    assert {title: page[title][0] for title in shown} == shown
    nested = {
        "Of the instance": found["coordinator"],
        "Of a feed": feed["window"],
        "Of a feed's election": feed["election"]["events"][0],
        "Of a feed's log": {**feed["log"]["fence"], **feed["log"]["epochs"][0]},
    }
    for title, values in nested.items():
        assert set(values) <= page[title][1], f"{title}: {set(values) - page[title][1]} are not told"
