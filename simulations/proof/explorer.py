"""Rows of the explorer: each of its small worlds, looked at completely."""

from __future__ import annotations

from collections.abc import Iterator

from simulations.proof.models import explored
from simulations.proof.rows import Row


def rows(quick: bool = False) -> Iterator[Row]:
    """quick: without the scenarios that take longer than a test may."""
    yield from explored(long=not quick)
