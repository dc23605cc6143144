"""One process that runs seeds of a tier, one after the other, for runner.py: a line of JSON in, a line of JSON out.

It ends at once, whatever it does, when its standard input closes: it cannot outlive the process that started it. It
is a process of its own because a simulated cluster is a whole trio run, may hang or die, and because each worker has
a hash seed of its own on purpose: what hangs on the order of a set shows as two different digests.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import IO, Any, Final

from changefeed.simulation.case import plan_from
from changefeed.simulation.plan import Plan
from changefeed.simulation.tiers import Outcome, Tier, tier

#: A failed seed's answer holds so many of its last records at most.
HISTORY_MAX: Final = 50_000
TRACEBACK_MAX: Final = 4_000


def find_tier(name: str) -> Tier:
    """The tier of that name, or MODULE:NAME for one that is not of this package.

    Raises ValueError with a sentence if there is none.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        return tier(name)
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no tier {name!r}: {error}") from error
    made: Tier = found() if isinstance(found, type) else found
    return made


def told(outcome: Outcome, took_s: float, history: bool) -> dict[str, Any]:
    """An outcome as an answer; with its plan and history where it failed, or where they were asked for."""
    answer: dict[str, Any] = {
        "seed": outcome.seed,
        "digest": outcome.digest,
        "sightings": dict(sorted(outcome.sightings.items())),
        "virtual_s": outcome.virtual_s,
        "took_s": took_s,
    }
    if outcome.broken:
        answer["broken"] = [
            {"promise": item.promise, "says": item.says, "about": dict(item.about)} for item in outcome.broken
        ]
    if outcome.broken or history:
        answer["plan"] = json.loads(outcome.plan.to_json())
        answer["history"] = list(outcome.history)[-HISTORY_MAX:]
        answer["left_out"] = max(0, len(outcome.history) - HISTORY_MAX)
    return answer


def answer_to(tier: Tier, ask: dict[str, Any]) -> dict[str, Any]:
    """Run what was asked for. An error that leaves the tier is a broken promise too: "crash"."""
    seed = ask["seed"]
    plan: Plan | None = None if ask.get("plan") is None else plan_from(ask["plan"], "the plan")
    begun = time.monotonic()
    try:
        outcome = tier.run(seed, plan)
    except ValueError as error:
        if plan is not None:
            return {"seed": seed, "refused": str(error)}
        return crashed(tier, seed, error, time.monotonic() - begun)
    except Exception as error:
        return crashed(tier, seed, error, time.monotonic() - begun)
    return told(outcome, time.monotonic() - begun, bool(ask.get("history")))


def crashed(tier: Tier, seed: int, error: Exception, took_s: float) -> dict[str, Any]:
    text = "".join(traceback.format_exception(error))
    says = f"an error left the simulation itself: {type(error).__name__}: {error}"
    answer: dict[str, Any] = {
        "seed": seed,
        "digest": "",
        "sightings": {},
        "virtual_s": 0.0,
        "took_s": took_s,
        "broken": [{"promise": "crash", "says": says[:2_000], "about": {"traceback": text[-TRACEBACK_MAX:]}}],
    }
    try:
        answer["plan"] = json.loads(tier.draw(seed).to_json())
    except Exception as other:  # the same error again, most likely: the seed alone replays it
        answer["broken"][0]["about"]["draw"] = f"{type(other).__name__}: {other}"[:500]
    return answer


def read_asks(asks: queue.SimpleQueue[bytes], source: IO[bytes]) -> None:
    """Until nobody asks any more: then this process is of no use, in the middle of a seed too."""
    try:
        for line in source:
            asks.put(line)
    finally:
        os._exit(0)


def main(name: str) -> None:
    """Serve a tier until standard input closes."""
    faulthandler.enable()  # whoever waits in vain sends SIGABRT and reads where it hangs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a run prints must not get between the answers
    logging.getLogger().addHandler(logging.NullHandler())  # nobody reads it here; a tier may judge it

    def say(record: dict[str, Any]) -> None:
        answers.write(json.dumps(record, default=repr).encode() + b"\n")
        answers.flush()

    asks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=read_asks, args=(asks, sys.stdin.buffer), name="asks", daemon=True).start()
    try:
        tier = find_tier(name)
    except ValueError as error:
        say({"refused": str(error)})
        return
    say({"tier": tier.name, "wanted": list(tier.wanted)})
    while True:
        say(answer_to(tier, json.loads(asks.get())))
