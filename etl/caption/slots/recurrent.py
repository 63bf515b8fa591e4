"""Models some of whose layers carry a state from token to token, in slots."""

import copy
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionLayer

from etl.caption.model import cuda
from etl.caption.slots.family import Family, Prefilled, in_common
from etl.caption.slots.kv_cache import CACHE, CacheLayout, SlotLayer, StateLayer, StateLayout
from etl.caption.slots.state import Request

RECURRENT = frozenset({"linear_attention", "conv"})
"""Kinds of layers that leave a state behind, of one size for any number of tokens."""


class Recurrent(Family):
    """Models some of whose layers carry a state from token to token, which padding would change: Qwen3.5, LFM2.

    So each prompt is gone through alone, with a cache of transformers' own, and what that holds is copied: for others
    about the same picture, which go on from there, and to a slot.
    """

    KINDS = frozenset({"full_attention"}) | RECURRENT

    @classmethod
    def layout_of(cls, config: Any, dtype: torch.dtype) -> CacheLayout:
        text = config.get_text_config()
        kind: Any = type(text)
        return _with_states(text.to_json_string(), kind, dtype)

    def look(self, requests: Sequence[Request], width: int) -> Any:  # noqa: ARG002 -- nothing is padded
        begins: dict[int, tuple[int, int]] = {}
        for group in in_common(requests, self._image)[1]:
            both = zip(group.rows + group.leaders, group.leaders * 2, strict=True)
            begins |= {row: (leader, group.past) for row, leader in both}
        seen = []
        for row, request in enumerate(requests):
            length = len(request.ids)
            leader, past = begins.get(row, (row, length))
            # What is said of each token is said of those that are gone through.
            parts = (
                (name, part[:, :past] if part.shape == (1, length) else part) for name, part in request.inputs.items()
            )
            inputs = {name: cuda.to_device(part, self._loaded.device) for name, part in parts if leader == row}
            seen.append((leader, past, length, inputs))
        return seen

    def prefill(self, ids: torch.Tensor, ends: torch.Tensor, seen: Any, cache: Cache) -> Prefilled:
        logits, shifts, states, begun = [], [], [], {}
        for row, (leader, past, length, inputs) in enumerate(seen):
            tokens = ids[row : row + 1, :length]
            if leader == row:
                own = DynamicCache(config=self._model.config.get_text_config())
                hidden, shift = self.through(tokens[:, :past], ends[row : row + 1], own, inputs)
                begun[row] = own, hidden.new_zeros(1, dtype=torch.long) if shift is None else shift
            own, shift = begun[leader]
            if past < length:
                own = copy.deepcopy(own)
                hidden = self.go_on(tokens[:, past:], past, shift, own)
            logits.append(self._logits(hidden[:, -1]))
            shifts.append(shift)
            for layer, made in zip(cache.layers, own.layers, strict=True):
                if isinstance(layer, SlotLayer):
                    layer.fill_row(row, made.keys, made.values)
            states.append([state for layer in own.layers for state in _states(layer)])
        held = [state for layer in cache.layers if isinstance(layer, StateLayer) for state in layer.held]
        rows = [torch.cat(each) for each in zip(*states, strict=True)]
        return Prefilled(torch.cat(logits), torch.cat(shifts), list(zip(held, rows, strict=True)))


def _states(layer: Any) -> list[torch.Tensor]:
    """Return the states of a layer of transformers' own cache, the convolution's first; none of attention."""
    if not isinstance(layer, LinearAttentionLayer):
        return []
    return [state for state in (layer.conv_states[0], layer.recurrent_states[0]) if state is not None]


@functools.lru_cache(1)
def _with_states(described: str, kind: Any, dtype: torch.dtype) -> CacheLayout:
    """Return the layout of a language model of recurrent layers, whose states are found by a pass without memory."""
    text = kind.from_dict(json.loads(described))
    with torch.device("meta"):
        model = AutoModel.from_config(text, dtype=dtype)
        own = DynamicCache(config=text)
        model(input_ids=torch.ones(1, 2, dtype=torch.long), **{CACHE: own}, use_cache=True)
    layers = {place: _states(layer) for place, layer in enumerate(own.layers)}
    states = {
        place: StateLayout(tuple((tuple(state.shape[1:]), state.dtype) for state in found))
        for place, found in layers.items()
        if found
    }
    layout = CacheLayout.of(text)
    attend = tuple(layer for place, layer in enumerate(layout.layers) if place not in states)
    return dataclasses.replace(layout, layers=attend, states=states)
