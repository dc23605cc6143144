"""One subscriber process of the demo: `python -m changefeed.demo.subscriber JSON`.

Its effect is its file of records, and each record carries the event's position: effect and position are saved in one
write, so that after a SIGKILL at any moment it goes on exactly after the last event that it handled. The tree of files
is rebuilt from the records.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import trio

from changefeed.change import Event, Position
from changefeed.demo.records import Gauge, Records
from changefeed.subscriber.driver import open_subscription


async def subscribe(folder: Path, name: str, feed: str, servers: str) -> None:
    """Write down every event, until SIGTERM."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_at_sigterm, nursery.cancel_scope)
        records, gauge = Records(folder / f"subscriber-{name}.jsonl"), Gauge(folder / f"subscriber-{name}.gauge")
        last = records.last("event")
        position = None if last is None else last["position"]
        records.write("start", position=position)
        start = "beginning" if position is None else Position.parse(position)
        async with open_subscription(feed, servers, start=start, name=f"demo-{name}") as subscription:
            async for event in subscription:
                write_down(event, records)
                gauge.set("seq", event.seq)


def write_down(event: Event, records: Records) -> None:
    body, meta = event.body or {}, event.meta or {}
    records.write(
        "event",
        position=str(event.position),
        publisher=event.publisher,
        number=meta.get("number", 0),
        group=event.group,
        last=event.last,
        id=event.id,
        op=event.op,
        mode=body.get("mode", ""),
        blob=body.get("blob", ""),
    )


async def end_at_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    trio.run(subscribe, Path(given["folder"]), given["name"], given["feed"], given["servers"])
