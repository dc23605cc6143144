"""The process in which the mutated code runs: `python -m simulations.mutants.worker`, a job on standard input.

A job is one line of JSON: patches, tier, ranges of seeds, the bound of a seed in seconds. Each range is run until a
seed breaks a promise, and told in one line. A seed that does not end counts as broken ("hangs"): virtual time stands
still, or nothing sleeps any more. Nothing of the package may be imported here before the patches are installed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any

from simulations.mutants.patching import Patch, install


def run(job: dict[str, Any]) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a run prints must not get between the answers
    logging.disable(logging.CRITICAL)
    install(Patch(*patch) for patch in job["patches"])
    from changefeed.simulation.worker import find_tier

    tier = find_tier(job["tier"])
    now: dict[str, Any] = {}

    def hung(number: int, frame: FrameType | None) -> None:
        where = "" if frame is None else "".join(traceback.format_stack(frame)[-4:])
        says = f"the seed did not end within {job['seed_s']} s of real time"
        found = [{"promise": "hangs", "says": says, "about": {"where": where}}]
        out.write(json.dumps({**now, "broken": found, "hung": True}) + "\n")
        out.flush()
        os._exit(0)

    signal.signal(signal.SIGALRM, hung)
    for index, (first, end) in enumerate(job["ranges"]):
        answer: dict[str, Any] = {"range": index, "ran": 0, "broken": []}
        for seed in range(first, end):
            answer = now = {"range": index, "seed": seed, "ran": seed - first + 1}
            signal.setitimer(signal.ITIMER_REAL, job["seed_s"])
            answer["broken"] = _broken(tier, seed)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if answer["broken"]:
                break
        out.write(json.dumps(answer) + "\n")


def _broken(tier: Any, seed: int) -> list[dict[str, Any]]:
    try:
        outcome = tier.run(seed)
    except Exception as error:
        # What leaves the simulation itself has broken nothing that can be named better.
        trace = "".join(traceback.format_exception(error))[-3000:]
        return [{"promise": "crash", "says": f"{type(error).__name__}: {error}"[:500], "about": {"traceback": trace}}]
    found: list[dict[str, Any]] = []
    for item in outcome.broken:
        about = {key: value for key, value in dict(item.about).items() if key == "traceback"}
        found.append({"promise": item.promise, "says": item.says[:500], "about": about})
    return found


def _end_with_parent() -> None:
    """Whoever started this has gone: a seed that nobody waits for must not go on."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run(asked)
