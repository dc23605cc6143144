"""5. Subscriber: contiguous, deduplicated, resumed.

machine.py  decides: gap, drop, take; what is handled; where to resume; when to save; what ends it (pure)
listing.py  where it stands in a snapshot's list, and behind it until the list's head is reached (pure)
buffer.py   the frames that were taken and not yet handled, and how far that is (pure)
driver.py   connects, receives, beats, saves; what `open_subscription` returns
cursors.py  where a position is kept: memory, file, SQLite (in the caller's transaction)
"""
