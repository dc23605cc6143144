"""4. Serving: ranges of the log to subscribers; publishers' connections to whoever leads; plain HTTP.

entry.py         a connection's first message decides who serves it
feed.py          what a session knows of the feed (implemented by an instance's part in it)
window.py        the newest entries in memory, and the tail up to which a leader vouches (pure)
filters.py       which changes a filter selects (pure)
machine.py       a subscriber's session: where it starts, which frame comes next, when to beat, when to cut (pure)
listing.py       a snapshot's list: which page comes next, what is sent of it, what is refused (pure)
driver.py        the tasks of one subscriber's connection
frames_cache.py  what sessions with equal filters share: runs, encoded frames (pure)
registry.py      who subscribes, what they handled, who left and why
desk.py          a publisher's connection: batches under way, answers in order, the loss of a leader (pure)
publishers.py    the tasks of one publisher's connection: Open, Publish -> the leader -> Answer
large.py         what is large is decoded and encoded beside the event loop, one at a time
closing.py       how a session ends: a Fault, then the error's close code
http.py          /healthz /readyz /feeds /status
"""
