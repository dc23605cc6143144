"""1. Publisher: numbers changes, encodes them once, keeps them until they are acknowledged.

machine.py  decides: numbering, batches, what is in flight, what an answer or refusal settles (pure)
groups.py   the groups and batches that it keeps, and what it asks of its driver (pure)
driver.py   connects, sends, waits; what `open_publisher` returns
"""
