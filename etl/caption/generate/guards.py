"""What keeps a generation honest: finite logits, a signal that ends it between two tokens, no weight of padding."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from etl.caption.model import cuda

HALF = (torch.float16, torch.bfloat16)
"""The types that may overflow, or underflow to NaN, where float32 would not."""


class FiniteGuard(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Marks rows whose logits are not finite and ends them, instead of letting argmax make words of NaN.

    Attributes:
        overflowed: one boolean per row; ``None`` before the first token.
        prompt_length: tokens before the first that is generated, as `generate()` counts and returns them: all of the
            prompt, or the start token of a decoder alone; 0 before the first.
    """

    def __init__(self, eos: tuple[int, ...], device: torch.device) -> None:
        self.overflowed: torch.Tensor | None = None
        self.prompt_length = 0
        self._eos = torch.tensor(eos, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.overflowed is None:
            self.prompt_length = input_ids.shape[1]
        # A row that has ended goes on beside the others; what its logits become then is of no interest.
        finished = torch.isin(input_ids[:, self.prompt_length :], self._eos).any(dim=-1)
        bad = ~torch.isfinite(scores).all(dim=-1) & ~finished
        self.overflowed = bad if self.overflowed is None else self.overflowed | bad
        only_eos = torch.full_like(scores[0], -torch.inf)
        only_eos[self._eos[:1]] = 0.0
        return torch.where(self.overflowed[:, None], only_eos, scores)


class StopSignal(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Ends all rows between two tokens once the caller wants to stop."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._should_stop(), device=input_ids.device, dtype=torch.bool)


def without_padding(ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Return left-padded prompts, ``[rows, length]``, with each row's last token in the place of its padding.

    The repetition penalty of transformers 5.17 counts padding, that of 5.23 does not.  Where padding is the
    end-of-sequence token, the captions of a batch would go on where alone they end; what a row gets here counts anyway.
    """
    return torch.where(attention.bool(), ids, ids[:, -1:])


Precision = Callable[[torch.nn.Module], contextlib.AbstractContextManager[object]]
"""Lets a half-precision model compute for a while in a type that does not overflow; its weights come back unchanged."""


@contextlib.contextmanager
def single_precision(model: torch.nn.Module) -> Iterator[None]:
    """Compute in float32, with widened weights beside the model's own."""
    with _widened(_halves(model)):
        yield


@contextlib.contextmanager
def wide_range(model: torch.nn.Module) -> Iterator[None]:
    """Compute products in bfloat16, which has float32's range, and all else in float32.

    It takes the memory of one weight more: large weights stay as they are, and are cast when they are used.
    """
    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d, torch.nn.Conv3d)
    large = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    # What all layers add to comes from the embedding: left as it is, it would overflow as before.
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    hook = embedding.register_forward_hook(lambda _, __, out: out.float())
    try:
        with (
            _widened([tensor for tensor in _halves(model) if id(tensor) not in large]),
            torch.autocast(embedding.weight.device.type, torch.bfloat16),
        ):
            yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _widened(tensors: list[torch.Tensor]) -> Iterator[None]:
    before = [(tensor, tensor.data) for tensor in tensors]
    try:
        for tensor, data in before:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def wider_precisions(model: torch.nn.Module) -> list[Precision]:
    """Return what a half-precision model may compute in instead, the better first; none where it is single already."""
    halves = _halves(model)
    if not halves:
        return []
    wanted: dict[torch.device, int] = defaultdict(int)
    for tensor in halves:
        wanted[tensor.device] += 4 * tensor.numel()
    # With as much again for what is computed; on the host, memory is the system's affair.
    fits = all(not cuda.serves(device) or 2 * most < cuda.memory(device)[0] for device, most in wanted.items())
    return [single_precision, wide_range] if fits else [wide_range]


def _halves(model: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALF]
