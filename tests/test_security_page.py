"""SECURITY.md names only what there is."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)))


def test_every_row_names_a_test() -> None:
    """A threat without a test is a claim."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 4]
    rows = [row for row in rows if not row.startswith("| threat")]
    assert len(rows) > 30
    assert all("::test_" in row for row in rows)


@functools.cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_every_test_that_is_named_exists(file: str, name: str) -> None:
    """Each is a function of the file that the page says."""
    assert name in functions_of(ROOT / file)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:etl|tui)/[\w/]+\.py)`", PAGE))))
def test_every_module_that_is_named_exists(path: str) -> None:
    """Each guard is where the page says."""
    assert (ROOT / path).is_file()
