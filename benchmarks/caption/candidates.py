"""What might make the slot engine faster, each to be switched on by itself; none of it is on in the product.

Each was chosen because a library or a few lines switch it and it changes no words, but for those that another order of
rounding decides.  One that a card has not shown to pay stays off.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from transformers.models.llama import modeling_llama

from etl.caption.model.loading import LoadedModel

Switch = Callable[[LoadedModel], contextlib.AbstractContextManager[None]]


class Absent(Exception):
    """A candidate cannot be tried here; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """One row: the slot engine with something switched on.

    Attributes:
        name, shown: of the row.
        switch: switches it on from outside.
        built_in: its name among the engine's own (`etl.caption.slots.candidates`); with neither it is not built.
    """

    name: str
    shown: str
    switch: Switch | None = None
    built_in: str = ""


@contextlib.contextmanager
def _liger(loaded: LoadedModel) -> Iterator[None]:
    """Let liger-kernel's fused modules stand in for RMSNorm, rotary embedding and the gated MLP."""
    if loaded.device.type != "cuda":
        raise Absent("needs a GPU")
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
    except ImportError as error:
        raise Absent(f"the wheel of liger-kernel is not here ({error})") from error
    names = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
    language = loaded.model.model.language_model
    with mock.patch.multiple(modeling_llama, **{name: getattr(modeling_llama, name) for name in names}):
        try:
            apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=language)
            yield
        finally:
            _restore(language)


def _norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(hidden.dtype)


def _gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


@contextlib.contextmanager
def _compiled(loaded: LoadedModel) -> Iterator[None]:
    """Let inductor fuse what is element by element, for any length: functions of tensors, so all layers share them."""
    language = loaded.model.model.language_model
    if language.config.hidden_act != "silu":
        raise Absent(f"the activation is {language.config.hidden_act}")
    norm, gated = torch.compile(_norm, dynamic=True), torch.compile(_gated, dynamic=True)

    def normed(module: Any, hidden: torch.Tensor) -> torch.Tensor:
        return norm(hidden, module.weight, module.variance_epsilon)

    def mlp(module: Any, hidden: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))
        return projected

    try:
        for module in language.modules():
            if isinstance(module, modeling_llama.LlamaRMSNorm):
                module.forward = types.MethodType(normed, module)
            elif isinstance(module, modeling_llama.LlamaMLP):
                module.forward = types.MethodType(mlp, module)
        yield
    finally:
        _restore(language)
        torch.compiler.reset()


def _restore(language: torch.nn.Module) -> None:
    """Take off what was bound to single modules: their classes have the methods of transformers."""
    for module in language.modules():
        for name in ("forward", "extra_repr", "_get_name"):
            module.__dict__.pop(name, None)


CANDIDATES = (
    Candidate("liger", "with liger-kernel's fused modules", _liger),
    Candidate("compiled", "with norms and activations compiled, for any length", _compiled),
    Candidate("buckets", "with the whole prefill compiled by length buckets"),
    Candidate("graphs", "with prefills recorded as graphs by length buckets"),
    Candidate("priorities", "with decoding on a stream of high priority", built_in="decode_first"),
    Candidate("tight", "with rows no longer than the longest request", built_in="tight_rows"),
    Candidate("by-length", "with prefills grouped by length", built_in="by_length"),
)
