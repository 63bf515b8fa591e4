"""How long a model spends in its vision tower, in prefill and in decoding, seen from outside."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from etl.caption.slots.timing import Timings


@contextlib.contextmanager
def phases_of(model: Any, clock: Timings) -> Iterator[None]:
    """Let hooks add up the seconds of a LLaVA's parts: vision, prefill, decode.

    On a GPU a phase includes the gaps in which the GPU waits for the next launch.
    """
    core = model.model
    handles = [
        *_span(core.vision_tower, core.multi_modal_projector, clock, lambda _: "vision"),
        *_span(core.language_model, model.lm_head, clock, _pass_of),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pass_of(embeddings: torch.Tensor) -> str:
    return "decode" if embeddings.shape[1] == 1 else "prefill"


def _span(first: torch.nn.Module, last: torch.nn.Module, clock: Timings, name: Any) -> list[Any]:
    """Time from the beginning of one module to the end of another; ``name`` is asked with the first one's input."""
    blocks: list[contextlib.AbstractContextManager[None]] = []

    def begin(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        # What failed in between, for want of memory, never ended; it must not be ended in place of this one.
        blocks.clear()
        block = clock(name(arguments[0] if arguments else named.get("inputs_embeds")))
        block.__enter__()
        blocks.append(block)

    def end(*_: Any) -> None:
        if blocks:
            blocks.pop().__exit__(None, None, None)

    return [
        first.register_forward_pre_hook(begin, with_kwargs=True),
        last.register_forward_hook(end),
    ]
