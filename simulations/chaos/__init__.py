"""Chaos on real processes: instances, a ZooKeeper ensemble, publishers and subscribers; real faults; one history.

    kinds.py       what can go wrong here: each fault with its number, what it needs, what must be seen of it
    plan.py        faults drawn from a seed (pure)
    sandbox.py     a world of its own for a run: network namespaces, cuts, loss, a small disk; gone with the run
    shim.c, .py    errors, delays, stops placed inside of a process's calls on the log; the wall clock
    proxy.py       a user-space TCP proxy: delay, resets, half-closed and black-holed flows
    nodes/         the programs that run: instance, publisher, subscriber, and strangers that send garbage
    processes.py   those programs as processes
    stage.py       everything that stands in one round, and where faults take hold
    faults_*.py    the faults themselves: do it, see its effect, undo it
    nemesis.py     performs a plan, in lanes side by side
    rounds.py      one round: build, harm, heal, drain, dump, judge; and a campaign of rounds
    recovery.py    how long nobody got a receipt or a delivery, per kind of fault
    report.py      the table, JSON and chart

Everything that happened is a changefeed.history; its checkers give the verdict.
"""
