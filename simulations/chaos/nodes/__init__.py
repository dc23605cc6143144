"""The programs of a run, each a process: `python -m simulations.chaos.nodes.NAME JSON`."""
