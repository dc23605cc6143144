"""The rules of the tree, as tests: what is pure stays pure, stages stay apart, nothing grows without bound.

docs/internals/architecture.md says why. Everything here reads source text only; nothing of ours is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "changefeed"

#: A pure module decides and does nothing else: no clock, no chance, no I/O, no tasks, no log lines.
IMPURE = {
    "asyncio", "concurrent", "datetime", "kazoo", "logging", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "signal", "socket", "sqlite3", "ssl", "subprocess", "threading", "time", "trio",
    "trio_websocket", "uuid",
}  # fmt: skip
#: Values, bytes and tunables that everybody uses.
PURE_MODULES = {
    "change.py",
    "errors/__init__.py",
    "errors/log.py",
    "errors/root.py",
    "batch.py",
    "settings.py",
    "declared.py",
}
#: What a pure module of a stage may import of ours, beside other pure modules of its own stage.
PURE_IMPORTS = {"changefeed.change", "changefeed.errors", "changefeed.batch", "changefeed.settings", "changefeed.wire"}
#: Contracts are values and protocols: pure modules may use what stands in their __init__.py, not their implementations.
CONTRACTS = {"changefeed.log", "changefeed.coordination"}

#: The stages of an event's way, and who leads. None knows the inside of another: instance.py hands each what it needs.
STAGES = ("publisher", "peer", "leader", "serving", "subscriber", "election")
#: Module of a stage -> module inside another stage that it may know, each with its reason.
SEAMS = {
    "peer": {"changefeed.serving.window"},  # a link puts the leader's entries into the window that sessions read
}
#: Whoever is above the stages and wires them together.
ABOVE = {"instance", "cli", "conformance", "demo", "testing"}

LINES_OF_A_MODULE = 600
#: A test file may list more cases than a reader of the product should have to hold.
LINES_OF_A_TEST_FILE = 800
LINES_OF_A_FUNCTION = 70


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, typing_too: bool = False) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, with its line; `from a import b` counts as a and as a.b."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                skipped.update(child for part in node.body for child in ast.walk(part))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: write the whole name"
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def called_pure(package: Path) -> set[str]:
    """Files that the package's docstring calls pure: a paragraph "name.py  … (pure)", or "Pure:" for all of them."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    if re.search(r"\bPure:", text):
        return {path.name for path in package.glob("*.py")}
    paragraphs = re.split(r"^\s*(?=\w+\.py\s)", text, flags=re.MULTILINE)[1:]
    return {paragraph.split()[0] for paragraph in paragraphs if "(pure)" in paragraph}


def of_a_contract(module: str) -> bool:
    """A contract itself, or a name in it that is not a module beside it."""
    parent, _, name = module.rpartition(".")
    beside = ROOT / parent.replace(".", "/") / f"{name}.py"
    return module in CONTRACTS or (parent in CONTRACTS and not beside.exists())


def pure_modules() -> list[Path]:
    found = {PACKAGE / name for name in PURE_MODULES} | set(PACKAGE.rglob("machine.py"))
    for package in [PACKAGE, *(path for path in PACKAGE.iterdir() if (path / "__init__.py").exists())]:
        found.update(package / name for name in called_pure(package))
    return sorted(path for path in found if path.exists())


