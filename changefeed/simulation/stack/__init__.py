"""Tier "stack": as the cluster tier, with real websockets over byte streams and the SQLite store on a recorded disk.

drawing.py    what a seed does: the workload, the weather, the faults
tier.py       draws, runs, has the history judged
cluster.py    the cluster tier's cluster on streams and files
streams.py    a network of byte streams: split, merged, delayed, cut at any byte
network.py    websockets over it, with the hooks of the cluster tier's faults
store.py      the SQLite store without threads; what the operating system would decide comes from the seed
faults.py     the faults of bytes, machines and disks
strangers.py  peers that send what no peer should
sightings.py  what must be met now and then
"""

from __future__ import annotations

from changefeed.simulation.stack.tier import TIER

__all__ = ["TIER"]
