"""Recipes: everything that decides the words of a caption, and nothing else.

The device and the batch size are left out on purpose: they change the speed, not the words, so captions made
on different machines are the same work and are never done twice.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How captions are made.  Two recipes are equal when their canonical JSON is.

    Attributes:
        model: Hugging Face id, the name of a local directory, or ``demo``.
        revision: commit of the hub's repository; for a local directory ``sha256:`` and 16 hex digits.
        engine: what drives the model, such as ``generate``.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        preprocessing: from the working copy to pixel values: sizes, crop, resampling, normalisation.
        generation: token limit, decoding and chat template.

    Raises `ValueError` when a mapping holds something that JSON cannot.
    """

    model: str
    revision: str
    engine: str
    dtype: str
    preprocessing: Mapping[str, Any]
    generation: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("preprocessing", "generation"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def source(self) -> str:
        """``model@revision``, as the output names the origin of a caption."""
        return f"{self.model}@{self.revision}"

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON, hex; identifies the recipe."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no white space, UTF-8 unescaped."""
        fields = {
            "model": self.model,
            "revision": self.revision,
            "engine": self.engine,
            "dtype": self.dtype,
            "preprocessing": self.preprocessing,
            "generation": self.generation,
        }
        return _canonical(fields)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Return the recipe that `to_json` wrote.  Raises `ValueError` for anything else."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a recipe: {error}") from error


def text_sha256(text: str) -> str:
    """Return the hash that stands for a long text, such as a chat template, in a recipe."""
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping as JSON gives it back, so that tuples and lists of equal items are equal."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{values!r} is not a mapping")
    try:
        plain: dict[str, Any] = json.loads(_canonical(dict(values)))
    except TypeError as error:
        raise ValueError(str(error)) from error
    return plain


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
