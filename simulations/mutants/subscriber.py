"""Bugs on the way to subscribers: sessions on the server, and the client."""

from __future__ import annotations

from typing import Final

from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import Patch

SESSION: Final = "changefeed.serving.machine"
SERVING: Final = "changefeed.serving.driver"
CLIENT: Final = "changefeed.subscriber.machine"
READER: Final = "changefeed.simulation.cluster.clients"
BUFFER: Final = "changefeed.subscriber.buffer"

MUTANTS: Final = (
    Mutant(
        "M15",
        "a resumed session begins one event too early",
        "resume is after the position",
        (
            Patch(
                SESSION,
                "            raise refusal\n        return start.position\n",
                "            raise refusal\n        return look.position(max(look.floor.seq, start.position.seq - 1))\n",  # noqa: E501
            ),
        ),
        hidden_by=("D5",),
        sees=("C5", "C10"),
    ),
    Mutant(
        "M16",
        "one in five sessions passes over its first event",
        "never skipped: a subscriber receives every event that its filter selects, or is told that it cannot",
        (
            Patch(
                SESSION,
                "        self.scanned = start\n        self.sent_away",
                "        later = Position(start.lineage, start.epoch, start.term, start.seq + 1)\n"
                "        self.scanned = start if start.seq % 5 else later\n"
                "        self.sent_away",
            ),
        ),
        sees=("C5", "C10", "C13"),
    ),
    Mutant(
        "M17",
        "an event counts as handled as soon as it is given: the cursor is saved before the effect",
        "an event is handled when the loop asks for the next one",
        (
            Patch(
                BUFFER,
                "        if self._done == len(self._events):\n            return self._to\n"
                "        return self._events[self._done - 1].position if self._done else self._before\n",
                "        return self.given\n",
            ),
        ),
        sees=("C5", "C10"),
    ),
    Mutant(
        "M18",
        "the application saves its cursor a step after the effect, not in one transaction",
        "a subscriber that commits its position together with its own effect applies each event exactly once",
        (
            Patch(
                READER,
                "            return\n        effects.keys.append(key_of(event.change))\n        effects.cursor.position = event.position\n",  # noqa: E501
                "            return\n        effects.keys.append(key_of(event.change))\n",
            ),
            Patch(
                READER,
                "            if not self.saves:\n                self.voice(",
                "            if not self.saves:\n"
                "                await trio.sleep(0.1)\n"
                "                self.effects.cursor.position = event.position\n"
                "                self.voice(",
            ),
        ),
        sees=("C5", "C10"),
        twin=(
            Patch(
                "changefeed.subscriber.cursors",
                "                done = connection.execute(\n"
                '                    f"UPDATE {TABLE} SET position = ? WHERE name = ? AND feed = ? AND position = ?",\n',  # noqa: E501
                '                connection.execute("COMMIT")\n'
                '                connection.execute("BEGIN IMMEDIATE")\n'
                "                done = connection.execute(\n"
                '                    f"UPDATE {TABLE} SET position = ? WHERE name = ? AND feed = ? AND position = ?",\n',  # noqa: E501
            ),
        ),
        twin_tests=("tests/subscriber/test_cursors.py",),
    ),
    Mutant(
        "M25",
        "sessions vouch for seqs that the leader has given to an append that is still under way",
        "a bookmark comes from the same ordered source as the events",
        (
            Patch(
                SERVING,
                "            -1 if tail is None else tail.seq,\n            feed.leading()[1],\n",
                "            -1 if tail is None else max(tail.seq, "
                'getattr(getattr(getattr(feed, "_term", None), "_machine", None), "assigned", 0)),\n'
                "            feed.leading()[1],\n",
            ),
            Patch(
                "changefeed.leader.machine",
                "        self._flight = flight = Flight(accepted, tuple(entries))\n",
                "        self._flight = flight = Flight(accepted, tuple(entries))\n        self.assigned = seq\n",
            ),
            Patch(
                SERVING,
                "        if not entries:\n            session.log_failed(trio.current_time())\n            return\n        if entries[0]",  # noqa: E501
                "        if not entries:\n"
                "            at = Position(feed.log.lineage, feed.window.tail.epoch, feed.window.tail.term, upto)\n"
                "            session.took((), at, trio.current_time())\n"
                "            return\n"
                "        if entries[0]",
            ),
        ),
        sees=("C5", "C11"),
    ),
    Mutant(
        "M29",
        "a subscription that connects again goes back to the position that it began with",
        "a position only grows: resuming continues after what was taken",
        (
            Patch(
                CLIENT,
                "        self._generation += 1\n        self._connected = self._subscribe_due = True\n",
                "        self._generation += 1\n        self._connected = self._subscribe_due = True\n"
                "        if self._generation > 1 and self._origin is not None:\n"
                "            self._begin(self._origin)\n",
            ),
        ),
        sees=("C5", "C10"),
    ),
    Mutant(
        "M31",
        "a subscriber is refused by what this instance last saw of the log, without a look of its own",
        "final refusals only after a look into the log itself that began after the request came in",
        (
            Patch(
                SERVING,
                "    look = await _ask(feed, log.look())\n    position = admit(",
                '    seen = feed.look_seen() if hasattr(feed, "look_seen") else None\n'
                "    look = await _ask(feed, log.look()) if seen is None else seen[0]\n    position = admit(",
            ),
        ),
        sees=("C13",),
    ),
    # ---- defences
    Mutant(
        "D5",
        "the client takes the events of a frame that it has had already",
        "take the events above my position",
        (
            Patch(
                CLIENT,
                "        if seqs and seqs[0] <= position.seq:\n",
                "        if False:\n",
            ),
            Patch(
                CLIENT,
                "        if to.seq <= position.seq:\n            return []\n",
                "",
            ),
        ),
    ),
)
