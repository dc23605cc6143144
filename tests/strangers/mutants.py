"""Broken clients: subscriber.mjs with one mistake each that people make, and the scenario that must catch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """name: the mistake. scenario: which scenario catches it; problem: a part of what that says.

    changes: what of the source is replaced by what; each must be there exactly once.
    """

    name: str
    scenario: str
    problem: str
    changes: tuple[tuple[str, str], ...]

    def applied(self, source: str) -> str:
        for old, new in self.changes:
            assert source.count(old) == 1, f"{self.name}: {old!r} is {source.count(old)} times in the client"
            source = source.replace(old, new)
        return source


def mutant(name: str, scenario: str, problem: str, *changes: str) -> Mutant:
    return Mutant(name, scenario, problem, tuple(zip(changes[::2], changes[1::2], strict=True)))


TAKEN = "  position = to;\n  save();\n"
FINAL = "if (code >= 4500 && code <= 4999) stop(CANNOT_RESUME.includes(code) ? 3 : 1, `closed for good with ${code}`);"
SILENCE = "      silence = setTimeout(() => end(1006), silenceMs);\n"
PARSED = "      const message = JSON.parse(data);\n"
START = 'const start = position === null ? { at: "beginning" } : { position };'
WAIT = "if (tries > 0) await new Promise((wake) => setTimeout(wake, Math.random() * bound));"

MUTANTS = (
    mutant("starts at now", "in-order", 'must start at "beginning"', '{ at: "beginning" }', '{ at: "now" }'),
    mutant(
        "resumes one too early",
        "resume",
        "it resumed at 5e1d3c7a90b24f68.7.c0ffee42.2; its position was 5e1d3c7a90b24f68.7.c0ffee42.3",
        ": { position };\n",
        ": { position: position.replace(/[0-9]+$/, (seq) => Math.max(0, seq - 1)) };\n",
    ),
    mutant(
        "resumes one too late",
        "resume",
        "it resumed at 5e1d3c7a90b24f68.7.c0ffee42.4; its position was 5e1d3c7a90b24f68.7.c0ffee42.3",
        ": { position };\n",
        ": { position: position.replace(/[0-9]+$/, (seq) => +seq + 1) };\n",
    ),
    mutant(
        "begins again until it had an event",
        "trimmed-start",
        "it resumed at 'beginning'",
        START,
        START.replace("position === null", "position === null || !globalThis.had"),
        TAKEN,
        TAKEN + "  globalThis.had = true;\n",
    ),
    mutant(
        "makes positions up from the first one and the seq",
        "opaque-positions",
        "should have said that it handled 5e1d3c7a90b24f68.11.00c0ffee.6; the last it said was",
        TAKEN,
        "  position = mine === 0 ? to : position.replace(/[0-9]+$/, seqOf(to));\n  save();\n",
    ),
    mutant("never saves", "restart", "it came back with", TAKEN, "  position = to;\n"),
    mutant(
        "saves before the effects",
        "effects-first",
        "but it had saved 5e1d3c7a90b24f68.7.c0ffee42.",
        "  for (const { seqs",
        TAKEN + "  for (const { seqs",
        "  position = to;\n  save();\n  return true;",
        "  return true;",
    ),
    mutant(
        "writes into a buffer",
        "effects-first",
        "it said that it handled",
        "while (line.length > 0) line = line.subarray(writeSync(1, line));",
        "process.stdout.write(line);",
    ),
    mutant(
        "takes an empty cursor for none",
        "empty-cursor",
        "it connected again; it should have stopped: its file $CHANGEFEED_CURSOR had become empty",
        "stop(3, `${CURSOR} holds no position`)",
        "return null",
    ),
    mutant("ignores after", "range-gap", "it stayed on the connection", "if (after > mine) return false;", ""),
    mutant(
        "ignores after of bookmarks",
        "bookmark-gap",
        "it stayed on the connection",
        "if (after > mine) return false;",
        "if (after > mine && runs) return false;",
    ),
    mutant(
        "skips bookmarks",
        "bookmark",
        "should have said that it handled 5e1d3c7a90b24f68.7.c0ffee42.50; the last it said was 5e1d3c7a90b24f68.7",
        TAKEN,
        "  if (runs) position = to;\n  save();\n",
    ),
    mutant(
        "does not save bookmarks",
        "bookmark-saved",
        "it resumed at 5e1d3c7a90b24f68.7.c0ffee42.3; its position was 5e1d3c7a90b24f68.7.c0ffee42.50",
        TAKEN,
        "  position = to;\n  if (runs) save();\n",
    ),
    mutant("applies repeats", "repeat", "it printed 1, 2, 3, 2", "if (seq > mine) apply", "apply"),
    mutant("counts events itself", "sparse", "it printed seq 6 with id 'id-17'", "? seqs[index]", "? seqs[0] + index"),
    mutant(
        "takes the first run only",
        "groups",
        "it printed 1, 2, 3; expected",
        "of runs ?? []",
        "of (runs ?? []).slice(0, 1)",
    ),
    mutant(
        "thinks messages are small",
        "large",
        "it printed nothing; expected 1, 2, 3",
        PARSED,
        "      if (data.length > 2 ** 20) return end(1009);\n" + PARSED,
    ),
    mutant(
        "writes JSON by hand",
        "strange-ids",
        "each line must be the JSON of an event",
        "`${JSON.stringify({ seq, id, resource, op, body })}\\n`",
        '`{"seq": ${seq}, "id": "${id}"}\\n`',
    ),
    mutant(
        "knows every message",
        "unknown-parts",
        "it had ended with exit status 1",
        "if (Object.hasOwn(on, message.type)) ",
        "",
    ),
    mutant("says nothing", "heartbeat", "it said nothing for", "saying = setInterval", "saying = ((never) => never)"),
    mutant(
        "says something only when it is idle",
        "heartbeat-busy",
        "it said nothing for",
        SILENCE,
        SILENCE + "      saying?.refresh();\n",
        "limits.heartbeat_s * 1000 * 0.8",
        "limits.heartbeat_s * 1000 * 3",
    ),
    mutant(
        "takes a quiet feed for dead",
        "quiet-feed",
        "it left the connection though the server said",
        "      heard();\n    };\n",
        '      if (message.type !== "beat") heard();\n    };\n',
    ),
    mutant("ignores silence", "silence", "it should have come again after 2.5 s of silence", SILENCE, ""),
    mutant(
        "gives up when a handshake fails",
        "closed-handshake",
        "it had ended with exit status 1",
        "socket.onerror = () => end(1006);",
        'socket.onerror = () => stop(1, "no connection");',
        "const HANDSHAKE_MS = 5_000;",
        "const HANDSHAKE_MS = 1_000;",
    ),
    mutant(
        "waits for a handshake for ever",
        "hanging-handshake",
        "the server had not answered its handshake; it should have tried again after 10 s; no connection came",
        "const HANDSHAKE_MS = 5_000;",
        "const HANDSHAKE_MS = 600_000;",
    ),
    mutant(
        "stays with its first server",
        "failover",
        "one of its two servers was killed; it should have gone to the other",
        "SERVERS[turn++ % SERVERS.length]",
        "SERVERS[0]",
    ),
    mutant(
        "begins anew at a redirect",
        "redirect",
        "it resumed at 'beginning'; it had handled",
        "redirected = [...servers];",
        "redirected = [...servers]; setTimeout(() => (position = null), delay_s * 1000);",
    ),
    mutant("tries in a busy loop", "backoff", "it should try at once, then wait", WAIT, ""),
    mutant(
        "takes a fault for final",
        "not-current",
        "it had ended with exit status 1",
        "console.error(`subscriber: ${code}: ${message}`);\n",
        "stop(1, message);\n",
    ),
    mutant(
        "forgets its patience with each subscribed",
        "flapping",
        "it should try at once, then wait",
        "Date.now() - subscribed >= 1000",
        "true",
    ),
    mutant("stops at 4000", "close-reconnect", "it had ended with exit status 1", "code >= 4500", "code >= 4000"),
    mutant(
        "takes 1000 for the end",
        "close-other",
        "it had ended with exit status 0",
        FINAL,
        FINAL + "\n  if (code === 1000) process.exit(0);",
    ),
    mutant(
        "reconnects whatever the close code says",
        "close-final",
        "it connected again; it should have stopped: close code 4500 means do not reconnect",
        FINAL,
        "",
    ),
    mutant("ends well when refused", "refused", "it stopped with exit status 0", "? 3 : 1", "? 3 : 0"),
    mutant(
        "begins anew when it cannot resume",
        "reset",
        "it connected again; it should have stopped: its position is too old (4531)",
        FINAL,
        f"if (CANNOT_RESUME.includes(code)) position = null;\n  else {FINAL}",
    ),
    mutant(
        "forgets its position when it cannot resume",
        "reset",
        "it resumed at 'beginning'; its position was 5e1d3c7a90b24f68.7.c0ffee42.2",
        FINAL,
        f"if (CANNOT_RESUME.includes(code)) renameSync(CURSOR, `${{CURSOR}}.old`);\n  {FINAL}",
    ),
    mutant("has one exit status", "reset-by-code", "it stopped with exit status 1 when", "? 3 : 1", "? 1 : 1"),
)
