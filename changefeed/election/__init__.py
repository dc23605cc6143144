"""Who leads a feed: candidacy, challenge, suspicion, handover.

    machine.py   decides (pure): facts from coordinator, link, log and clock in; effects out
        state.py      what it knows, and the few changes that mean something
        views.py      what the coordinator said last, and how sure that is
        suspicion.py  is the leader's process gone, or only silent
        logwatch.py   does the log answer, me and others; whose is its fence
        pace.py       how often I may stand for election
        handover.py   the steps of a planned end
        requests.py, effects.py   what is asked of the driver, and what is in flight
        notes.py, status.py       all of it for people
    driver.py    one task per feed that performs the effects
    frozen.py    kills a frozen process that holds the log's lock

All but driver.py and frozen.py are pure. The coordinator makes leadership live, the log makes it safe: see
docs/internals/leadership.md.
"""
