"""Keep rules right for ever: list once, then follow; list again when the feed cannot be resumed."""

import trio

from changefeed import CannotResume, Event, FileCursor, Position, open_subscription


async def apply(event: Event) -> None:
    """Make one change true here. It may come twice after a crash, so applying twice must do no harm."""
    print("apply", event.seq, event.op, event.id)


async def replace_all() -> None:
    """Ask the service for everything, and replace what is held here: it may be wrong in either direction."""
    print("list everything")


async def start_over(cursor: FileCursor, position: Position | None) -> None:
    await replace_all()  # what changes meanwhile comes again: `position` was told before
    await cursor.reset(position, feed="fwapi")


async def agent() -> None:
    cursor = FileCursor("agent.cursor")
    if not await trio.Path("agent.cursor").exists():
        async with open_subscription("fwapi", start="now") as now:
            head = now.state.position
        await start_over(cursor, head)
    while True:
        try:
            async with open_subscription(
                "fwapi", cursor=cursor, name="firewaller@node17", resources={"rule": (), "vm": ("state", "nics")}
            ) as subscription:
                async for event in subscription:
                    await apply(event)
        except CannotResume as reset:  # too old, or the log was lost, restored or replaced
            await start_over(cursor, reset.head)


trio.run(agent)
