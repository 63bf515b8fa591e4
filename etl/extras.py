"""What is installed only where somebody wants it, and the command that installs it here."""

import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etl.errors import ConfigError, ModelError

DISTRIBUTION = "caption-etl"

MODEL_LIBRARIES = ("torch", "transformers", "accelerate", "huggingface_hub", "safetensors", "tokenizers")
"""What captions on this machine, and almost all of an installation's size; nothing else needs them."""


def installer() -> str:
    """Return the command that adds packages to the environment that this program runs in, but for their names."""
    if (Path(sys.prefix) / "pipx_metadata.json").exists():
        return f"pipx runpip {DISTRIBUTION} install"
    python = shlex.quote(sys.executable)
    if importlib.util.find_spec("pip") is None:
        # As uv makes environments.
        return f"uv pip install --python {python}"
    found = shutil.which("pip")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "pip install"
    return f"{python} -m pip install"


def install_extra(extra: str) -> str:
    """Return the command that installs what an extra of this program consists of.

    The packages themselves are named: the program may have come from a file or a clone, and is on no index.
    """
    return _install(one for one, condition in _requirements() if f"extra=='{extra}'" in condition)


def install_package(name: str) -> str:
    """Return the command that installs one of the packages that the whole program has, and a light one has not."""
    return _install(one for one, condition in _requirements() if _name(one) == name and "extra" not in condition)


def require_model_libraries() -> None:
    """Raise `ModelError` where this is a light installation, which cannot caption."""
    missing = [name for name in MODEL_LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        wanted = {name.replace("_", "-") for name in missing}
        command = _install(one for one, _ in _requirements() if _name(one) in wanted)
        more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        raise ModelError(
            f"captioning on this machine needs packages that are not installed: {', '.join(missing[:2])}{more}; "
            "all else goes without"
        ).with_cure(f"{command}, or let another machine caption: --backend openai")


def pyarrow() -> Any:
    """Return the package ``pyarrow``, its module ``parquet`` loaded; raise `ConfigError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"Parquet needs one more package: {install_extra('parquet')}") from error
    return pyarrow


def _requirements() -> list[tuple[str, str]]:
    """Return each requirement of the program with its condition, the latter without blanks and in single quotes."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        # Run from a directory that nobody installed.
        return []
    halves = (line.partition(";") for line in lines)
    return [(one.strip(), condition.replace(" ", "").replace('"', "'")) for one, _, condition in halves]


def _install(requirements: Iterable[str]) -> str:
    names = [shlex.quote(one) for one in requirements]
    return f"{installer()} {' '.join(names)}" if names else "install the program: `pip install .` where its files are"


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].replace("_", "-").lower()
