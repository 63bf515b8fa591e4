"""The benchmarks' commands, as the documentation gives them."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_documented_command_is_there() -> None:
    """Each ``python -m benchmarks...`` of documentation, Makefile or benchmarks is a module, or a package that runs."""
    texts = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.*")]
    said = [path.read_text(encoding="utf-8") for path in texts if path.suffix in ("", ".md", ".py")]
    names = set(re.findall(r"-m (benchmarks[.\w]+)", "\n".join(said)))
    assert len(names) > 12
    for name in names:
        found = importlib.util.find_spec(name)
        assert found is not None, name
        if found.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{name}.__main__"), name
