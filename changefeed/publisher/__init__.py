"""1. Publisher: numbers changes, encodes them once, keeps them until they are acknowledged.

machine.py  decides: numbering, batches, what is in flight, what a receipt or refusal settles (pure)
driver.py   connects, sends, waits; what `open_publisher` returns
"""
