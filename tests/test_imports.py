"""What is not imported: commands that only look must not pay for the model, and the pipeline knows no dashboard."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import etl

HEAVY = ("torch", "transformers", "httpx2", "numpy", "textual", "sqlite_utils", "PIL", "jinja2", "huggingface_hub")

LAYERS = 9
"""How many there may be: more could not be kept in mind."""

WATCHED = """
import atexit, json, os, sys
watched = os.environ["WATCHED"].split(",")
atexit.register(lambda: print(json.dumps([n for n in watched if n in sys.modules]), file=sys.stderr))
sys.argv = ["etl", *sys.argv[1:]]
from etl.cli.app import main
main()
"""


def imported(*arguments: str, cwd: Path, code: int = 0) -> list[str]:
    """Run the program and return which of the watched modules it had imported at its end."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ETL_")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        cwd=cwd, env=variables | {"WATCHED": ",".join((*HEAVY, "tui"))}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    found = json.loads(done.stderr.splitlines()[-1])
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a state of one record."""
    folder = tmp_path_factory.mktemp("looked-at")
    (folder / "manifest.jsonl").write_text('{"id":"a","url":"http://archive.example/a.jpg"}\n')
    found = imported("ingest", "manifest.jsonl", cwd=folder)
    assert not {"torch", "transformers", "httpx2", "numpy", "textual", "PIL", "tui"} & set(found)
    assert "sqlite_utils" in found, "the probe sees what is imported"
    return folder


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_is_light(tmp_path: Path, arguments: list[str]) -> None:
    """Help and version import nothing heavy."""
    assert imported(*arguments, cwd=tmp_path) == []


@pytest.mark.parametrize("command", ["status", "failures", "runs", "why a"])
def test_looking_is_light(state: Path, command: str) -> None:
    """Commands that only look import neither the model's libraries nor those of the writer."""
    assert imported(*command.split(), "--json", cwd=state) == []


def test_export_needs_no_model(state: Path) -> None:
    """Export, which a machine without a GPU does, imports neither model nor network."""
    found = imported("export", "out.jsonl", cwd=state)
    assert not {"torch", "transformers", "httpx2", "numpy", "textual", "tui"} & set(found)


def test_an_estimate_needs_no_network(state: Path) -> None:
    """What a fetch would do is told without an HTTP client, or what opens pictures."""
    assert not {"torch", "httpx2", "numpy", "PIL"} & set(imported("fetch", "--dry-run", cwd=state))


def test_fetch_compiles_no_prompt(tmp_path: Path) -> None:
    """What each picture is asked was settled at ingest: a fetch imports neither templates nor the model's libraries."""
    (tmp_path / "manifest.jsonl").write_text('{"id":"a","path":"missing.jpg"}\n')
    assert "jinja2" in imported("ingest", "manifest.jsonl", cwd=tmp_path)
    assert not {"torch", "transformers", "jinja2", "textual"} & set(imported("fetch", cwd=tmp_path, code=3))


def test_no_module_of_the_program_names_the_dashboard() -> None:
    """No module of the pipeline has an import of the dashboard or its library, not even inside a function."""
    found = []
    modules = sorted(Path(etl.__file__).parent.rglob("*.py"))
    for module in modules:
        for node in ast.walk(ast.parse(module.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{module.name}: {name}" for name in names if name.split(".")[0] in ("tui", "textual")]
    assert (len(modules) > 50, found) == (True, [])


@pytest.mark.soak
def test_the_program_never_imports_the_dashboard(tmp_path: Path) -> None:
    """Nothing that the modules of the pipeline import brings the dashboard or its library."""
    script = (
        "import importlib, pkgutil, sys, etl\n"
        "for module in pkgutil.walk_packages(etl.__path__, 'etl.'): importlib.import_module(module.name)\n"
        "print(*[name for name in ('tui', 'textual') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def contracts() -> list[dict[str, object]]:
    """Return import-linter's contracts."""
    settings = tomllib.loads((Path(etl.__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    found = settings["tool"]["importlinter"]["contracts"]
    assert isinstance(found, list)
    return found


def test_imports_go_round_in_no_circle() -> None:
    """No module imports itself by way of others, not even for type checking or within a function."""
    graph = grimp.build_graph("etl", "tui", cache_dir=None)
    order = TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1][::-1]))


def test_the_layers_are_few() -> None:
    """The house has at most nine storeys, every module stands on one, and the stages know nothing of each other."""
    found = contracts()
    (layers,) = (contract["layers"] for contract in found if contract["type"] == "layers")
    assert isinstance(layers, list)
    assert len(layers) <= LAYERS
    placed = {name.strip() for layer in layers for name in layer.replace(":", "|").split("|")}
    inside = Path(etl.__file__).parent
    there = {path.parent.name for path in inside.glob("*/__init__.py")} | {path.stem for path in inside.glob("*.py")}
    assert {f"etl.{name}" for name in there} - placed == {"etl.__init__"}
    (apart,) = (contract["modules"] for contract in found if contract["type"] == "independence")
    assert {f"etl.{stage}" for stage in ("ingest", "fetch", "caption", "export", "report", "telemetry")} <= set(apart)  # type: ignore[call-overload]


def test_the_backport_has_one_importer() -> None:
    """Only one module names zstd's backport, which is not installed where Python has its own."""
    found = [module.name for module in Path(etl.__file__).parent.rglob("*.py") if b"backports" in module.read_bytes()]
    assert found == ["compression.py"]
