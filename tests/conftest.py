"""For all tests: hypothesis has no deadline per example. How fast a shared machine is says nothing about us."""

import pytest
from hypothesis import settings

from changefeed.testing.zookeeper_ensemble import STARTED

settings.register_profile("changefeed", deadline=None)
settings.load_profile("changefeed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say whether the run had real servers: what was not started was not tested."""
    if STARTED:
        sizes = ", ".join(f"{size} servers" if size > 1 else "1 server" for size in STARTED)
        terminalreporter.write_line(f"real ZooKeeper ensembles started on loopback: {sizes}")
