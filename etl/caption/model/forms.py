"""What a directory or repository holds where it holds no model as transformers has them: told by its files, without
torch.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from etl.caption.model.repository_code import MODEL_OF_TODAY
from etl.text import clean


def other_form(name: str, folder: Path) -> str:
    """Return in a line what a model is that lacks its configuration or its weights, and what to do; empty where its
    files do not tell.
    """
    if (path := folder / "adapter_config.json").is_file():
        base: Any = None
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            base = json.loads(path.read_bytes()).get("base_model_name_or_path")
        return (
            f"{name} is an adapter (LoRA) for {clean(str(base or 'another model'), 200)}, not a model; merge it into "
            "that (merge_and_unload of peft) and give the directory of the result"
        )
    if any(folder.glob("*.gguf")) or "gguf" in name.lower():
        return (
            f"{name} is in llama.cpp's form (GGUF); use the repository that it was made from, or let llama-server "
            "serve it and use --backend openai"
        )
    if (folder / "model_index.json").is_file():
        return f"{name} draws pictures (diffusers) and does not describe them; use {MODEL_OF_TODAY}"
    inside = sorted(
        path.parent for pattern in ("*/config.json", "snapshots/*/config.json") for path in folder.glob(pattern)
    )
    if inside:
        return f"{name} is no model itself; did you mean {clean(str(inside[0]), 300)}?"
    return ""
