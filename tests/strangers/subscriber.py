"""A subscriber through the public API, as a program that `changefeed conformance` can grade: see its page.

It prints one JSON line per event and keeps its position in a file, saved at most a second after an event was handled.
Exit status 3: it cannot resume; 1: refused for good, or anything else that needs a person.
"""

import json
import os
import sys

import trio

from changefeed import CannotResume, ChangefeedError, open_subscription


async def main() -> None:
    feed, cursor = os.environ["CHANGEFEED_FEED"], os.environ["CHANGEFEED_CURSOR"]
    # The servers are those of $CHANGEFEED_URL.
    async with open_subscription(feed, cursor=cursor, start="beginning") as subscription:
        async for event in subscription:
            line = {"seq": event.seq, "id": event.id, "resource": event.resource, "op": event.op}
            print(json.dumps(line), flush=True)


try:
    trio.run(main)
except ChangefeedError as error:
    print(f"subscriber: {error} ({error.code})", file=sys.stderr)
    sys.exit(3 if isinstance(error, CannotResume) else 1)