@pytest.mark.parametrize("path", pure_modules(), ids=name_of)
def test_pure_modules_import_no_clock_no_chance_no_io(path: Path) -> None:
    """A module that decides imports nothing with which it could do something."""
    stage = name_of(path).rpartition(".")[0]
    pure_here = {name_of(other) for other in pure_modules()}
    for module, line in imports_of(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert module.split(".")[0] not in IMPURE, f"{where}, but it is pure"
        if module.startswith("changefeed."):
            allowed = any(module == name or module.startswith(name + ".") for name in PURE_IMPORTS | pure_here)
            assert allowed or module == stage or of_a_contract(module), f"{where}, which is not known to be pure"


def test_the_docstrings_name_pure_modules() -> None:
    """The reading of package docstrings finds what they say, so that the test above is not empty."""
    assert "machine.py" in called_pure(PACKAGE / "publisher")
    assert {"window.py", "filters.py", "machine.py"} <= called_pure(PACKAGE / "serving")
    assert "driver.py" not in called_pure(PACKAGE / "serving")
    assert "messages.py" in called_pure(PACKAGE / "wire")


@pytest.mark.parametrize(
    ("module", "home"), [("kazoo", "coordination/zookeeper.py"), ("trio_websocket", "transport/websocket.py")]
)
def test_little_kept_libraries_live_in_one_module(module: str, home: str) -> None:
    """Replacing kazoo or trio-websocket is a change of one module."""
    users = {
        str(path.relative_to(PACKAGE))
        for path in sources("changefeed")
        if any(name.split(".")[0] == module for name, _ in imports_of(path, typing_too=True))
    }
    assert users <= {home}


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_knows_the_inside_of_another(stage: str) -> None:
    """A stage imports other stages' contracts (their package) at most, never their modules, and nothing above it."""
    for path in sorted((PACKAGE / stage).glob("*.py")):
        for module, line in imports_of(path, typing_too=True):
            parts = module.split(".")
            if parts[0] != "changefeed" or len(parts) < 2:
                continue
            where = f"{path.relative_to(ROOT)}:{line} imports {module}"
            assert parts[1] not in ABOVE, f"{where}: a stage knows nothing above it"
            if parts[1] in STAGES and parts[1] != stage and len(parts) > 2 and is_module(module):
                assert module in SEAMS.get(stage, ()), f"{where}: stages meet in contracts, instance.py wires them"


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_the_bottom_knows_nothing_of_the_stages() -> None:
    """Logs, coordinators, transports and messages serve the stages and import none of them."""
    for folder in ("log", "coordination", "transport", "wire"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            for module, line in imports_of(path, typing_too=True):
                parts = module.split(".")
                if parts[0] == "changefeed" and len(parts) > 1:
                    assert parts[1] not in {*STAGES, *ABOVE}, f"{path.relative_to(ROOT)}:{line} imports {module}"


def test_the_verdict_imports_only_the_standard_library() -> None:
    """The judge of the demo shares no code with what it judges."""
    import sys

    for module, line in imports_of(PACKAGE / "demo" / "verdict.py", typing_too=True):
        top = module.split(".")[0]
        assert top in sys.stdlib_module_names or top == "__future__", f"verdict.py:{line} imports {module}"


@pytest.mark.parametrize("path", sources("changefeed", "cmd", "simulations", "tests"), ids=name_of)
def test_modules_and_functions_stay_readable(path: Path) -> None:
    """No module above 600 lines; no function body above 70 (its docstring does not count)."""
    text = path.read_text()
    limit = LINES_OF_A_TEST_FILE if path.is_relative_to(ROOT / "tests") else LINES_OF_A_MODULE
    assert text.count("\n") <= limit, f"{path.relative_to(ROOT)} is too long: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            told = ast.get_docstring(node, clean=False)
            length = (node.end_lineno or 0) - node.lineno + 1 - (told.count("\n") + 1 if told else 0)
            assert length <= LINES_OF_A_FUNCTION, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"


@pytest.mark.parametrize("path", sources("changefeed"), ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """Each module begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"


def test_cmd_and_tests_are_no_packages() -> None:
    """cmd/__init__.py would shadow the standard library's cmd (and break pdb); tests are imported by path."""
    assert not (ROOT / "cmd" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "two test files share a name"


def test_cmd_holds_launchers_only() -> None:
    """What is in cmd/ only starts something, and is not called like a module of the standard library."""
    import sys

    programs = sorted((ROOT / "cmd").glob("*.py"))
    assert programs
    for path in programs:
        assert path.stem not in sys.stdlib_module_names
        assert len(path.read_text().splitlines()) <= 10


def test_nothing_is_left_for_later() -> None:
    """What is not done is an issue, not a remark in the code."""
    mark = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")))
    for path in [*sources("changefeed", "cmd", "simulations", "tests"), *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not mark.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_only_the_fixed_top_level() -> None:
    """The top level of the tree is fixed by the design."""
    import subprocess

    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the tree is not known")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0] for line in listed.splitlines()} <= {
        "changefeed", "cmd", "tests", "simulations", "docs", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md",
        "Makefile", ".ci", ".gitignore",
    }  # fmt: skip
