"""The proof: this package runs the production code under virtual time, with faults drawn first, and judges its history.

    plan.py       faults as data: drawn from a seed, written and read as JSON, shrunk
    tiers.py      the contract of a tier, and the tiers by name (below)
    cluster/      tier "cluster": production tasks and machines; network, coordinator, store, clock, chance simulated
    stack/        tier "stack": as above with trio-websocket over byte streams, and the SQLite store on a recorded disk
    explorer/     tier "explorer": the pure machines, all orders of a few steps
    runner.py     many seeds over processes; report.py, diagram.py what people see of it; shrink.py smaller plans

`changefeed simulate` and simulations/failover.py run it. What it records is a changefeed.history.
Same seed, same plan, same digest: in any process, under any hash seed.
"""
