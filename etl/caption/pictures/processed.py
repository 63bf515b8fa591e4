"""The model's own processor at work in an image loader: for models whose pictures have no fixed size.

What it gives for one picture and its chat, token ids and all, travels as safetensors: the process that has opened a
stranger's picture can name tensors and nothing else.  The other way goes the processor itself, pickled, since only the
one that was loaded is sure to be the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load, save

from etl.caption.model.checkpoint import one_line
from etl.caption.pictures.pixels import crop_aspect
from etl.errors import GenerationError


@dataclass(frozen=True)
class ProcessorPlan:
    """How a processor is asked.

    Attributes:
        processor: the model's.
        max_aspect: pictures longer than this ratio are cropped around their centre first.
        add_special_tokens: whether the tokeniser adds its start token.
        dtype: of the model; pictures travel in it, at half the bytes where it is half as wide.
    """

    processor: Any
    max_aspect: float
    add_special_tokens: bool
    dtype: torch.dtype

    def prepare(self, picture: Image.Image, text: str) -> bytes:
        """Return the processor's output for one picture, for `from_bytes`.

        Raises `GenerationError` for a picture that the processor refuses.
        """
        try:
            made = self.processor(
                # Nested, as some processors take a flat list for the pictures of one prompt.
                images=[[crop_aspect(picture, self.max_aspect)]],
                text=[text],
                add_special_tokens=self.add_special_tokens,
                return_tensors="pt",
            )
        except Exception as error:
            raise GenerationError(one_line(error)) from error
        return save({
            name: (value.to(self.dtype) if value.is_floating_point() else value).contiguous()
            for name, value in made.items()
            if isinstance(value, torch.Tensor)
        })  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        # A processor may be of a class that was made for it, and has no name to find it by.
        named = next(kind for kind in type(self.processor).__mro__ if kind.__module__.startswith("transformers."))
        return _revived, (named, vars(self.processor), self.max_aspect, self.add_special_tokens, self.dtype)


def _revived(kind: type, held: dict[str, Any], *rest: Any) -> ProcessorPlan:
    processor: Any = object.__new__(kind)
    vars(processor).update(held)
    return ProcessorPlan(processor, *rest)


def from_bytes(data: bytes) -> dict[str, torch.Tensor]:
    """Return what `ProcessorPlan.prepare` has made."""
    found: dict[str, torch.Tensor] = load(data)
    return found
