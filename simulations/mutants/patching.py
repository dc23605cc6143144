"""Replacements of source text, applied while a module is imported: nothing on disk changes, and no product code knows.

Only in a process that has not imported the module yet: `install` refuses anything else.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


class DoesNotApply(Exception):
    """A replacement's old text is not in the present source exactly once."""


@dataclass(frozen=True, slots=True)
class Patch:
    """In a module, `new` instead of `old`. Both are whole pieces of text as they stand, indentation included."""

    module: str
    old: str
    new: str

    @property
    def path(self) -> Path:
        """The module's file. Raises DoesNotApply if there is none."""
        base = ROOT.joinpath(*self.module.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path
        raise DoesNotApply(f"there is no module {self.module}: it was moved, and this mutant with it nowhere")


def mutated(source: str, patches: Iterable[Patch]) -> str:
    """The source with every replacement made. Raises DoesNotApply; the places are found in the source as it was, so
    that no replacement can hit the text of another one."""
    places: list[tuple[int, Patch]] = []
    for patch in patches:
        count = source.count(patch.old)
        if count != 1:
            raise DoesNotApply(
                f"{patch.module}: found {count} times instead of once: {patch.old.strip().splitlines()[0]!r} …; "
                "write the mutant anew for the present source"
            )
        if patch.old == patch.new:
            raise DoesNotApply(f"{patch.module}: nothing changes: {patch.old.strip().splitlines()[0]!r}")
        places.append((source.index(patch.old), patch))
    end = len(source)
    for at, patch in sorted(places, key=lambda place: place[0], reverse=True):
        if at + len(patch.old) > end:
            raise DoesNotApply(f"{patch.module}: two replacements overlap at {patch.old.strip().splitlines()[0]!r}")
        source, end = source[:at] + patch.new + source[at + len(patch.old) :], at
    return source


def by_module(patches: Iterable[Patch]) -> dict[str, list[Patch]]:
    """Patches by module, each once."""
    found: dict[str, list[Patch]] = defaultdict(list)
    for patch in patches:
        if patch not in found[patch.module]:
            found[patch.module].append(patch)
    return dict(found)


def check(patches: Iterable[Patch]) -> None:
    """Raise DoesNotApply, or SyntaxError, unless every patch applies and what comes of it compiles."""
    for module, some in by_module(patches).items():
        path = some[0].path
        compile(mutated(path.read_text(), some), f"{path} ({module}, mutated)", "exec", dont_inherit=True)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the mutated text of a file; caches nothing."""

    def __init__(self, fullname: str, path: str, patches: Sequence[Patch]) -> None:
        super().__init__(fullname, path)
        self._patches = patches

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text()
        return compile(mutated(source, self._patches), self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, patches: dict[str, list[Patch]]) -> None:
        self._patches = patches
        self.applied: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        patches = self._patches.get(fullname)
        if patches is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise DoesNotApply(f"the module {fullname} is not found as a file")
        spec.loader = _Loader(fullname, spec.origin, patches)
        self.applied.add(fullname)
        return spec


def install(patches: Iterable[Patch]) -> _Finder:
    """From now on these modules are imported as mutated. Raises DoesNotApply, also if one is imported already."""
    wanted = by_module(patches)
    loaded = sorted(name for name in wanted if name in sys.modules)
    if loaded:
        raise DoesNotApply(f"imported before it could be mutated: {', '.join(loaded)}; use a fresh process")
    for some in wanted.values():
        check(some)
    finder = _Finder(wanted)
    sys.meta_path.insert(0, finder)
    return finder
