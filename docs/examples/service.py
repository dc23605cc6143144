"""Publish from a service: one change, a group, many without waiting for each, and a bound on the wait."""

from typing import Any

import trio

from changefeed import Change, OutcomeUnknown, Refused, open_publisher

vm: dict[str, Any] = {"uuid": "8ad35ea4", "state": "running", "row_version": 7}


async def main() -> None:
    async with open_publisher("vmapi") as publisher:
        await publisher.publish("vm", vm["uuid"], "update", fields=["state"], body=vm, version=vm["row_version"])
        await publisher.publish_many(  # one group: all or nothing, delivered together
            [Change("vm", "8ad35ea4", "delete", version=8), Change("nic", "90:b8:d0:1:2:3", "delete")]
        )

        changes = [Change("vm", f"vm-{n}", "create", body={"n": n}) for n in range(1000)]
        pendings = [await publisher.submit(change) for change in changes]  # waits only while the buffer is full
        receipts = [await pending.wait() for pending in pendings]
        print(len(receipts), "changes are durable, the last one at seq", receipts[-1].position.seq)

        try:
            with trio.move_on_after(10) as scope:
                await publisher.publish("vm", "vm-0", "update", fields=["state"])
            if scope.cancelled_caught:
                print("not known yet: the change stays, and is sent as soon as a leader can be reached")
        except Refused as error:
            print("nothing happened:", error.code, error)
        except OutcomeUnknown as error:
            print("it may be stored or not:", error)


trio.run(main)
