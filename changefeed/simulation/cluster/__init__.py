"""Tier "cluster": the production tasks and machines under virtual time; everything around them simulated.

    drawing.py     what a seed does: the swarm's switches and the faults, drawn first
    tier.py        draws, runs, has the history judged
    cluster.py     the processes of one run, their worlds, how they are killed, frozen and healed
    clients.py     publishers and subscribers as applications would write them
    faults.py      does what the plan says
    distant.py     the log as an instance reaches it: ways, pauses, failures
    recording.py   the history; what the store records inside its writes
    sightings.py   what must be met now and then
    judge.py       what must be true
    virtual.py     time, order and frozen processes on trio

A plan is Step(at, kind, target, lasts, how) with kinds from drawing.KINDS. Two phases: anything goes; then everything
is healed, each publisher publishes a little more, and all must converge within a virtual bound.
"""

from __future__ import annotations

from changefeed.simulation.cluster.tier import TIER

__all__ = ["TIER"]
