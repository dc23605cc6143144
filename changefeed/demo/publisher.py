"""One publisher process of the demo: `python -m changefeed.demo.publisher JSON`.

It writes down each group before sending it and each receipt when it comes, and ends when everything has an answer.
Numbers are its own, from 1 on; each change carries its number in `meta`, by which subscribers can tell it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from changefeed.change import Change
from changefeed.demo.history import read_plan
from changefeed.demo.records import Gauge, Records
from changefeed.errors import Refused
from changefeed.publisher.driver import Pending, open_publisher

#: Groups sent ahead of their receipts.
AHEAD_MAX = 2000


async def publish(folder: Path, index: int, feed: str, servers: str, over_s: float) -> None:
    """Publish the plan of publisher `index`, its groups spread evenly over `over_s` seconds (0: as fast as it goes)."""
    steps = list(read_plan(folder / f"plan-{index}.jsonl"))
    records, gauge = Records(folder / f"publisher-{index}.jsonl"), Gauge(folder / f"publisher-{index}.gauge")
    async with open_publisher(feed, servers, name=f"demo-{index}") as publisher:
        await publisher.wait_ready()
        begun = trio.current_time()
        number = 1
        send, receive = trio.open_memory_channel[Pending](AHEAD_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle, publisher.id, receive, records, gauge)
            async with send:
                for place, step in enumerate(steps):
                    due = begun + over_s * place / len(steps)
                    if due > trio.current_time():
                        await trio.sleep_until(due)
                    records.write("send", publisher=publisher.id, number=number, changes=step)
                    gauge.set("sent", number + len(step) - 1)
                    await send.send(await publisher.submit(changes_of(step, number), number=number))
                    number += len(step)


def changes_of(step: Sequence[Sequence[str]], number: int) -> list[Change]:
    return [
        Change("file", path, op, body=None if op == "delete" else {"mode": mode, "blob": blob}, meta={"number": n})
        for n, (path, op, mode, blob) in enumerate(step, number)
    ]


async def settle(publisher: str, receive: trio.MemoryReceiveChannel[Pending], records: Records, gauge: Gauge) -> None:
    """Write down each answer, in order."""
    async for pending in receive:
        facts: dict[str, Any] = {"publisher": publisher, "number": pending.number}
        try:
            receipt = await pending.wait()
        except Refused as error:
            records.write("refused", **facts, code=error.code, message=str(error))
        else:
            records.write(
                "receipt", **facts, first=str(receipt.first), last=str(receipt.last), repeated=receipt.repeated
            )
            gauge.set("seq", receipt.last.seq)
            gauge.set("epoch", max(gauge.get("epoch"), receipt.last.epoch))
        gauge.set("answered", pending.number + pending.count - 1)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    trio.run(publish, Path(given["folder"]), given["index"], given["feed"], given["servers"], given["over_s"])
