"""docs/reference/cli.md is made from the commands themselves. WRITE_DOCS=1 writes it."""

from __future__ import annotations

import os
from pathlib import Path

from changefeed.cli.command import TABLE, load
from changefeed.cli.parser import options_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"

HEAD = """# Command line

`changefeed COMMAND --help` says the same in a terminal. Human text where a person looks, JSON lines into a pipe or
with `--json`. Flags win over the environment, that over the TOML file of `serve --config`, that over defaults; an
unknown key is an error that names the nearest one. Durations are written `500ms`, `1.5s`, `10m`, `7d`; sizes `256KiB`,
`4GiB`.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | something failed |
| 2 | usage: a flag, name or URL is wrong |
| 3 | cannot resume: the position is too old, of another log, or from the future |
| 4 | unreachable, or timed out |
| 5 | not allowed |
| 70 | `serve` did not come to its end within 15 s of being told (it lacked memory, say), and was ended |
| 130 | Ctrl-C |

| URL of | forms |
|---|---|
| a log | `sqlite:DIR`, `sqlite:///DIR` (a folder with one file per feed), `postgresql://USER@HOST/DB`, `memory:` |
| a coordinator | `file:DIR`, `file:///DIR`, `zk://HOST:PORT,HOST:PORT/CHROOT`, `memory:` |
| an instance | `ws://HOST:PORT`, `http://HOST:PORT`; for clients also `zk://…`: all that take part there |

A JSON change is `{"resource", "id", "op", "fields", "body", "version", "meta"}`; an event adds `"position",
"seq", "epoch", "time", "publisher", "group", "last"`, and `"listed": true` if it is of a snapshot's list.
"""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    parts = [HEAD]
    for name in TABLE:
        command = load(name)
        what = TABLE[name][1]
        about = f"{what[:1].upper()}{what[1:]}. {' '.join(command.about.split())}"
        parts.append(f"\n## changefeed {name}\n\n{about.rstrip()}")
        rows = [f"| `{place.name.upper()}` | | {cell(place.help)} |" for place in command.positionals]
        for option in options_of(command):
            value = f" {option.metavar or 'VALUE'}" if option.kind != "flag" else ""
            short = f"`-{option.short}`, " if option.short else ""
            again = " (may be repeated)" if option.kind == "many" and "repeated" not in option.help else ""
            flag = cell(f"{short}`--{option.name}{value}`")
            rows.append(f"| {flag} | `{option.variable}` | {cell(option.help)}{again} |")
        parts.append("\n\n| what | environment | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def test_the_page_names_every_command_and_flag() -> None:
    """docs/reference/cli.md equals what the commands say of themselves."""
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(page())

    assert PAGE.read_text() == page()
