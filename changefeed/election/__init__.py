"""Who leads a feed: candidacy, challenge, suspicion, handover.

    machine.py  decides (pure): facts from coordinator, link, log and clock in; effects out
    driver.py   one task per feed that performs the effects

The coordinator makes leadership live, the log makes it safe: see docs/internals/leadership.md.
"""
