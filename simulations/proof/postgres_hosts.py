"""proof-postgres: three hosts with their own addresses, one after the other cut off and healed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulations import postgres_hosts as hosts
from simulations.proof.postgres_basis import quick_note
from simulations.proof.rows import Row

SCRIPT = Path(hosts.__file__).resolve()
#: Longer than any time-out, ZooKeeper's session and the database's connections included.
HOLD_S = 25.0
QUICK_HOLD_S = 6.0


def rows(quick: bool = False) -> Iterator[Row]:
    """A row for each cut, one for the audit. Where the network cannot be made, one that fails and says why."""
    lacking = hosts.missing()
    if lacking:
        yield Row("three hosts in network namespaces", f"not here: {lacking}", "runs", False)
        return
    with tempfile.TemporaryDirectory(prefix="changefeed-hosts-proof-") as folder:
        said = Path(folder) / "hosts.json"
        command = [sys.executable, str(SCRIPT), "--json", str(said)]
        command += ["--hold", str(QUICK_HOLD_S if quick else HOLD_S)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        if not said.exists():
            yield Row("three hosts in network namespaces", f"ended with status {done.returncode}", "runs", False)
            return
        report = json.loads(said.read_text())
    for seen in report["cuts"]:
        yield _row(seen, quick)
    found = [*report["broken"], *report["wrong"]]
    yield Row(
        f"three hosts: {report['acked']} changes acknowledged over {len(report['cuts'])} cuts, {report['delivered']} "
        "deliveries; everything in the log once, each subscriber got everything in order once",
        f"{len(found)} broken{': ' + found[0] if found else ''}",
        f"0{quick_note(quick)}",
        bool(report["clean"]) and not quick,
    )


def _row(seen: dict[str, Any], quick: bool) -> Row:
    cut = hosts.CUTS[seen["cut"]]
    if seen["epochs"]:
        lead = f"another led after {seen['led_s']:.2f} s" if seen["led_s"] is not None else f"led by {seen['after']}"
        lead += f", given up after {seen['given_up_s']:.2f} s" if seen["given_up_s"] is not None else ""
    else:
        lead = "led on"
    wrong = f"; WRONG: {'; '.join(seen['wrong'])}" if seen["wrong"] else ""
    return Row(
        f"cut off: {cut.says}",
        f"{lead}; no receipts elsewhere for {seen['elsewhere_s']:.2f} s, there for {seen['there_s']:.2f} s; all well "
        f"{seen['healed_s']:.2f} s after healing{wrong}",
        f"{cut.must}; well within {hosts.HEALED_S:g} s{quick_note(quick)}",
        not seen["wrong"] and not quick,
    )
