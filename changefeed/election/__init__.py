"""Who leads a feed: candidacy, challenge, suspicion, handover.

    machine.py     decides (pure): facts from coordinator, link, log and clock in; effects out
    state.py       (pure) what the machine knows, and the few changes that mean something
    views.py       (pure) what the coordinator said last, and how sure that is
    suspicion.py   (pure) is the leader's process gone, or only silent
    logwatch.py    (pure) does the log answer, me and others; whose is its fence
    pace.py        (pure) how often I may stand for election
    handover.py    (pure) the steps of a planned end
    requests.py    (pure) what is in flight
    effects.py     (pure) what the machine asks of its driver
    notes.py       (pure) all of it in sentences for people
    status.py      (pure) the value that status shows
    driver.py      one task per feed that performs the effects
    frozen.py      kills a frozen process that holds the log's lock

The coordinator makes leadership live, the log makes it safe: see docs/internals/leadership.md.
"""
