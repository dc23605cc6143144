"""5. Subscriber: contiguous, deduplicated, resumed.

machine.py  decides (pure): gap, drop, take; handled; where to resume; which server next; back-off
driver.py   connects, receives, beats; what `open_subscription` returns
cursors.py  where a position is kept: memory, file, SQLite (in the caller's transaction)
"""
