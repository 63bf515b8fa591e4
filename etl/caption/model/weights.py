"""What a checkpoint's weights are, read from the headers of their files: how large, and in which type."""

from collections import Counter
from pathlib import Path

from etl.caption.model.files import tensors

_FILES = "*.safetensors"

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number, by its type."""

_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The names that safetensors has for types."""


def weight_bytes(folder: Path, dtype: str) -> int:
    """Return what the safetensors weights of a directory take in memory as ``dtype`` (``auto``: half precision).

    Raises `ModelError` for weights that are corrupt.
    """
    return ITEM_BYTES.get(dtype, 2) * sum(values for path in folder.glob(_FILES) for _, values in tensors(path))


def stored_dtype(folder: Path) -> str | None:
    """Return the type in which most values of a directory's weights are stored, as torch calls it; ``None`` without
    weights of a plain type.  Raises as `weight_bytes`.
    """
    count: Counter[str] = Counter()
    for path in folder.glob(_FILES):
        for kind, values in tensors(path):
            if kind in _TYPES:
                count[_TYPES[kind]] += values
    return count.most_common(1)[0][0] if count else None
