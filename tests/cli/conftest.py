"""Ways to run the program, and a state that a whole run has left."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState
from support.run_here import run_here
from support.zygote import Zygote

from etl.cli.app import main
from etl.demo.scenes import random_scene

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME")


@dataclass(frozen=True)
class Answer:
    """What one call of the program gave."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Return the one object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Etl = Callable[..., Answer]


def environment(**variables: str) -> dict[str, str]:
    """Return a clean environment for a subprocess: no proxies, no settings of the user's."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    settled = {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1", "ETL_MIN_FREE": "0", "OMP_NUM_THREADS": "1"}
    return kept | settled | variables


def run_process(*arguments: str | Path, cwd: Path, **variables: str) -> Answer:
    """Run the program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "etl.cli.app", *map(str, arguments)],
        cwd=cwd, env=environment(**variables), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty directory, without the user's settings and proxies."""
    for name in list(os.environ):
        if name.startswith("ETL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def etl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Etl:
    """Return a function that runs the program inside this process, through the same `main`."""

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["etl", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        assert isinstance(code, int)
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def process(tmp_path: Path) -> Etl:
    """Return a function that runs the program in a process of its own; keywords are environment variables."""

    def run(*arguments: str | Path, **variables: str) -> Answer:
        return run_process(*arguments, cwd=tmp_path, **variables)

    return run


@pytest.fixture
def made(tmp_path: Path) -> MadeState:
    """Return a state in ``state`` below the working directory."""
    return MadeState(tmp_path)


@dataclass(frozen=True)
class FinishedRun:
    """What ``etl run`` left: five good pictures, a broken one, a missing one, and a line that is no JSON."""

    folder: Path
    answer: Answer


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> FinishedRun:
    """Run the whole program once, inside this process and in forks: others would import torch for it."""
    folder = tmp_path_factory.mktemp("finished")
    rng = random.Random(5)
    for number in range(5):
        random_scene(rng).draw(224, 224).save(folder / f"{number}.jpg")
    (folder / "5.jpg").write_bytes(b"<html>no picture")
    records = [{"id": f"k{number}", "path": f"{number}.jpg", "description_source": "synthetic"} for number in range(7)]
    records.append({"id": "k7", "path": "7.jpg", "description_source": "original"})
    lines = "".join(json.dumps(record) + "\n" for record in records) + "not json\n"
    (folder / "manifest.jsonl").write_text(lines, encoding="utf-8")
    arguments = ("run", "--input", "manifest.jsonl", "--output", "out.jsonl", "--model", "demo", "--decoders", "1")
    with pytest.MonkeyPatch.context() as patch, zygote.children():
        for name, value in environment().items():
            patch.setenv(name, value)
        patch.chdir(folder)
        return FinishedRun(folder, Answer(*run_here(*arguments, "--device", "cpu", "--json")))


@pytest.fixture
def finished(finished_once: FinishedRun, tmp_path: Path) -> FinishedRun:
    """Return a copy of the finished run in the working directory, for this test alone."""
    shutil.copytree(finished_once.folder, tmp_path, dirs_exist_ok=True)
    return FinishedRun(tmp_path, finished_once.answer)
