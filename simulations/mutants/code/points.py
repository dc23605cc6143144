"""Where a module is changed, and how. A change is a splice of its text, so that lines keep their numbers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

COMPARED: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
ORDERED: Final = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
COUNTED: Final[dict[type[ast.operator], str]] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "+", ast.Pow: "*",
}  # fmt: skip
SIGNS: Final[dict[type[ast.operator], str]] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Div: "/", ast.Mod: "%", ast.Pow: "**",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One change: `new` instead of source[start:end]. kind: for people. scope: the function or class around it."""

    line: int
    kind: str
    start: int
    end: int
    new: str
    scope: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def shown(self, source: bytes) -> str:
        """ "old -> new" on one line."""
        old = " ".join(source[self.start : self.end].decode().split())
        return f"{old} -> {' '.join(self.new.split())}"


class _Walk(ast.NodeVisitor):
    """Collects points. Annotations, sentences, assertions and what only type checkers read are left alone."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        starts, at = [0], 0
        for line in source.splitlines(keepends=True):
            at += len(line)
            starts.append(at)
        self._starts = starts
        self._scope: list[str] = []
        self.points: list[Point] = []

    def _span(self, node: ast.AST) -> tuple[int, int]:
        place: ast.expr = node  # type: ignore[assignment]
        assert place.end_lineno is not None and place.end_col_offset is not None
        start = self._starts[place.lineno - 1] + place.col_offset
        return start, self._starts[place.end_lineno - 1] + place.end_col_offset

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _add(self, node: ast.AST, kind: str, new: str) -> None:
        start, end = self._span(node)
        line: int = node.lineno  # type: ignore[attr-defined]
        self.points.append(Point(line, kind, start, end, new, ".".join(self._scope)))

    # ---- what is left alone

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in (*node.defaults, *node.kw_defaults):
            if default is not None:
                self.visit(default)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._scope.append(node.name)
        self.visit(node.args)
        self._body(node.body)
        self._scope.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._scope.append(node.name)
        self._body(node.body)
        self._scope.pop()

    def visit_If(self, node: ast.If) -> None:
        if not ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self._condition(node.test)
            self.visit(node.test)
            self._body(node.body)
            self._body(node.orelse)

    def _body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    # ---- conditions

    def _condition(self, test: ast.expr) -> None:
        plain = not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant | ast.NamedExpr)
        if plain:
            self._add(test, "negated", f"(not {self._text(test)})")

    def visit_While(self, node: ast.While) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            # Between the two operands, where nothing but the operator (and brackets) stands.
            start, end = self._span(left)[1], self._span(right)[0]
            between = self._source[start:end].decode()
            sign = _sign(op)
            if between.count(sign) == 1:
                at = start + between.index(sign)
                for new in (COMPARED[type(op)], *([_opposite(op)] if isinstance(op, ORDERED) else [])):
                    self.points.append(Point(node.lineno, "comparison", at, at + len(sign), new, ".".join(self._scope)))
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        parts = [f"({self._text(value)})" for value in node.values]
        self._add(node, f"{word} for {other}", "(" + f" {other} ".join(parts) + ")")
        if len(parts) > 2:
            for index in range(len(parts)):
                rest = [part for n, part in enumerate(parts) if n != index]
                self._add(node, f"one of {len(parts)} left out", "(" + f" {word} ".join(rest) + ")")
        else:
            for part in parts:
                self._add(node, "one of 2 left out", part)
        for value in node.values:
            self.visit(value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add(node, "not removed", f"({self._text(node.operand)})")
            self.visit(node.operand)

    # ---- values

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(
            isinstance(part, ast.JoinedStr | ast.Constant) and _is_text(part) for part in (node.left, node.right)
        )
        sign = SIGNS.get(type(node.op))
        if sign is not None and not texts:
            start, end = self._span(node.left)[1], self._span(node.right)[0]
            between = self._source[start:end].decode()
            if between.count(sign) == 1:
                at = start + between.index(sign)
                new = COUNTED[type(node.op)]
                self.points.append(Point(node.lineno, "arithmetic", at, at + len(sign), new, ".".join(self._scope)))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if value is True or value is False:
            self._add(node, "constant", str(not value))
        elif type(value) is int:
            self._add(node, "constant", str(value + 1))

    # ---- statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call | ast.Await):
            self._add(node, "statement removed", "pass")
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._add(node, "statement removed", "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(node, "statement removed", "pass")
        self.visit(node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._add(node, "statement removed", "pass")

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "statement removed", "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self._add(node, "break for continue", "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(node, "continue for break", "break")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._add(node, "return removed", "pass")
        elif not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._add(node, "returns None", "return None")
            self.visit(node.value)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _sign(op: ast.cmpop) -> str:
    return {
        ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "is",
        ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
    }[type(op)]  # fmt: skip


def _opposite(op: ast.cmpop) -> str:
    return {ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<"}[type(op)]  # type: ignore[index]


def places(source: bytes) -> list[Point]:
    """Every change of a module, in the order of the text; some of them may not compile."""
    walk = _Walk(source)
    walk.visit(ast.parse(source))
    return sorted(walk.points, key=lambda point: (point.start, point.end, point.new))


def points(source: bytes) -> Iterator[Point]:
    """Those that still compile."""
    for point in places(source):
        try:
            compile(point.apply(source), "changed", "exec", dont_inherit=True)
        except SyntaxError:
            continue
        yield point
