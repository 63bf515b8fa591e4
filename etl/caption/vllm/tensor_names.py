"""Names of weights that vLLM does not know (0.32), and a copy of a checkpoint that has those which it does.

transformers from 5 on saves a CLIP tower in LLaVA, as in the demo's model, as ``vision_tower.embeddings...``; vLLM, as
older checkpoints, calls that ``vision_tower.vision_model.embeddings...``.
"""

import json
import shutil
from pathlib import Path
from typing import Any

_OLD, _NEW = "vision_tower.vision_model.", "vision_tower."
_SIGN = "vision_tower.embeddings."
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "*.safetensors"


def known_to_vllm(folder: Path, spare: Path) -> Path:
    """Return the checkpoint's folder, or ``spare`` once it holds a copy whose names vLLM knows, where that is needed.

    `Checkpoint.with_weights` has looked at its headers.  A copy takes as much room; raises `OSError` without it.
    """
    weights = list(folder.glob(_WEIGHTS))
    if not any(name.startswith(_SIGN) for path in weights for name in _header(path)[0]):
        return folder
    for path in folder.iterdir():
        if path.is_file() and path not in weights:
            shutil.copyfile(path, spare / path.name)
    for path in weights:
        _copy(path, spare / path.name)
    index = spare / _INDEX
    if index.exists():
        listed = json.loads(index.read_bytes())
        listed["weight_map"] = {_renamed(name): file for name, file in listed["weight_map"].items()}
        index.write_text(json.dumps(listed))
    return spare


def _renamed(name: str) -> str:
    return _OLD + name.removeprefix(_NEW) if name.startswith(_NEW) else name


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), length


def _copy(source: Path, target: Path) -> None:
    """Copy weights; only the header, which has its length before it, is another."""
    header, length = _header(source)
    with source.open("rb") as old, target.open("wb") as new:
        old.seek(8 + length)
        text = json.dumps({_renamed(name): entry for name, entry in header.items()}).encode()
        # As the format's own writer does, so that the tensors begin at a multiple of eight.
        text += b" " * (-len(text) % 8)
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, 2**20)
