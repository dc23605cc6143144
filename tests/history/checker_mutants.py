"""Mutation testing of the checkers: each place of their code is changed once, and some test must notice.

    python tests/history/checker_mutants.py [--part view] [--show]

A mutant is *killed* if a good history (by hand or made up) is called bad, if a bad one (by hand or by an edit) is no
longer called bad for its promise, or if it crashes. What survives is listed, unless checker_mutants_same.txt has a
reason why it changes nothing that can be seen. Sentences and facts for tools are left alone. All runs in this process.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import importlib
import importlib.util
import random
import signal
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from changefeed.history import broken as broken_module
from changefeed.history import checkers, log, view
from changefeed.testing.histories import MadeUp
from changefeed.testing.history_edits import EDITS, apply

HERE = Path(__file__).parent
Record = dict[str, Any]


@functools.cache
def same() -> list[tuple[str, str, str]]:
    """(part, what was done, a piece of the line) that nobody can see; checker_mutants_same.txt has the reasons."""
    lines = (HERE / "checker_mutants_same.txt").read_text().splitlines()
    found = [tuple(word.strip() for word in line.split(" | ", 2)) for line in lines if not line.startswith("#")]
    return [(part, what, piece) for part, what, piece in found]


# ---- making mutants


COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "bisect_left": "bisect_right",
    "bisect_right": "bisect_left",
}


@dataclass
class Mutant:
    line: int
    what: str
    tree: ast.Module


def variants(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST]]]:
    """What can be done to one node: (name, how the node becomes another)."""
    if isinstance(node, ast.Compare):
        for n, op in enumerate(node.ops):
            for other in COMPARE[type(op)]:
                yield f"{type(op).__name__}->{other.__name__}", _compare(n, other)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__}->{other.__name__}", _set("op", other())
        for n in range(len(node.values)):
            yield f"operand {n} dropped", _drop_operand(n)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", lambda found: found.operand  # type: ignore[attr-defined]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        other = ast.Sub if isinstance(node.op, ast.Add) else ast.Add
        yield f"{type(node.op).__name__}->{other.__name__}", _set("op", other())
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield f"{node.value}->{not node.value}", _set("value", not node.value)
        elif isinstance(node.value, int):
            yield f"{node.value}->{node.value + 1}", _set("value", node.value + 1)
    elif isinstance(node, ast.If | ast.IfExp):
        yield "condition always", _set("test", ast.Constant(True))
        yield "condition never", _set("test", ast.Constant(False))
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield f"{node.id}->{NAMES[node.id]}", _set("id", NAMES[node.id])
    elif isinstance(node, ast.Continue):
        yield "continue dropped", lambda found: ast.Pass()
    elif isinstance(node, ast.Break):
        yield "break dropped", lambda found: ast.Pass()
    elif isinstance(node, ast.Return) and node.value is None:
        yield "return dropped", lambda found: ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call dropped", lambda found: ast.Pass()
    elif isinstance(node, ast.Assign | ast.AugAssign) and not _fresh(node):
        yield "assignment dropped", lambda found: ast.Pass()


def _fresh(node: ast.Assign | ast.AugAssign) -> bool:
    """Names that are bound here for the first time: without it there is only a NameError."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return isinstance(node, ast.Assign) and not any(
        isinstance(target, ast.Attribute | ast.Subscript) for target in targets
    )


def _set(name: str, value: Any) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        setattr(node, name, value)
        return node

    return change


def _compare(place: int, other: type[ast.cmpop]) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Compare)
        node.ops[place] = other()
        return node

    return change


def _drop_operand(place: int) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.BoolOp)
        del node.values[place]
        return node.values[0] if len(node.values) == 1 else node

    return change


def told_only(tree: ast.AST) -> set[int]:
    """Nodes that only word what is said: sentences, their facts, docstrings, names of errors, annotations."""
    skipped: set[int] = set()

    def skip(node: ast.AST) -> None:
        skipped.update(id(child) for child in ast.walk(node))

    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Raise):
            skip(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("found.say", "_say", "_gap", "Findings")):
            for part in (*node.args, *node.keywords):
                skip(part)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
            "about",
            "says",
            "mine",
            "what",
            "where",
            "parts",
        ):
            skip(node)
        elif isinstance(node, ast.AnnAssign):
            skip(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            if node.name in ("_say", "_text", "_bad", "__str__", "figures", "_what"):
                skip(node)
            for part in (*node.args.args, *filter(None, (node.returns,)), *node.decorator_list):
                skip(part)
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.AnnAssign):
                    skip(part)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skip(node)
    return skipped


