"""Machines as states: copied, compared, and stepped once for each state and fact, whatever the rest of the world does.

A world that is explored holds numbers instead of machines. A number names a machine's state: two machines whose
attributes say the same have the same number, however they came there. `Cells.do` makes a copy, tells it a fact, and
remembers what came of it; so the production code runs once for each (state, fact), and the search itself only moves
numbers about.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import FunctionType, MethodType
from typing import Any, Final, Generic, TypeVar

M = TypeVar("M")

_ATOMS: Final = frozenset({int, str, bytes, bool, float, type(None)})
_ORDERED: Final = frozenset({tuple, list, deque})
#: What machines say to people, or count for them; nothing is decided by it. By class name.
TALK: Final[Mapping[str, frozenset[str]]] = {
    "PublisherMachine": frozenset({"settings", "last_error", "buffered_bytes"}),
    "SubscriberMachine": frozenset({"settings", "last_error", "advance", "_heard_at", "instance"}),
    "Session": frozenset({"_settings"}),
    "Sequencer": frozenset({"repeated", "refused", "_token"}),
    "Opening": frozenset({"token"}),
    "Election": frozenset({"settings", "events", "leader_since", "_wall_offset"}),
}


def shape(value: Any, talk: Mapping[str, frozenset[str]] = TALK, base: int = 0) -> Hashable:
    """What a value says, as something that can be compared: no identities, no order of sets, no talk.

    base: tokens (keys of dicts `_looking` and `_openings`) count from it.
    """
    return _Shaper(talk, base).of(value)


@cache
def _parts(kind: Any) -> tuple[str, ...] | None:
    """The fields of a value that is compared by them; None for what is compared by identity."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) and _params(kind).eq else None


def _params(kind: Any) -> Any:
    return kind.__dataclass_params__


class _Shaper:
    def __init__(self, talk: Mapping[str, frozenset[str]], base: int) -> None:
        self._talk = talk
        self._base = base
        self._seen: dict[int, int] = {}

    def of(self, value: Any) -> Hashable:
        kind = type(value)
        if kind in _ATOMS:
            return value  # type: ignore[no-any-return]
        if kind in _ORDERED:
            return tuple([self.of(part) for part in value])
        if kind is dict:
            return ("{", *[(self.of(key), self.of(part)) for key, part in value.items()])
        if kind in (set, frozenset):
            return ("<", *sorted([self.of(part) for part in value], key=repr))
        if isinstance(value, BaseException):
            return ("!", kind.__name__, repr(getattr(value, "__dict__", "")))
        if isinstance(value, FunctionType | MethodType | type):
            return ("f", value.__qualname__)
        parts = _parts(kind)  # type: ignore[arg-type]
        if parts is not None:
            return (kind.__name__, *[self.of(getattr(value, name)) for name in parts])
        known = self._seen.get(id(value))
        if known is not None:
            return ("@", known)
        self._seen[id(value)] = len(self._seen)
        return (kind.__name__, *[self._attribute(name, part) for name, part in self._attributes(value)])

    def _attribute(self, name: str, part: Any) -> Hashable:
        if name in ("_looking", "_openings"):
            return (name, *[(key - self._base, self.of(one)) for key, one in part.items()])
        return (name, self.of(part))

    def _attributes(self, value: Any) -> list[tuple[str, Any]]:
        skip = self._talk.get(type(value).__name__, frozenset())
        names = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
        names |= set(getattr(value, "__dict__", ()))
        return [(name, getattr(value, name)) for name in sorted(names - skip) if hasattr(value, name)]


class Values:
    """Values by number, equal ones under the same: messages, entries, facts."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._values: list[Any] = []

    def number(self, value: Any) -> int:
        found = self._numbers.setdefault((type(value).__name__, shape(value)), len(self._values))
        if found == len(self._values):
            self._values.append(value)
        return found

    def __getitem__(self, number: int) -> Any:
        return self._values[number]

    def __len__(self) -> int:
        return len(self._values)


class _Pickler(pickle.Pickler):
    """Shared values stay shared; errors are copied as they are, whatever their constructors ask for."""

    def __init__(self, file: io.BytesIO, shared: Mapping[type, int]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._shared = shared

    def persistent_id(self, value: Any) -> int | None:
        return self._shared.get(type(value))

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return _error, (type(value), value.args, value.__dict__)
        return NotImplemented


def _error(kind: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: tuple[Any, ...]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, number: int) -> Any:
        return self._shared[number]


class Cells(Generic[M]):
    """The states of one kind of machine. shared: values that all of them hold (settings), never copied.

    steps: how often the production code ran.
    """

    def __init__(self, *shared: Any) -> None:
        self._shared = shared
        self._kinds = {type(value): index for index, value in enumerate(shared)}
        self._numbers: dict[Hashable, int] = {}
        self._copies: list[bytes] = []
        self._done: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self.steps = 0

    def add(self, machine: M) -> int:
        """The number of this machine's state."""
        number = self._numbers.setdefault(shape(machine, base=getattr(machine, "_token", 0)), len(self._copies))
        if number == len(self._copies):
            file = io.BytesIO()
            _Pickler(file, self._kinds).dump(machine)
            self._copies.append(file.getvalue())
        return number

    def copy(self, number: int) -> M:
        """A machine in that state; it is the caller's."""
        machine: M = _Unpickler(io.BytesIO(self._copies[number]), self._shared).load()
        return machine

    def do(self, number: int, act: Callable[..., Any], *facts: Hashable) -> tuple[int, Any]:
        """(the state after `act(machine, *facts)`, what that returned). Raises what `act` raises. `act` must depend on
        nothing else, and what it returns must not change."""
        key = (number, act, facts)
        found = self._done.get(key)
        if found is None:
            machine = self.copy(number)
            result = act(machine, *facts)
            self.steps += 1
            found = self._done[key] = (self.add(machine), result)
        return found

    def ask(self, number: int, question: Callable[..., Any], *facts: Hashable) -> Any:
        """What `question(machine, *facts)` says; the state stays as it is."""
        key = (number, question, facts)
        found = self._done.get(key)
        if found is None:
            found = self._done[key] = (number, question(self.copy(number), *facts))
        return found[1]

    def __len__(self) -> int:
        return len(self._copies)
