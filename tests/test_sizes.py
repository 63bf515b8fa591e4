"""Habits that a linter does not check: how long modules and functions are, and that no error is passed over."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([*ROOT.glob("etl/**/*.py"), *ROOT.glob("tui/**/*.py")])

MODULE_LINES, FUNCTION_LINES = 320, 60

LONG_MODULES = {
    "etl/errors.py": "one tree, read from top to bottom",
    "etl/settings/fields.py": "one table, a field for each setting",
}
"""Longer modules, and why."""

LONG_FUNCTIONS = {
    "etl/maintenance/verify.py:verify": "its summary names sixteen figures, one on each line",
}
"""Longer functions, and why."""


@cache
def tree(module: Path) -> ast.Module:
    """Return the module's syntax tree."""
    return ast.parse(module.read_bytes())


def name_of(module: Path) -> str:
    """Return the module's path in the repository."""
    return module.relative_to(ROOT).as_posix()


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a module, methods and inner ones too."""
    return (node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, without its decorators."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def silent(handler: ast.ExceptHandler) -> bool:
    """Return whether a handler catches everything and does nothing."""
    caught = handler.type
    broad = caught is None or (isinstance(caught, ast.Name) and caught.id in ("Exception", "BaseException"))
    nothing = all(
        isinstance(step, ast.Pass) or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
        for step in handler.body
    )
    return broad and nothing


def test_modules_are_short() -> None:
    """No module of the product is longer than the limit but those that are named, which are."""
    long = {name_of(module) for module in PRODUCT if len(module.read_bytes().splitlines()) > MODULE_LINES}
    assert (len(PRODUCT) > 200, long) == (True, set(LONG_MODULES))


def test_functions_are_short() -> None:
    """No function of the product is longer than the limit but those that are named, which are."""
    long = {
        f"{name_of(module)}:{node.name}"
        for module in PRODUCT for node in functions(module) if length(node) > FUNCTION_LINES
    }  # fmt: skip
    assert long == set(LONG_FUNCTIONS)


def test_no_error_is_passed_over() -> None:
    """No handler catches everything and does nothing."""
    found = [
        f"{name_of(module)}:{node.lineno}"
        for module in PRODUCT for node in ast.walk(tree(module))
        if isinstance(node, ast.ExceptHandler) and silent(node)
    ]  # fmt: skip
    assert found == []


@pytest.mark.parametrize("body", ["pass", "...", "'no matter'"])
def test_a_silent_handler_is_found(body: str) -> None:
    """The rule above sees what it is about, and leaves narrow handlers and those that act."""
    for line, bad in (("except Exception:", True), ("except:", True), ("except OSError:", False)):
        (handler,) = (
            node for node in ast.walk(ast.parse(f"try: f()\n{line} {body}")) if isinstance(node, ast.ExceptHandler)
        )
        assert silent(handler) is bad
