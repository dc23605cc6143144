"""Publish one change, and wait until it is durable."""

import trio

from changefeed import open_publisher


async def main() -> None:
    async with open_publisher("vmapi") as publisher:
        receipt = await publisher.publish(
            "vm", "8ad35ea4", "update", fields=["state"], body={"state": "running"}, version=7
        )
        print("durable at", receipt.position)


trio.run(main)
