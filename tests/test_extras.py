"""What is named to be installed, and the command for it, wherever the program was installed from."""

import importlib.metadata
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from etl import extras
from etl.caption.backends import backend
from etl.errors import ModelError
from etl.extras import install_extra, installer, require_model_libraries
from etl.settings import Settings


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an environment of its own, made by nobody yet, that the program seems to run in."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "python"))
    monkeypatch.setenv("PATH", "/bin")
    return tmp_path


def test_the_command_fits_the_environment(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip by its short name where that is this environment's, else by Python's path; uv's and pipx's ways in theirs."""
    python = shlex.quote(sys.executable)
    assert installer() == f"{python} -m pip install"
    pip = Path(sys.executable).parent / "pip"
    pip.parent.mkdir()
    pip.touch(0o755)
    monkeypatch.setenv("PATH", str(pip.parent))
    assert installer() == "pip install"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    assert installer() == f"uv pip install --python {python}"
    (prefix / "pipx_metadata.json").touch()
    assert installer() == "pipx runpip caption-etl install"


def test_an_extra_is_named_by_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No distribution of this name is on an index, so its packages are named, with the versions that it takes."""
    monkeypatch.setattr(extras, "installer", lambda: "pip install")
    assert install_extra("metrics") == "pip install 'prometheus-client<1,>=0.21'"
    assert install_extra("web").startswith("pip install 'textual-serve<2")


def test_what_captioning_lacks_is_named_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A light installation says in one line what captioning needs and how to get it; a whole one says nothing."""
    require_model_libraries()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name in ("torch", "huggingface_hub") else find(name)
    )
    with pytest.raises(ModelError, match="packages that are not installed: torch, huggingface_hub; all else") as caught:
        require_model_libraries()
    assert "pip install 'huggingface_hub<3,>=2' 'torch<3,>=2.11', or" in caught.value.cure

    def nothing(_name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    with pytest.raises(ModelError) as caught:
        require_model_libraries()
    assert "`pip install .` where its files are" in caught.value.cure


def test_a_backend_that_lacks_its_libraries_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A light installation that is to start a vLLM ends with what is missing, not with a failed import."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("etl.caption.vllm.captioner", "etl.caption.model.checkpoint"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ModelError, match="needs packages that are not installed: huggingface_hub"):
        backend(Settings(backend="vllm"))
