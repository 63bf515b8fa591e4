"""What keeps a generation honest: finite logits, a signal that ends it between two tokens, no weight of padding."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

HALF = (torch.float16, torch.bfloat16)
"""The types that may overflow, or underflow to NaN, where float32 would not."""


class FiniteGuard(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Marks rows whose logits are not finite and ends them, instead of letting argmax make words of NaN.

    Attributes:
        overflowed: one boolean per row; ``None`` before the first token.
    """

    def __init__(self, eos: tuple[int, ...], prompt_length: int, device: torch.device) -> None:
        self.overflowed: torch.Tensor | None = None
        self._eos = torch.tensor(eos, device=device)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # A row that has ended goes on beside the others; what its logits become then is of no interest.
        finished = torch.isin(input_ids[:, self._prompt_length :], self._eos).any(dim=-1)
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


@contextlib.contextmanager
def single_precision(model: torch.nn.Module) -> Iterator[None]:
    """Hold the half-precision weights as float32 for a while; widening and narrowing again loses nothing."""
    halves = [(tensor, tensor.dtype) for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALF]
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)
