"""changefeed log info: what a log holds, and whether its server keeps what it acknowledges."""

from __future__ import annotations

from typing import Any

import trio.to_thread

from changefeed.cli.command import LOG, Command, Values
from changefeed.cli.output import Output
from changefeed.log import LogStore
from changefeed.log.urls import open_log


async def run(values: Values, output: Output) -> int:
    store = open_log(values.log, values.settings)
    try:
        record: dict[str, Any] = {"log": store.url}
        lines = [store.url]
        if getattr(store, "kind", "") == "postgresql":
            from changefeed.log.postgresql import PostgresqlLogStore
            from changefeed.log.postgresql import layout as tables

            assert isinstance(store, PostgresqlLogStore)
            found = await trio.to_thread.run_sync(tables.info, store.server)
            record |= {
                "layout": found.layout,
                "layout_known": tables.LAYOUT,
                "synchronous_commit": found.synchronous_commit,
                "synchronous_standby_names": found.synchronous_standbys,
                "table_bytes": found.table_bytes,
            }
            standbys = found.synchronous_standbys or "none: an acknowledgement survives this server's disk only"
            lines += [
                f"  layout {found.layout} (this release knows {tables.LAYOUT})",
                f"  synchronous_commit {found.synchronous_commit}, synchronous standbys: {standbys}",
                f"  {found.table_bytes:,} bytes of entries",
            ]
            if not found.layout:
                await output.line({**record, "feeds": []}, "\n".join([*lines, "  no tables: changefeed log init"]))
                return 1
        record["feeds"] = [await _feed(store, name) for name in await store.feeds()]
    finally:
        await store.aclose()
    lines += [
        f"  {feed['feed']}  lineage {feed['lineage']}  seq {feed['floor'] + 1} to {feed['tail']}"
        f"  {feed['bytes']:,} bytes  epoch {feed['epoch']} of {feed['leader'] or 'nobody'}"
        + ("" if feed["folded"] is None else f"  snapshot up to seq {feed['folded']}")
        for feed in record["feeds"]
    ]
    await output.line(record, "\n".join(lines if record["feeds"] else [*lines, "  no feeds"]))
    return 0


async def _feed(store: LogStore, name: str) -> dict[str, Any]:
    log = await store.open(name, create=False, check=False)
    try:
        look = await log.look()
    finally:
        await log.aclose()
    return {
        "feed": name,
        "lineage": look.lineage,
        "floor": look.floor.seq,
        "tail": look.tail.seq,
        "bytes": look.bytes,
        "folded": look.folded,
        "epoch": look.fence.epoch,
        "leader": look.fence.instance,
    }


COMMAND = Command(
    name="log info",
    run=run,
    options=(LOG,),
    about="Prints the feeds of a log with lineage, extent and fence; of a server also the layout of its tables and "
    "what an acknowledgement survives. Exit status 1 if the tables are missing.",
)
