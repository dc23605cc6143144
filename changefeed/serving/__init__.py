"""4. Serving: ranges of the log to subscribers; publishers' connections to whoever leads; plain HTTP.

window.py      the newest entries in memory, and the tail up to which a leader vouches (pure)
filters.py     which changes a filter selects (pure)
machine.py     a subscriber's session: where it starts, which frame comes next, when to beat, when to cut (pure)
driver.py      the tasks of one subscriber's connection
publishers.py  the tasks of one publisher's connection: Open, Publish -> the leader -> Answer
http.py        /healthz /readyz /feeds /status
"""
