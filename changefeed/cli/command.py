"""What a command is, and the table of all commands. A command that is not in the table does not exist.

To add one: write its module (a `COMMAND` and a coroutine that runs it) and a line in `TABLE`.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, Literal

from changefeed.config import DEFAULT_LOG, ENV_PREFIX, Option
from changefeed.servers import DEFAULT_SERVER, ENVIRONMENT, parse_servers
from changefeed.settings import parse_duration

if TYPE_CHECKING:
    from changefeed.cli.output import Output

#: name -> (module under changefeed.cli, one line for the list of commands). Two words: `changefeed feed declare`.
TABLE: Final[dict[str, tuple[str, str]]] = {
    "serve": ("serve", "take part in feeds: serve subscribers, accept publishes, lead when elected"),
    "publish": ("publish", "publish one change, or JSON lines from a file or a pipe"),
    "tail": ("tail", "follow a feed: from its beginning, now, a position, a time, or a list of all its objects"),
    "status": ("status", "instances, leaders, heads, subscribers; why the leader changed"),
    "feeds": ("feeds", "the feeds that the servers know"),
    "feed declare": ("feed_declare", "declare a feed's resources and fields"),
    "feed set": ("feed_set", "set a feed's retention, and whether it keeps a snapshot"),
    "log init": ("log_init", "make the tables that a log in PostgreSQL needs"),
    "log upgrade": ("log_upgrade", "bring the tables of a log in PostgreSQL to this release"),
    "log info": ("log_info", "what a log holds, and what an acknowledgement survives there"),
    "capture add": ("capture_add", "make a table of a PostgreSQL database a part of a feed"),
    "capture list": ("capture_list", "the tables that are captured"),
    "capture remove": ("capture_remove", "publish a table's changes no longer"),
    "verify": ("verify", "prove that a feed's log is whole"),
    "dev": ("dev", "a cluster on this machine to try things on; gone with Ctrl-C"),
    "demo": ("demo", "replay a git history through a cluster whose leader is killed, and judge the result"),
    "simulate": ("simulate", "run whole clusters under virtual time with drawn faults, and judge what happened"),
    "conformance": ("conformance", "grade a subscriber written in any language against a scripted server"),
}

JSON: Final = Option("json", "JSON lines, also on a terminal", kind="flag")
VERBOSE: Final = Option("verbose", "log what happens to stderr", kind="flag", short="v")
#: What every command takes.
COMMON: Final = (JSON, VERBOSE)

SERVER: Final = Option(
    "server",
    "instances to use, separated by commas: ws://HOST:PORT, or zk://… for all that take part there; one is enough "
    f"(default {DEFAULT_SERVER})",
    parse=parse_servers,
    default=(DEFAULT_SERVER,),
    metavar="URL[,URL…]",
    short="s",
    env=ENVIRONMENT,
)
TIMEOUT: Final = Option(
    "timeout",
    "give up after so long without an answer (default 10s)",
    parse=parse_duration,
    default=10.0,
    metavar="DURATION",
)
#: For whoever asks all servers at once and waits for the slowest.
ASK_TIMEOUT: Final = replace(TIMEOUT, help="a server that does not answer in time is named (default 3s)", default=3.0)
LOG: Final = Option(
    "log",
    f"the log: sqlite:DIR, postgresql://USER@HOST/DATABASE or memory: (default {DEFAULT_LOG})",
    default=DEFAULT_LOG,
    metavar="URL",
)


class Values(SimpleNamespace):
    """A command's values by name: options and positionals, resolved from flags, environment, TOML and defaults."""


@dataclass(frozen=True, slots=True)
class Positional:
    """A value without a flag. nargs: "1", "?" (may be missing) or "*" / "+" (any number; at least one).

    Where words are missing, its variable stands in: CHANGEFEED_FEED for `feed`.
    """

    name: str
    help: str
    nargs: Literal["1", "?", "*", "+"] = "1"

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what it takes and what it does.

    run: returns the exit status; raises errors of changefeed.errors for everything that fails. own_signals: it
    handles SIGINT and SIGTERM by itself (otherwise they cancel it and the exit status says so). config: it reads a
    TOML file named by --config. level: what it logs to stderr unless --verbose asks for more. about: a paragraph for
    its help.
    """

    name: str
    run: Callable[[Values, Output], Awaitable[int]]
    positionals: tuple[Positional, ...] = ()
    options: tuple[Option, ...] = ()
    about: str = ""
    own_signals: bool = False
    config: bool = False
    level: str = "WARNING"

    @property
    def all_options(self) -> tuple[Option, ...]:
        return (*self.options, *COMMON)


def load(name: str) -> Command:
    """The command of that name; imports its module only now, so that one command does not pay for all."""
    module = importlib.import_module(f"changefeed.cli.{TABLE[name][0]}")
    command: Command = module.COMMAND
    return command
