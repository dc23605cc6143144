"""From argv and environment to a command and its values. Own and small, so that every mistake gets a sentence.

Raises BadConfig for every mistake; `Help` when help was asked for.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from changefeed.cli.command import TABLE, Command, Positional, Values, load
from changefeed.config import (
    ENV_PREFIX,
    Option,
    from_environment,
    from_toml,
    hint,
    make_settings,
    merge,
    parse_tunable,
    read_toml,
)
from changefeed.errors import BadConfig

CONFIG: Final = Option("config", "a TOML file with the same names as the flags, and a table [settings]", metavar="FILE")
SET: Final = Option(
    "set",
    "a tunable, such as suspect_after=5s; may be repeated (docs/reference/defaults.md lists them)",
    parse=parse_tunable,
    kind="many",
    metavar="NAME=VALUE",
)


_TWINS: Final = (
    "changefeed COMMAND --help tells a command's flags. Each flag has a twin in the environment: --retention-age is "
    "CHANGEFEED_RETENTION_AGE, --server is CHANGEFEED_URL."
)
_STATUSES: Final = (
    "exit status: 0 done; 1 something failed; 2 usage; 3 cannot resume; 4 unreachable or timed out; 5 not allowed; "
    "70 `serve` could not end by itself; 130 Ctrl-C"
)


class Help(Exception):
    """Help was asked for: the text."""


def options_of(command: Command) -> tuple[Option, ...]:
    """Everything that the command takes, with what comes from a configuration file where it reads one."""
    extra = (CONFIG, SET) if command.config else ()
    return (*command.options, *extra, *command.all_options[len(command.options) :])


def every_variable() -> set[str]:
    """The environment variables of all commands."""
    commands = [load(name) for name in TABLE]
    places = {place.variable for command in commands for place in command.positionals}
    return places | {option.variable for command in commands for option in options_of(command)}


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Command, Values]:
    """The command that argv names, and its values: flags before environment before TOML before defaults."""
    name, rest = _command_name(argv)
    command = load(name)
    options = options_of(command)
    flags, words = _split(command, options, rest)
    # Importing every command only to know its variables is for who sets one that this command does not read.
    own = {option.variable for option in options} | {place.variable for place in command.positionals}
    others = any(key.startswith(ENV_PREFIX) and key not in own for key in environ)
    env, env_tuned = from_environment(options, environ, every_variable() if others else own)
    toml: dict[str, Any] = {}
    toml_tuned: dict[str, float | int] = {}
    if command.config and (path := flags.get("config") or env.get("config")):
        # Positionals have their key in the file too: feeds = ["vmapi"].
        places = tuple(Option(place.name, place.help, kind="many") for place in command.positionals)
        toml, toml_tuned = from_toml((*options, *places), read_toml(path), path)
    # Words before environment before file, like flags.
    instead = {
        place.name: environ[place.variable].split() if place.variable in environ else toml.get(place.name, [])
        for place in command.positionals
    }
    values = Values(**merge(options, flags, env, toml), **_positionals(command, words, instead))
    values.given = frozenset({*flags, *env, *toml})
    if command.config:
        values.settings = make_settings(dict(values.set), env_tuned, toml_tuned)
    else:
        values.settings = make_settings(env_tuned)
    return command, values


def _command_name(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    if not argv or (argv[0] in ("-h", "--help", "help") and len(argv) == 1):
        raise Help(overview())
    if argv[0] == "help":
        return _command_name([*argv[1:], "--help"])
    if argv[0] == "--version":
        raise Help(f"changefeed {version()}")
    if argv[0].startswith("-"):
        raise BadConfig(f"the command comes first; {argv[0]!r} is none (changefeed --help lists them)")
    if argv[0] in TABLE:
        return argv[0], argv[1:]
    begun = [name for name in TABLE if name.startswith(argv[0] + " ")]
    if not begun:
        words = {name.split()[0] for name in TABLE}
        raise BadConfig(f"there is no command {argv[0]!r}{hint(argv[0], words)} (changefeed --help lists them)")
    pair = " ".join(argv[:2])
    if pair in TABLE:
        return pair, argv[2:]
    if len(argv) > 1 and argv[1] in ("-h", "--help"):
        raise Help("\n".join(f"  changefeed {name:<14} {TABLE[name][1]}" for name in begun))
    second = argv[1] if len(argv) > 1 else ""
    what = f"there is no command {pair!r}" if second else f"{argv[0]!r} alone does nothing"
    raise BadConfig(f"{what}{hint(second, [name.split()[1] for name in begun])}; there are: {', '.join(begun)}")


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("changefeed")
    except PackageNotFoundError:
        return "(not installed)"


def _split(command: Command, options: Sequence[Option], argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(values of the flags that are present, the other words)."""
    by_flag = {f"--{option.name}": option for option in options}
    by_flag |= {f"-{option.short}": option for option in options if option.short}
    flags: dict[str, Any] = {}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        if word in ("-h", "--help"):
            raise Help(usage(command))
        flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = by_flag.get(flag)
        if option is None:
            raise BadConfig(
                f"changefeed {command.name} has no flag {flag}{hint(flag, [f for f in by_flag if f.startswith('--')])}"
            )
        if option.kind == "flag":
            if equals:
                raise BadConfig(f"{flag} takes no value; leave out {'=' + value!r}")
            flags[option.key] = True
            continue
        if not equals:
            if not rest:
                raise BadConfig(f"{flag} needs a value: {flag} {option.metavar or 'VALUE'}")
            value = rest.pop(0)
        parsed = option.value(value, flag)
        if option.kind == "many":
            flags.setdefault(option.key, []).append(parsed)
        else:
            flags[option.key] = parsed
    return flags, words


