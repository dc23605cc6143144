"""5. Subscriber: contiguous, deduplicated, resumed.

machine.py  decides: gap, drop, take; what is handled; where to resume; when to save; what ends it (pure)
buffer.py   the frames that were taken and not yet handled, and how far that is (pure)
driver.py   connects, receives, beats, saves; what `open_subscription` returns
cursors.py  where a position is kept: memory, file, SQLite (in the caller's transaction)
"""