def mutants(source: str) -> Iterator[Mutant]:
    tree = ast.parse(source)
    skipped = told_only(tree)
    nodes = [n for n, node in enumerate(ast.walk(tree)) if id(node) not in skipped]
    originals = list(ast.walk(tree))
    for n in nodes:
        for what, change in variants(originals[n]):
            made = copy.deepcopy(tree)
            target = list(ast.walk(made))[n]
            _replace(made, target, change)
            yield Mutant(getattr(originals[n], "lineno", 0), what, ast.fix_missing_locations(made))


def _replace(tree: ast.Module, target: ast.AST, change: Callable[[ast.AST], ast.AST]) -> None:
    class Replacer(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return change(node) if node is target else self.generic_visit(node)

    Replacer().visit(tree)


# ---- what must notice


@dataclass
class Bank:
    """Histories with what is known of them. bad: promise -> histories that break it, with a part of what is said.
    exact: histories with all the promises that they break."""

    good: list[list[Record]] = field(default_factory=list)
    bad: dict[str, list[tuple[list[Record], str]]] = field(default_factory=dict)
    exact: list[tuple[list[Record], set[str]]] = field(default_factory=list)


@functools.cache
def load(name: str) -> types.ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"history_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def bank(seeds: int) -> Bank:
    """Histories by hand, and so many made-up ones with all their edits."""
    told = load("conftest").told
    by_hand, corners, more = (load(f"test_checkers_{name}") for name in ("by_hand", "corners", "corners_more"))
    found = Bank()
    for promise, _, good, bad, others in by_hand.TWINS:
        found.good.append(told(good))
        found.bad.setdefault(promise, []).append((told(bad), ""))
        found.exact.append((told(bad), {promise, *others}))
    for promise, _, bad, says in (*corners.BAD, *more.BAD):
        found.bad.setdefault(promise, []).append((told(bad), says))
    for _, text, promises in more.EXACT:
        found.exact.append((told(text), promises))
    for text in (*by_hand.GOOD.values(), *corners.GOOD.values(), *more.GOOD.values()):
        found.good.append(told(text))
    for seed in range(seeds):
        history = MadeUp(random.Random(seed), steps=40, restores=seed % 3 == 0).history()
        found.good.append(history)
        for name, (promise, _) in EDITS.items():
            broken = apply(name, history, random.Random(seed))
            if broken is not None:
                found.bad.setdefault(promise, []).append((broken, ""))
    return found


class Killed(Exception):
    pass


def _alarm(*_: Any) -> None:
    raise Killed("it does not end")


def build(module: types.ModuleType, mutant: Mutant) -> types.ModuleType:
    made = types.ModuleType(module.__name__)
    made.__file__ = module.__file__
    # Its dataclasses look themselves up.
    sys.modules[module.__name__], before = made, sys.modules[module.__name__]
    try:
        exec(compile(mutant.tree, str(module.__file__), "exec"), made.__dict__)
    finally:
        sys.modules[module.__name__] = before
    return made


def try_checker(module: types.ModuleType, mutant: Mutant, goods: list[Any], bads: list[Any], exact: list[Any]) -> None:
    """Raises if the mutant of a checker is noticed."""
    made = build(module, mutant)
    check = made.check if hasattr(made, "PROMISE") else _part_of_another(made.check)
    for one, says in bads:
        if not any(says in broken.says for broken in check(one)):
            raise Killed("a bad history is called good")
    for one in goods:
        if check(one):
            raise Killed("a good history is called bad")
    if hasattr(made, "PROMISE"):
        for one, promises in exact:
            if bool(check(one)) != (made.PROMISE in promises):
                raise Killed("a bad history gets another verdict")
    for figure in load("test_checkers_figures").FIGURES.get(module.__name__.removeprefix("changefeed.history."), ()):
        figure(made, load("conftest").told)


def _part_of_another(check: Callable[[Any, Any], None]) -> Callable[[Any], list[Any]]:
    """steady.py says what it finds into its promise's findings."""

    def checked(one: Any) -> list[Any]:
        found = broken_module.Findings("C15")
        check(one, found)
        return found.result()

    return checked


def try_core(module: types.ModuleType, mutant: Mutant, histories: Bank) -> None:
    """Raises if the mutant of view or log is noticed. All checkers run on everything that is broken or not."""
    made = build(module, mutant)
    if module is log:
        made = _rebound_view(made)
    for promise, bads in histories.bad.items():
        for one, says in bads:
            if not any(says in broken.says for broken in checkers.CHECKERS[promise](made.View(enumerate(one)))):
                raise Killed(f"a history that breaks {promise} is called good")
    for one in histories.good:
        seen = made.View(enumerate(one))
        if any(checker(seen) for checker in checkers.CHECKERS.values()):
            raise Killed("a good history is called bad")


def _rebound_view(made_log: types.ModuleType) -> types.ModuleType:
    """The view's module with the mutant's Log."""
    made = types.ModuleType(view.__name__)
    made.__file__ = view.__file__
    before_view, before_log = sys.modules[view.__name__], sys.modules[log.__name__]
    sys.modules[view.__name__], sys.modules[log.__name__] = made, made_log
    try:
        exec(compile(Path(str(view.__file__)).read_text(), str(view.__file__), "exec"), made.__dict__)
    finally:
        sys.modules[view.__name__], sys.modules[log.__name__] = before_view, before_log
    return made


def run(
    parts: list[str], seeds: int = 24, show: Callable[[str], None] = lambda line: None
) -> dict[str, tuple[int, int, int]]:
    """For each part: mutants, killed, explained. What survives unexplained is shown."""
    histories = bank(seeds)
    small = bank(max(2, seeds // 4))
    views = [view.View(enumerate(one)) for one in histories.good]
    exact = [(view.View(enumerate(one)), promises) for one, promises in histories.exact]
    signal.signal(signal.SIGALRM, _alarm)
    results: dict[str, tuple[int, int, int]] = {}
    for part in parts:
        module = importlib.import_module(f"changefeed.history.{part}")
        source = Path(str(module.__file__)).read_text()
        lines = source.splitlines()
        core = module in (log, view)
        promise = getattr(module, "PROMISE", "C15")
        bads = [(view.View(enumerate(one)), says) for one, says in histories.bad.get(promise, ())]
        if not core and not hasattr(module, "PROMISE"):
            bads = [(one, says) for one, says in bads if _part_of_another(module.check)(one)]

        def attempt(
            mutant: Mutant, module: types.ModuleType = module, core: bool = core, bads: list[Any] = bads
        ) -> None:
            if core:
                try_core(module, mutant, small)
            else:
                try_checker(module, mutant, views, bads, exact)

        attempt(Mutant(0, "nothing", ast.parse(source)))  # what is not changed is not noticed
        total = killed = explained = 0
        for mutant in mutants(source):
            total += 1
            signal.alarm(20)
            try:
                attempt(mutant)
            except Exception:
                killed += 1
                continue
            finally:
                signal.alarm(0)
            text = lines[mutant.line - 1].strip()
            name = part.rpartition(".")[2]
            if any(name == one and what in mutant.what and piece in text for one, what, piece in same()):
                explained += 1
            else:
                show(f"{part}:{mutant.line}: [{mutant.what}] {text}")
        results[part] = total, killed, explained
        show(f"{part}: {total} mutants, {killed} killed, {explained} explained")
    return results


PARTS = [f"checkers.{module.__name__.rpartition('.')[2]}" for module in (
    sys.modules[check.__module__] for check in checkers.CHECKERS.values()
)] + ["checkers.steady", "log", "view"]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", help="only this one: checkers.fence, log, view")
    parser.add_argument("--seeds", type=int, default=24)
    options = parser.parse_args()
    results = run(options.part or PARTS, options.seeds, lambda line: print(line, flush=True))
    total, killed, explained = (sum(column) for column in zip(*results.values(), strict=True))
    print(f"{total} mutants, {killed} killed, {explained} explained, {total - killed - explained} survive")
    return 0 if total == killed + explained else 1


if __name__ == "__main__":
    sys.exit(main())
