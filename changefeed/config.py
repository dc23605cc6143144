"""Where a command's values come from: flags before environment (CHANGEFEED_…) before TOML before default.

One list of options describes them all: a flag, its variable and its key in a TOML file are one name in three
spellings (`--retention-age`, `CHANGEFEED_RETENTION_AGE`, `retention-age`). An unknown name is an error that says which
one is nearest. Nothing here reads the environment or a file by itself except `read_toml`.

Tunables (settings.Settings) have no flag each: `--set suspect_after=5s`, `CHANGEFEED_SUSPECT_AFTER=5s`, or a table
`[settings]` in the TOML file. Their names are those of Settings, where `_s` and `_bytes` at the end may be left out:
durations and sizes are written with their units.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from changefeed.errors import BadConfig, BadPosition, BadUrl, ChangefeedError, InvalidName
from changefeed.settings import DEFAULT_PORT, Settings, parse_duration, parse_size

ENV_PREFIX: Final = "CHANGEFEED_"
DATA_DIR: Final = "changefeed-data"
DEFAULT_LOG: Final = f"sqlite:{DATA_DIR}/log"
DEFAULT_COORDINATOR: Final = f"file:{DATA_DIR}/coordinator"
DEFAULT_LISTEN: Final = f"127.0.0.1:{DEFAULT_PORT}"

#: Kubernetes puts these into every pod's environment when a Service is called "changefeed"; they are not ours.
_FOREIGN_ENV: Final = re.compile(r"CHANGEFEED_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)\Z")

#: What fits into 64 bits with a sign: versions, and numbers of events.
COUNT_MAX: Final = 2**63 - 1
_DIGITS: Final = re.compile(r"[0-9]{1,19}\Z")

_TRUE: Final = {"1", "true", "yes", "on"}
_FALSE: Final = {"0", "false", "no", "off", ""}


@dataclass(frozen=True, slots=True)
class Option:
    """One value that a command takes.

    name: the flag without its dashes. parse: text -> value; raises ValueError or a ChangefeedError for a bad one.
    kind: "one" (the last given wins), "many" (may be repeated; in the environment separated by white space, in TOML a
    list) or "flag" (present or not; in the environment 1 or 0, in TOML true or false). short: a one-letter flag.
    env: the variable, where it is not made from the name. choices: the words that are accepted.
    """

    name: str
    help: str
    parse: Callable[[str], Any] = str
    default: Any = None
    kind: Literal["one", "many", "flag"] = "one"
    metavar: str = ""
    short: str = ""
    env: str = ""
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name as a Python attribute."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return self.env or ENV_PREFIX + self.key.upper()

    def value(self, text: str, where: str) -> Any:
        """The parsed value; raises BadConfig, BadUrl, BadPosition or InvalidName that says where the text came from."""
        if self.choices and text not in self.choices:
            raise BadConfig(f"{where}: {text!r} is not one of {', '.join(self.choices)}{hint(text, self.choices)}")
        try:
            return self.parse(text)
        except (BadUrl, BadPosition, InvalidName) as error:
            raise type(error)(f"{where}: {error}") from error
        except ChangefeedError as error:
            raise BadConfig(f"{where}: {error}") from error
        except ValueError as error:
            raise BadConfig(f"{where}: {text!r:.100} is not a value for it; {error}") from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely meant, or None."""
    candidates = sorted(set(known))
    folded = {candidate.lower(): candidate for candidate in reversed(candidates)}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    if found:
        return folded[found[0]]
    begun = [candidate for candidate in candidates if candidate.lower().startswith(name.lower())] if name else []
    return begun[0] if len(begun) == 1 else None


