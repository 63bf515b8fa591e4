"""What a checkpoint's weights are, read from the headers of their files: how large, and in which type."""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from etl.errors import ModelError

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The names that safetensors has for types."""


def weight_bytes(folder: Path, dtype: str) -> int:
    """Return what the safetensors weights of a directory take in memory as ``dtype`` (``auto``: half precision).

    Raises `ModelError` for a file whose header cannot be read.
    """
    return _ITEM_BYTES.get(dtype, 2) * sum(values for _, values in _tensors(folder))


def stored_dtype(folder: Path) -> str | None:
    """Return the type in which most values of a directory's weights are stored, as torch calls it; ``None`` without
    weights of a plain type.  Raises as `weight_bytes`.
    """
    count: Counter[str] = Counter()
    for kind, values in _tensors(folder):
        if kind in _TYPES:
            count[_TYPES[kind]] += values
    return count.most_common(1)[0][0] if count else None


def _tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield type and number of values of every tensor.

    A header is 8 bytes of length, little-endian, and JSON (the format's own documentation).
    """
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, 100_000_000)))
            found = [(e["dtype"], math.prod(e["shape"])) for name, e in header.items() if name != "__metadata__"]
        except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the weights {path.name} are corrupt: their header cannot be read; fetch them again"
            ) from error
        yield from found
