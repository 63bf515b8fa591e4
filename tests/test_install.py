"""What an installation brings: users what captioning needs, developers their tools, light machines no torch."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from etl.extras import MODEL_LIBRARIES

ROOT = Path(__file__).parents[1]
Make = Callable[[str], str]


def test_a_light_installation_is_the_whole_without_the_model_s_libraries() -> None:
    """light.txt is pyproject.toml without what captioning alone needs, in its order; no-torch.txt has the others."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    lines = (ROOT / "requirements" / "light.txt").read_text("utf-8").splitlines()
    light = [line for line in lines if not line.startswith("#")]
    left_out = {re.split(r"[^\w.-]", line)[0] for line in wanted if line not in light}
    assert left_out == set(MODEL_LIBRARIES)
    assert light == [line for line in wanted if line in light]
    lines = (ROOT / "requirements" / "no-torch.txt").read_text("utf-8").splitlines()
    assert {line.partition(" ;")[0] for line in lines if not line.startswith("#")} == left_out


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return what says which commands make would run in a clean checkout."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def plan(target: str) -> str:
        done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    return plan


def test_make_installs_what_its_target_needs(make: Make, tmp_path: Path) -> None:
    """Users and the demo get no developers' tools, tests do; what is installed is not installed again."""
    for target in ("setup", "demo"):
        assert "--editable .\n" in make(target) and "[dev]" not in make(target)
    for target in ("dev", "test", "lint"):
        assert make(target).count("--editable '.[dev]'\n") == 1
        assert make(target).count("pip install") == 1
    assert "--requirement requirements/light.txt" in make("light") and "--no-deps --editable ." in make("light")
    for name in ("bin/python", ".dev", ".ready"):
        (tmp_path / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv" / name).touch()
    for target in ("setup", "demo", "test"):
        assert "pip install" not in make(target)


def test_the_containers_are_made_of_what_is_there() -> None:
    """Both recipes copy the same files, all of which exist and are let through to the builder."""
    docker, apptainer = ((ROOT / name).read_text("utf-8") for name in ("Dockerfile", "apptainer.def"))
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", docker, re.MULTILINE) for name in line.split()}
    assert copied == set(re.findall(r"^ +(\S+) /src/\1$", apptainer, re.MULTILINE))
    assert copied == set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    assert all((ROOT / name).exists() for name in copied)
    assert 'ENTRYPOINT ["etl"]' in docker and 'exec etl "$@"' in apptainer


def environment(folder: Path) -> dict[str, str]:
    """Return as good as nothing."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as a release does."""
    folder = tmp_path_factory.mktemp("clean")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("etl", "tui"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "build"], cwd=folder, check=True, capture_output=True)
    return next((folder / "dist").glob("*.whl"))


def install(folder: Path, *arguments: str | Path) -> Path:
    """Make an environment with only this in it, and return where its programs are."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip: list[str | Path] = [
        folder / "venv" / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        ROOT / "constraints.txt",
    ]
    subprocess.run([*pip, *arguments], check=True, timeout=1800)
    return folder / "venv" / "bin"


def run(programs: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the program in an empty environment."""
    return subprocess.run(
        [programs / "etl", *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.soak
def test_the_wheel_runs_the_demo_in_an_empty_environment(tmp_path: Path, wheel: Path) -> None:
    """A fresh environment with the wheel and what it asks for, and nothing else, captions the demo's pictures."""
    done = run(install(tmp_path, wheel), tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    assert "25 of 25 captions are right, word for word" in done.stderr


@pytest.mark.soak
def test_a_light_installation_does_all_but_caption(tmp_path: Path, wheel: Path) -> None:
    """Without torch it ingests, fetches, exports, verifies, reports; captioning says in two lines what it lacks."""
    programs = install(tmp_path, "-r", ROOT / "requirements" / "light.txt")
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    size = sum(path.lstat().st_size for path in (tmp_path / "venv").rglob("*"))
    assert size < 150_000_000, size
    shutil.copytree(ROOT / "docs" / "pictures", tmp_path / "pictures")
    for words in ("ingest pictures", "fetch", "status", "export out.jsonl", "verify", "report", "dashboard --help"):
        done = run(programs, tmp_path, *words.split())
        assert done.returncode == 0, (words, done.stderr)
    for words in ("caption", "run --input pictures", "demo"):
        done = run(programs, tmp_path, *words.split())
        said, cure = done.stderr.splitlines()[-2:]
        assert (done.returncode, "not installed: torch, transformers and 4 more" in said) == (2, True), done.stderr
        assert cure.startswith(f"{programs}/python -m pip install 'accelerate<2")
    done = run(programs, tmp_path, "doctor")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert re.search(r"^fail +torch ", done.stdout, re.MULTILINE)
