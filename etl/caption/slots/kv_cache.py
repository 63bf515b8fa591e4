"""The key/value cache of the slot engine and the attention over it, as transformers' models call them.

transformers' own static cache has one write position for the whole batch; here every slot has its own, because each
holds a caption of its own age.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, LlamaModel
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from etl.caption.slots.kernel_check import Kernel

ATTENTION = "etl_slots"
"""Name under which transformers finds `slot_attention` and `slot_mask`."""

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""What models call the argument for their cache: transformers 5.24 has renamed it, and warns of the former word."""


class Placement:
    """Where the next forward pass writes its keys and values; shared by all layers.

    Attributes:
        prefill: [rows] slots of the rows of a prefill; ``None`` while decoding.
        past: positions that the slots of a prefill have already.
        position: [slots] where each slot writes while decoding.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.prefill: torch.Tensor | None = None
        self.past = 0
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
            self._fill(where.prefill, key_states, value_states)
            if not where.past:
                return key_states, value_states
            whole = slice(0, where.past + key_states.shape[2])
            return self.keys[where.prefill, whole].transpose(1, 2), self.values[where.prefill, whole].transpose(1, 2)
        self.keys[where.rows, where.position] = key_states[:, :, 0]
        self.values[where.rows, where.position] = value_states[:, :, 0]
        return self.keys.transpose(1, 2), self.values.transpose(1, 2)

    def fill_row(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the states of one prompt of a prefill, [1, heads, tokens, dim], that were computed elsewhere."""
        assert self._where.prefill is not None
        self._fill(self._where.prefill[row : row + 1], keys, values)

    def _fill(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        places = slice(self._where.past, self._where.past + keys.shape[2])
        self.keys[slots, places] = keys.transpose(1, 2)
        self.values[slots, places] = values.transpose(1, 2)

    def copy(self, source: torch.Tensor, target: torch.Tensor, positions: int) -> None:
        """Copy the first so many positions of one slot to another, [1] each."""
        self.keys[target, :positions] = self.keys[source, :positions]
        self.values[target, :positions] = self.values[source, :positions]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (positions, offset) for the masks of a prefill, which sees its own tokens and those before them."""
        return self._where.past + query_length, 0

    def get_seq_length(self) -> int:
        """Return the positions before those of a prefill; a step names its own itself."""
        return self._where.past

    def get_max_length(self) -> int:
        """Return the positions of one slot."""
        return int(self.keys.shape[1])


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]  # transformers is untyped here
    """What a recurrent layer remembers, a row for each slot; a step changes all rows, those of free slots for nothing.

    Attributes:
        held: the states that the layer has: of its convolution, of its recurrence.
    """

    def __init__(self, layout: "StateLayout", slots: int, device: torch.device) -> None:
        super().__init__()
        self.held = [torch.zeros(slots, *shape, dtype=dtype, device=device) for shape, dtype in layout.states]
        self.conv_states[0], self.recurrent_states[0] = (*self.held, None)[:2]
        self.is_conv_states_initialized[0] = self.has_previous_state[0] = True
        self.is_recurrent_states_initialized[0] = len(self.held) > 1


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The states of a recurrent layer: shape and type of each, without the slots; the convolution's is the first."""

    states: tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """The sizes of one layer's attention.

    Attributes:
        heads, kv_heads: of the queries, and of the keys and values.
        dim: of one head.
        window: how many positions a token sees, itself included; ``None`` for all.
    """

    heads: int
    kv_heads: int
    dim: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The sizes of a language model that decide what decoding with it takes.

    Attributes:
        layers: those that keep keys and values, in their order.
        states: recurrent layers, by their place among all.
        hidden, inner: values of a token between layers, and inside their MLP.
        vocab_size: logits of a token.
    """

    layers: tuple[LayerLayout, ...]
    hidden: int
    inner: int
    vocab_size: int
    states: Mapping[int, StateLayout] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any) -> "CacheLayout":
        """Return the sizes of a language model's configuration."""
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        layers = []
        # The last ones may look into the cache of others.
        for number in range(config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", None) or 0)):
            layer = config.per_layer_config[number]
            heads = layer.num_attention_heads
            kv_heads = getattr(layer, "num_key_value_heads", None) or heads
            dim = getattr(layer, "head_dim", None) or config.hidden_size // heads
            layers.append(LayerLayout(heads, kv_heads, dim, window if kinds[number] == "sliding_attention" else None))
        return cls(tuple(layers), config.hidden_size, config.intermediate_size, config.vocab_size)

    def slot_bytes(self, positions: int, dtype: torch.dtype) -> int:
        """Return the bytes of one slot of so many positions in the cache, in all layers together."""
        values = sum(2 * layer.kv_heads * layer.dim for layer in self.layers)
        states = (state for layer in self.states.values() for state in layer.states)
        return values * positions * dtype.itemsize + sum(math.prod(shape) * kind.itemsize for shape, kind in states)


@contextlib.contextmanager
def rows_of(cache: Cache, rows: torch.Tensor, after: tuple[torch.Tensor, int] | None = None) -> Iterator[None]:
    """Let a prefill be of these rows alone, in the block; with ``after``, of one row, which goes on after so many
    positions of another one's: they are copied.
    """
    where: Placement = cache.layers[0]._where
    slots = where.prefill
    assert slots is not None
    where.prefill = slots[rows]
    if after is not None:
        source, where.past = after
        for layer in cache.layers:
            layer.copy(slots[source], where.prefill, where.past)
    try:
        yield
    finally:
        where.prefill, where.past = slots, 0


def slot_cache(
    layout: CacheLayout, where: Placement, slots: int, positions: int, dtype: torch.dtype, device: torch.device
) -> Cache:
    """Return a cache for a language model.  Raises `torch.OutOfMemoryError`."""
    layers: list[Any] = [
        SlotLayer(where, slots, positions, each.kv_heads, each.dim, dtype, device) for each in layout.layers
    ]
    for place, state in sorted(layout.states.items()):
        layers.insert(place, StateLayer(state, slots, device))
    return Cache(layers=layers)


def slot_mask(batch_size: int, q_length: int, kv_length: int, **options: Any) -> torch.Tensor | None:
    """Return the mask of a prefill, for transformers; ``None`` where causal attention needs none, and for a step.

    Windows and pictures that see themselves whole need one.  Padding does not: it is on the right, where nobody looks.
    """
    return sdpa_mask(batch_size, q_length, kv_length, **options | {"attention_mask": None}) if q_length > 1 else None


def slot_attention(
    module: torch.nn.Module,  # noqa: ARG001 -- transformers' signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 -- transformers' signature
    sliding_window: int | None = None,
    slot_lengths: torch.Tensor | None = None,
    slot_kernel: Kernel | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, for transformers' attention interface; all tensors are [rows, heads, tokens, dim].

    With ``slot_lengths``, [slots] int32, it is a decoding step, by ``slot_kernel`` where that is given; else a prefill
    under the mask of `slot_mask`, without one causal: no query sees the padding on its right.

    Raises `NotImplementedError` where a layer asks for something else that would change the result.
    """
    if asked := [name for name in _NOT_DONE if more.get(name) is not None]:
        raise NotImplementedError(f"its attention asks for {asked[0]}")
    grouped = query.shape[1] != key.shape[1]
    if slot_lengths is None:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, is_causal=attention_mask is None,
            enable_gqa=grouped,
        )  # fmt: skip
        return out.transpose(1, 2).contiguous(), None
    if slot_kernel is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        given = (query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2), slot_lengths, scale)
        return slot_kernel(*given, sliding_window)[:, None], None
    positions = torch.arange(key.shape[2], device=key.device)[None, :]
    valid = positions < slot_lengths[:, None]
    if sliding_window is not None:
        valid &= positions >= slot_lengths[:, None] - sliding_window
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=valid[:, None, None], scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None


_NOT_DONE = ("softcap", "s_aux")
"""What transformers hands to an attention that is not done here: capped scores, sinks."""

AttentionInterface.register(ATTENTION, slot_attention)
AttentionMaskInterface.register(ATTENTION, slot_mask)
