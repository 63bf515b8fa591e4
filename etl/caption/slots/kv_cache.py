"""The key/value cache of the slot engine and the attention over it, as transformers' models call them.

transformers' own static cache has one write position for the whole batch; here every slot has its own, because each
holds a caption of its own age.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from etl.caption.slots.kernel_check import Kernel

ATTENTION = "etl_slots"
"""Name under which transformers finds `slot_attention`.  It makes no mask for attentions that it does not know."""


class Placement:
    """Where the next forward pass writes its keys and values; shared by all layers.

    Attributes:
        prefill: [rows] slots of the rows of a prefill; ``None`` while decoding.
        position: [slots] where each slot writes while decoding.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.prefill: torch.Tensor | None = None
        self.position = torch.zeros(slots, dtype=torch.long, device=device)
        self.rows = torch.arange(slots, device=device)


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one layer, [slots, positions, heads, dim] each: a slot's positions lie together.

    Prefilled rows are padded on the right.  What the padding leaves behind lies beyond the slot's length, is never
    attended to, and is overwritten by the tokens that follow.
    """

    is_compileable = True
    is_sliding = False

    def __init__(
        self,
        where: Placement,
        slots: int,
        positions: int,
        heads: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.keys = torch.zeros(slots, positions, heads, dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True
        self._where = where

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the memory was taken at once, so that it cannot be missing later."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new states, [rows, heads, tokens, dim], and return what is to be attended to, in the same layout."""
        where = self._where
        if where.prefill is not None:
            tokens = key_states.shape[2]
            self.keys[where.prefill, :tokens] = key_states.transpose(1, 2)
            self.values[where.prefill, :tokens] = value_states.transpose(1, 2)
            return key_states, value_states
        self.keys[where.rows, where.position] = key_states[:, :, 0]
        self.values[where.rows, where.position] = value_states[:, :, 0]
        return self.keys.transpose(1, 2), self.values.transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (positions, offset) for masks, which nobody makes here."""
        return (query_length if self._where.prefill is not None else self.get_max_length()), 0

    def get_seq_length(self) -> int:
        """Return 0: every pass names its positions itself."""
        return 0

    def get_max_length(self) -> int:
        """Return the positions of one slot."""
        return int(self.keys.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """The sizes of a language model that decide what decoding with it takes.

    Attributes:
        layers: that keep keys and values.
        heads, kv_heads: of the queries, and of the keys and values, in one layer.
        dim: of one head.
        hidden, inner: values of a token between layers, and inside their MLP.
        vocab_size: logits of a token.
    """

    layers: int
    heads: int
    kv_heads: int
    dim: int
    hidden: int
    inner: int
    vocab_size: int

    @classmethod
    def of(cls, config: Any) -> "CacheLayout":
        """Return the sizes of a language model's configuration."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            vocab_size=config.vocab_size,
        )


def slot_cache(
    layout: CacheLayout, where: Placement, slots: int, positions: int, dtype: torch.dtype, device: torch.device
) -> Cache:
    """Return a cache for a language model.  Raises `torch.OutOfMemoryError`."""
    shape = (slots, positions, layout.kv_heads, layout.dim)
    return Cache(layers=[SlotLayer(where, *shape, dtype, device) for _ in range(layout.layers)])


def slot_attention(
    module: torch.nn.Module,  # noqa: ARG001 -- transformers' signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 -- transformers' signature
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 -- transformers' signature
    slot_lengths: torch.Tensor | None = None,
    slot_kernel: Kernel | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, for transformers' attention interface; all tensors are [rows, heads, tokens, dim].

    With ``slot_lengths``, [slots] int32, it is a decoding step, by ``slot_kernel`` where that is given; else a prefill,
    causal, where no query sees the padding on its right.
    """
    grouped = query.shape[1] != key.shape[1]
    if slot_lengths is None:
        out = F.scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=True, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None
    if slot_kernel is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = slot_kernel(query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2), slot_lengths, scale)
        return out[:, None], None
    valid = torch.arange(key.shape[2], device=key.device)[None, :] < slot_lengths[:, None]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=valid[:, None, None], scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, slot_attention)
