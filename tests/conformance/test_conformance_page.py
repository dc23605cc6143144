"""docs/reference/conformance.md lists the scenarios as their docstrings say them. WRITE_DOCS=1 writes it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from changefeed.conformance.frames import DEAD_S, HEARTBEAT_S
from changefeed.conformance.scenarios import SCENARIOS, name_of, title_of
from changefeed.conformance.stage import GRACE_S, PATIENCE_S, SAVED_S

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "conformance.md"
GENERATED = re.compile(r"(<!-- generated: scenarios -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    rows = [f"| `{name_of(scenario)}` | {title_of(scenario)} |\n" for scenario in SCENARIOS]
    return "\n| scenario | what is right |\n|---|---|\n" + "".join(rows) + "\n"


def test_the_page_lists_every_scenario() -> None:
    """The table is made from the docstrings."""
    text = PAGE.read_text()
    wanted = GENERATED.sub(lambda found: found[1] + table() + found[2], text)
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(wanted)
        text = wanted

    assert text == wanted


def test_the_page_says_how_long_things_may_take() -> None:
    """The figures in its prose are those of the code."""
    text = " ".join(PAGE.read_text().split())

    assert f"`heartbeat_s` of {HEARTBEAT_S:g} s and `heartbeat_dead_s` of {DEAD_S:g} s" in text
    assert f"heartbeats may come {GRACE_S:g} s late" in text
    assert f"the program has {PATIENCE_S:g} s" in text
    assert f"saved within {SAVED_S:g} s" in text
