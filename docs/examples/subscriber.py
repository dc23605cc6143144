"""Follow a feed across failovers and restarts, from where the last run ended."""

import trio

from changefeed import FileCursor, open_subscription


async def main() -> None:
    async with open_subscription("vmapi", cursor=FileCursor("vmapi.cursor"), start="beginning") as subscription:
        async for event in subscription:
            print(event.seq, event.op, event.resource, event.id, event.body)


trio.run(main)
