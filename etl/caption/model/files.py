"""Whether the files of a model can be opened at all: looked at before anybody reads one, without torch.

A model's directory may be a stranger's: a configuration that is a device never ends, a FIFO never begins, and a
template or a header of hundreds of megabytes takes minutes and all memory in the libraries that read it.  Links are the
way in which the hub's cache is made; what they lead to counts.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etl.errors import ModelError
from etl.files import kind_of
from etl.text import clean

KIB, MIB = 2**10, 2**20

MAX_TEMPLATE = 256 * KIB
"""Of a chat template; those of today have up to 30 KiB."""

VOCABULARIES = frozenset({"tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json",
                           "vocab.txt", "merges.txt"})  # fmt: skip
"""Files that a tokenizer is made of; one or two of them are there."""

_MAX_VOCABULARY = 64 * MIB
"""Gemma's has 33 MB."""

_CONFIGURATIONS = frozenset({"config.json", "generation_config.json", "preprocessor_config.json",
                             "processor_config.json", "video_preprocessor_config.json", "tokenizer_config.json",
                             "special_tokens_map.json", "added_tokens.json", "chat_template.json",
                             "adapter_config.json"})  # fmt: skip
_MAX_CONFIGURATION = 4 * MIB
"""The largest are those of tokenizers with many added tokens, 1.2 MB."""

_MAX_OTHER = 1024 * MIB
"""Of text that nobody reads but to tell one version of a directory from another."""

MAX_HEADER = 16 * MIB
"""Of a file of weights; a model of 7 billion parameters has 100 KB."""

_POINTER = b"version https://git-lfs"
"""What a file begins with in whose place Git LFS has put a note of where it is."""

_MAX_DIMENSIONS, _MAX_SIZE = 16, 2**48

INDEX = "model.safetensors.index.json"
"""Says which tensor is in which file, where weights are in several."""


def check_files(name: str, folder: Path) -> None:
    """Raise `ModelError` for a model with something that is no plain file in it, or too large for what it is."""
    try:
        for place in (folder, folder / "additional_chat_templates"):
            if place.is_dir():
                with os.scandir(place) as entries:
                    for entry in entries:
                        _check(entry)
    except OSError as error:
        where = f"{clean(Path(str(error.filename)).name, 100)}: " if error.filename else ""
        raise ModelError(f"the model {clean(name, 200)} cannot be read: {where}{error.strerror}") from error


def _check(entry: "os.DirEntry[str]") -> None:
    try:
        status = entry.stat()
    except FileNotFoundError:
        # A link to nowhere is not there, which whoever needs it will say.
        return
    if entry.is_dir():
        return
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(status)}, not a plain file", entry.path)
    limit = _limit(entry.name)
    if limit is not None and status.st_size > limit:
        raise OSError(0, f"it has {status.st_size:,} bytes, more than {limit:,}; is it damaged?", entry.path)
    if 0 < status.st_size < KIB and (limit is not None or entry.name.endswith(".safetensors")):
        with Path(entry.path).open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise OSError(0, "Git LFS has not brought it yet; type git lfs pull in its directory", entry.path)
    if limit is not None and not status.st_size and entry.is_symlink():
        # Files of the kernel have no size, and some never end.
        raise OSError(0, "it is a link to an empty file", entry.path)


def _limit(name: str) -> int | None:
    """Return the most bytes that a file of this name may have; ``None`` where it is not read as text."""
    if name.endswith(".jinja"):
        return MAX_TEMPLATE
    if name in _CONFIGURATIONS:
        return _MAX_CONFIGURATION
    if name in VOCABULARIES or name.endswith((".index.json", ".model")):
        return _MAX_VOCABULARY
    return _MAX_OTHER if name.endswith((".json", ".txt")) else None


def tensors(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the format's name for the type, and the number of values, of each tensor in a safetensors file.

    First is seen that it holds them all.  Read from its header: 8 bytes of length, little-endian, and JSON (the
    format's own documentation).  Raises `ModelError` for one that is corrupt or cut short.
    """
    try:
        header, size = _header(path)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        if size != max((_natural(entry["data_offsets"][1]) for entry in entries), default=0):
            raise ValueError("it does not end where its tensors do")
        for entry in entries:
            shape = entry["shape"]
            if len(shape) > _MAX_DIMENSIONS:
                raise ValueError("a tensor has too many dimensions")
            yield str(entry["dtype"]), math.prod(map(_natural, shape))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if type(error) is ValueError else "its header cannot be read"
        raise ModelError(f"the weights {clean(path.name, 100)} are corrupt: {why}; fetch them again") from error


def named_weights(name: str, folder: Path) -> list[str]:
    """Return the names of the files of weights that a model's index names, as they stand there; none without an index.

    Raises `ModelError` for one that is damaged.
    """
    try:
        return sorted(map(str, set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"the {INDEX} of {clean(name, 200)} is damaged; fetch it again") from error


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and the bytes behind it."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"it is {kind_of(status)}, not a plain file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")
        return json.loads(file.read(length)), status.st_size - 8 - length


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_SIZE:
        raise ValueError("its header holds sizes that cannot be")
    return value
