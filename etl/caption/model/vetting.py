"""What a checkpoint's small files may ask for: refused before any library acts on them, without torch.

The publisher of the weights is trusted with the words of captions, not with this machine.  transformers runs no code
of a repository unless it is told to, but there are other ways from a few lines of JSON to code or to all memory: an
index of weights that names pickles or files elsewhere, attention kernels that are fetched from the hub and run, and
sizes for which terabytes would be allocated.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etl.caption.model.checkpoint import Checkpoint, one_line
from etl.caption.model.files import named_weights
from etl.errors import ModelError
from etl.text import clean

MAX_PICTURE = 4096
"""Pixels of a side that a model may look at; those of today take 224 to 1540."""

MAX_LAYERS = 1024

MAX_SIZE = 2**24
"""Of any other dimension; the largest are vocabularies of 300,000 and contexts of 10 million tokens."""

_SHARD = re.compile(r"[\w.-]+\.safetensors")
_DIMENSION = re.compile(r"(size|dim|layers|heads|embeddings|channels|length|depth|rank|experts)$")
_KERNELS = re.compile(r"_?(attn|experts)_implementation(_internal)?|use_kernels|kernel_config")
_PICTURE_SIZES = frozenset({"size", "crop_size", "pad_size"})
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def vet(checkpoint: Checkpoint) -> None:
    """Raise `ModelError` for a checkpoint whose configuration or index asks for what is never done.

    A file that is not there or is no JSON is left to whoever loads it.
    """
    name, folder = clean(checkpoint.name, 200), checkpoint.folder
    for shard in named_weights(name, folder):
        if not _SHARD.fullmatch(shard):
            raise ModelError(
                f"the index of {name} names {clean(shard, 100)!r} as weights; only safetensors files of its own "
                "directory are read"
            )
    config = _json(folder / "config.json")
    for path, value in _values(config):
        _check_entry(f"the config.json of {name}", path, value)
    # Elsewhere a size may be the number of all pixels, as Qwen2-VL's is.
    edges = isinstance(config, dict) and str(config.get("model_type")).startswith("llava")
    for file in _PROCESSORS:
        for path, value in _values(_json(folder / file)):
            if not _PICTURE_SIZES.isdisjoint(path):
                _check(f"the {file} of {name}", path, value, MAX_PICTURE if edges else MAX_SIZE, least=1)


def _check_entry(where: str, path: tuple[str, ...], value: Any) -> None:
    key = path[-1] if path else ""
    if any(map(_KERNELS.fullmatch, path)) and not (value is None or value is False or _is_built_in(value)):
        raise ModelError(
            f"{where} asks for {clean('.'.join(path), 100)} = {clean(str(value), 100)}: code from the hub, which is "
            "never run; remove the line from a copy of the model"
        )
    if _DIMENSION.search(key):
        limit = MAX_PICTURE if key == "image_size" else MAX_LAYERS if key.endswith("layers") else MAX_SIZE
        _check(where, path, value, limit)


def _is_built_in(value: Any) -> bool:
    """Return whether an implementation is one of transformers' own: those of the hub have a slash in their name."""
    return isinstance(value, str) and "/" not in value


def _check(where: str, path: tuple[str, ...], value: Any, limit: int, *, least: int = 0) -> None:
    # Written so that NaN, which JSON of Python knows, fails too.
    if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value <= limit:
        said = f"{clean('.'.join(path), 100)} = {clean(str(value), 40)}"
        raise ModelError(f"{where} says {said}, which is not between {least} and {limit:,}; is it damaged?")


def _values(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value that is no object or list, with the keys that lead to it; a list's values under its own key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, path)
    else:
        yield path, value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