def _positionals(command: Command, words: list[str], instead: Mapping[str, list[str]]) -> dict[str, Any]:
    """The words by their places; `instead` stands in for those that are missing."""
    values: dict[str, Any] = {}
    left = list(words)
    for place in command.positionals:
        if place.nargs in ("*", "+"):
            values[place.name] = found = left or instead[place.name]
            left = []
        else:
            found = [left.pop(0)] if left else instead[place.name][:1]
            values[place.name] = found[0] if found else None
        if not found and place.nargs in ("1", "+"):
            raise BadConfig(f"{place.name.upper()} is missing; {_synopsis(command)}")
    if left:
        raise BadConfig(f"{left[0]!r} is one word too many; {_synopsis(command)}")
    return values


def _synopsis(command: Command) -> str:
    return f"write: changefeed {command.name} {_places(command.positionals)}".rstrip()


def _places(positionals: Sequence[Positional]) -> str:
    forms = {"1": "{}", "?": "[{}]", "*": "[{}…]", "+": "{}…"}
    return " ".join(forms[place.nargs].format(place.name.upper()) for place in positionals)


def _wrap(text: str, indent: int, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _width() -> int:
    return max(40, min(shutil.get_terminal_size().columns, 100))


def overview() -> str:
    """What `changefeed --help` prints."""
    width = _width()
    lines = ["changefeed: several publishers, one elected leader, resumable subscribers; nothing lost, nothing twice."]
    lines = [_wrap(lines[0], 0, width), "", "usage: changefeed COMMAND [FLAGS]", ""]
    for name, (_, summary) in TABLE.items():
        lines += textwrap.wrap(summary, width, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16)
    for paragraph in (_TWINS, _STATUSES):
        lines += ["", _wrap(paragraph, 0, width)]
    return "\n".join(lines)


def usage(command: Command) -> str:
    """What `changefeed COMMAND --help` prints."""
    width = _width()
    lines = [f"usage: changefeed {command.name} {_places(command.positionals)} [FLAGS]".replace("  ", " "), ""]
    lines.append(_wrap(TABLE[command.name][1].capitalize() + ".", 0, width))
    if command.about:
        lines += ["", *(_wrap(paragraph, 0, width) for paragraph in command.about.split("\n"))]
    if command.positionals:
        lines.append("")
    for place in command.positionals:
        lines += [f"  {place.name.upper()}", _wrap(place.help, 6, width)]
    lines.append("")
    for option in options_of(command):
        form = f"--{option.name}"
        if option.kind != "flag":
            form += f" {'|'.join(option.choices) or option.metavar or 'VALUE'}"
        if option.short:
            form = f"-{option.short}, {form}"
        lines += [f"  {form}   ({option.variable})", _wrap(option.help, 6, width)]
    return "\n".join(lines)
