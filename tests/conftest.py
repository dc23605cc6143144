"""For all tests: hypothesis has no deadline per example. How fast a shared machine is says nothing about us."""

from pathlib import Path

import pytest
from hypothesis import settings

from changefeed.testing.zookeeper_ensemble import STARTED

settings.register_profile("changefeed", deadline=None)
settings.load_profile("changefeed")

#: Folders of searches: they are in `make test`, and too long for `make check`.
SEARCHES = frozenset(
    {
        "simulation",
        "simulation_stack",
        "simulation_runner",
        "power_loss",
        "models",
        "explorer",
        "mutants",
        "chaos",
        "hostile",
    }
)
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is a search by its folder."""
    for item in items:
        if SEARCHES.intersection(item.path.relative_to(HERE).parts):
            item.add_marker(pytest.mark.search)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say whether the run had real servers: what was not started was not tested."""
    if STARTED:
        sizes = ", ".join(f"{size} servers" if size > 1 else "1 server" for size in STARTED)
        terminalreporter.write_line(f"real ZooKeeper ensembles started on loopback: {sizes}")
