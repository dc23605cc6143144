"""Tier "explorer": the pure machines of the production, and all orders of a few steps.

    scenarios.py    the worlds, by number: a seed names one
    publishing.py   publishers, leaders, the log: delivery, loss, late messages, fences, deaths, unknown outcomes
    publishing_state.py  what such a world consists of
    reading.py      a subscriber, its sessions, the log: cuts, late frames, restarts, deaths
    electing.py     two elections, a coordinator, the log's fence: lost replies, ended sessions, false evidence
    acts.py         what is told to publishers and leaders, and what they say
    log.py          the log as a value
    cells.py        machines as states: copied, compared, stepped once for each state and fact
    search.py       breadth first: complete, or a broken promise in the fewest steps
    tier.py         as a tier of the simulation

Nothing here is drawn by chance and nothing waits: what is complete has been seen in every order within its bounds.
"""

from __future__ import annotations

from changefeed.simulation.explorer.tier import TIER

__all__ = ["TIER"]