def hint(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    found = nearest(name, known)
    return f"; did you mean {found!r}?" if found else ""


def tunables() -> dict[str, str]:
    """Every accepted spelling of a tunable -> the field of Settings."""
    known: dict[str, str] = {}
    for item in fields(Settings):
        known[item.name] = item.name
        known.setdefault(re.sub(r"_(s|bytes)\Z", "", item.name), item.name)
    return known


def tunable(name: str, value: Any, where: str) -> tuple[str, float | int]:
    """A tunable's field and number; raises BadConfig for an unknown name or an impossible value.

    Text is a duration for fields that end in _s, a size for those about bytes, else a plain number; a number is taken
    as it is (seconds, bytes or a count).
    """
    key = name.strip().replace("-", "_").lower()
    known = tunables()
    if key not in known:
        raise BadConfig(f"{where}: there is no setting {name!r}{hint(key, known)}")
    field = known[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadConfig(f"{where}: {name} takes a number, a duration or a size, not {value!r}")
    whole = isinstance(getattr(Settings(), field), int)
    try:
        if not isinstance(value, str):
            number: float = value
        elif field.endswith("_s"):
            number = parse_duration(value)
        elif "bytes" in field:
            number = parse_size(value)
        else:
            number = float(value)
    except BadConfig as error:
        raise BadConfig(f"{where}: {error}") from error
    except ValueError as error:
        raise BadConfig(f"{where}: {value!r} is not a number for {name}") from error
    if whole and number != int(number):
        raise BadConfig(f"{where}: {name} takes a whole number, not {value!r}")
    return field, int(number) if whole else float(number)


def read_toml(path: str) -> dict[str, Any]:
    """The content of a TOML file; raises BadConfig with the file's name and the fault's place."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from error


def from_environment(
    options: Sequence[Option], environ: Mapping[str, str], known: Iterable[str]
) -> tuple[dict[str, Any], dict[str, float | int]]:
    """(values of these options, tunables) that the environment sets.

    known: the variables of all commands; another one that begins with CHANGEFEED_ and is no tunable raises BadConfig,
    since a mistyped variable would otherwise be a default that nobody asked for.
    """
    by_variable = {option.variable: option for option in options}
    everything = set(known) | set(by_variable)
    values: dict[str, Any] = {}
    tuned: dict[str, float | int] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX):
            continue
        option = by_variable.get(variable)
        name = variable.removeprefix(ENV_PREFIX).lower()
        if option is not None:
            values[option.key] = _from_text(option, environ[variable], variable)
        elif variable in everything or _FOREIGN_ENV.match(variable):
            continue
        elif name in tunables():
            field, number = tunable(name, environ[variable], variable)
            tuned[field] = number
        else:
            names = everything | {ENV_PREFIX + key.upper() for key in tunables()}
            # Who writes the variable as the flag is called means the one that the flag really has.
            twins = {ENV_PREFIX + option.key.upper(): option.variable for option in options}
            near = nearest(variable, names | set(twins))
            meant = f"; did you mean {twins.get(near, near)!r}?" if near else ""
            raise BadConfig(f"the environment sets {variable}, which nothing here reads{meant}")
    return values, tuned


def _from_text(option: Option, text: str, where: str) -> Any:
    if option.kind == "flag":
        word = text.strip().lower()
        if word not in _TRUE | _FALSE:
            raise BadConfig(f"{where}: write 1 or 0, not {text!r}")
        return word in _TRUE
    if option.kind == "many":
        return [option.value(part, where) for part in text.split()]
    return option.value(text, where)


def from_toml(
    options: Sequence[Option], content: Mapping[str, Any], path: str
) -> tuple[dict[str, Any], dict[str, float | int]]:
    """(values of these options, tunables) that a TOML file sets; raises BadConfig for a key that nothing reads."""
    by_key = {option.key: option for option in options}
    values: dict[str, Any] = {}
    tuned: dict[str, float | int] = {}
    for key, value in content.items():
        where = f"{path}: {key}"
        if key == "settings":
            if not isinstance(value, Mapping):
                raise BadConfig(f"{where} must be a table: write [settings] above its keys")
            tuned.update(tunable(name, item, f"{path}: [settings] {name}") for name, item in value.items())
            continue
        option = by_key.get(key.replace("-", "_"))
        if option is None:
            known = [*(option.name for option in options), "settings"]
            raise BadConfig(f"{path}: nothing here reads {key!r}{hint(key, known)}")
        values[option.key] = _from_toml_value(option, value, where)
    return values, tuned


def _from_toml_value(option: Option, value: Any, where: str) -> Any:
    if option.kind == "flag":
        if not isinstance(value, bool):
            raise BadConfig(f"{where}: write true or false, not {value!r}")
        return value
    if option.kind == "many":
        if isinstance(value, str):
            return [option.value(value, where)]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadConfig(f"{where}: write a list of texts")
        return [option.value(item, where) for item in value]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadConfig(f"{where}: write a text or a number, not {value!r}")
    return option.value(str(value), where)


def merge(options: Sequence[Option], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """A value for every option: from the first layer that has it, else its default (a flag's is False)."""
    merged: dict[str, Any] = {}
    for option in options:
        default = False if option.kind == "flag" else [] if option.kind == "many" else option.default
        merged[option.key] = next((layer[option.key] for layer in layers if option.key in layer), default)
    return merged


def make_settings(*layers: Mapping[str, float | int]) -> Settings:
    """Settings from layers of tunables, the first one first; raises BadConfig where they contradict one another."""
    chosen: dict[str, Any] = {}
    for layer in reversed(layers):
        chosen.update(layer)
    return Settings(**chosen)


def parse_tunable(text: str) -> tuple[str, float | int]:
    """`suspect_after=5s` -> ("suspect_after_s", 5.0); raises BadConfig."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BadConfig(f"{text!r} must be NAME=VALUE, such as suspect_after=5s")
    if name.strip().replace("-", "_").lower() not in tunables():
        raise BadConfig(f"there is no setting {name!r}{hint(name, tunables())}")
    return tunable(name, value.strip(), name)


def parse_count(text: str) -> int:
    """A whole number from 1 to COUNT_MAX; raises ValueError."""
    return _whole(text, 1)


def parse_version(text: str) -> int:
    """A whole number from 0 to 2**63 - 1; raises ValueError."""
    return _whole(text, 0)


def _whole(text: str, low: int) -> int:
    number = int(text) if _DIGITS.match(text) else -1
    if not low <= number <= COUNT_MAX:
        raise ValueError(f"write a whole number from {low} to 2**63 - 1")
    return number
