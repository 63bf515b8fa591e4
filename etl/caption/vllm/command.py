"""Where vLLM is, and with what it is started."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from etl.errors import ConfigError
from etl.settings import Settings
from etl.text import clean

_INSTALL = "python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm, then --vllm ~/vllm"

_SPEED = frozenset({
    "tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "enable-expert-parallel", "max-model-len",
    "max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization", "cpu-offload-gb", "enforce-eager",
})  # fmt: skip
"""Arguments that decide how fast captions are made, and not their words."""


def find_program(vllm: str) -> Path:
    """Return the program that the setting means: itself, that of an environment, or one on PATH.

    Raises `ConfigError` where there is none.
    """
    named = Path(vllm).expanduser()
    if named.name == vllm and not named.is_dir():
        found = shutil.which(vllm)
    else:
        found = shutil.which(named / "bin" / "vllm" if named.is_dir() else named)
    if found is None:
        where = "on PATH" if named.name == vllm else f"at {clean(vllm, 200)}"
        raise ConfigError(f"--backend vllm finds no vLLM {where}").with_cure(
            f"install it in an environment of its own: {_INSTALL}"
        )
    return Path(found).absolute()


def command(settings: Settings, program: Path, name: str, folder: Path) -> list[str]:
    """Return the command that serves the checkpoint in a folder under a name, but for its address.

    Only safetensors are read and no code of the repository is run, as everywhere; and what `generation_config.json`
    says of sampling counts for nothing, as it does for the other engines.
    """
    flags = {
        "served-model-name": name, "load-format": "safetensors", "dtype": settings.dtype,
        "gpu-memory-utilization": f"{settings.gpu_memory_fraction:g}", "max-model-len": "auto",
        "limit-mm-per-prompt": json.dumps({"image": 1, "video": 0, "audio": 0}), "generation-config": "vllm",
    } | arguments(settings)  # fmt: skip
    written = [f"--{flag}={value}" if value else f"--{flag}" for flag, value in flags.items()]
    return [str(program), "serve", str(folder.resolve()), *written]


def arguments(settings: Settings) -> dict[str, str]:
    """Return the user's own arguments by name; empty for one without a value."""
    return {name: value for name, _, value in (one.partition("=") for one in settings.vllm_arg)}


def deciding(settings: Settings) -> dict[str, str]:
    """Return those of the user's arguments that may decide the words, for the recipe."""
    return {f"vllm {name}": value for name, value in arguments(settings).items() if name not in _SPEED}


def environment(settings: Settings, key: str, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that vLLM is started with: ours but for our own settings and keys, and what it must know.

    Its key is a variable because every user of the machine can read a command line.  All files are here, so nobody is
    asked for any; nor is anything reported.
    """
    kept = {name: value for name, value in ours.items() if not name.startswith("ETL_")}
    told = {"VLLM_API_KEY": key, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONSAFEPATH": "1"}
    return kept | told | _visible(settings, ours)


def _visible(settings: Settings, ours: Mapping[str, str]) -> dict[str, str]:
    """Return which GPUs it is to see, where ``device`` or ``gpus`` name some; counted among those that we see."""
    _, _, number = settings.device.partition(":")
    wanted = number or ("" if settings.gpus == "all" else settings.gpus)
    if not wanted:
        return {}
    names = [name.strip() for name in ours.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    numbers = [int(one) for one in wanted.split(",")]
    if names and max(numbers) >= len(names):
        raise ConfigError(f"GPU {max(numbers)} was asked for, but CUDA_VISIBLE_DEVICES shows {len(names)}")
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[one] if names else str(one) for one in numbers)}
