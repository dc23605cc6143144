"""docs/explanation/reliability.md: tables made from the kinds of faults and the bugs found. WRITE_DOCS=1 writes."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from changefeed.simulation.cluster import drawing as cluster  # noqa: E402
from changefeed.simulation.stack import drawing as stack  # noqa: E402
from simulations.chaos.kinds import KINDS  # noqa: E402

PAGE = ROOT / "docs" / "explanation" / "reliability.md"


def chaos_table() -> str:
    rows = [f"| `{kind.name}` | {kind.numbers} | {kind.about} |" for kind in KINDS.values()]
    return "\n".join(["| fault | number | what is done |", "|---|---|---|", *rows])


def words(kinds: object) -> str:
    return ", ".join(f"`{kind}`" for kind in dict.fromkeys(kinds))  # type: ignore[call-overload]


def found_table() -> str:
    rows = []
    for path in sorted((ROOT / "simulations" / "found").glob("*.json")):
        bug = json.loads(path.read_text())
        seed = f"{bug['tier']}, seed {bug['seed']}" if "seed" in bug else bug["tier"]
        symptom = bug["symptom"].replace("|", "/")
        rows.append(f"| {bug['title']}: {symptom} | {seed} | `{bug['before']}` | `{bug['after']}` |")
    return "\n".join(["| bug | found by | before | mended in |", "|---|---|---|---|", *rows])


def page() -> str:
    text = PAGE.read_text()
    made = {
        "chaos": chaos_table(),
        "cluster": words(cluster.KINDS),
        "stack": words(kind for kind in stack.KINDS if kind not in cluster.KINDS),
        "found": found_table(),
    }
    for name, table in made.items():
        between = re.compile(f"(<!-- made: {name} -->\n).*(<!-- end: {name} -->)", re.DOTALL)
        text = between.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)
    return text


def test_the_tables_are_those_of_the_code() -> None:
    """The page's tables equal the faults that are drawn and the bugs that have a file."""
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(page())

    assert PAGE.read_text() == page()
