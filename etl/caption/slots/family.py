"""How the slot engine drives a model by the model's own forward; a family that needs more is a subclass of `Family`."""

import operator
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache

from etl.caption.model import cuda
from etl.caption.model.loading import LoadedModel
from etl.caption.pictures.plan import Plan
from etl.caption.pictures.processed import ProcessorPlan, from_bytes
from etl.caption.slots.kv_cache import CACHE, CacheLayout, rows_of
from etl.caption.slots.state import Request
from etl.caption.tokens import EncodedPrompt, PromptEncoder
from etl.domain.items import CaptionItem

_FIXED_ROPES = (None, "default", "linear", "llama3", "yarn", "proportional")
"""Rotary embeddings that do not depend on how long the longest sequence is, which would differ between slots."""

_ATTENTIONS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that leave keys and values behind and nothing else."""


class Prefilled(NamedTuple):
    """What a prefill leaves beside keys and values.

    Attributes:
        logits: of each row's next token, [rows, vocab_size].
        shift: by how much the positions of what follows differ from counting tokens, [rows]; ``None`` for not at all.
        states: what recurrent layers remember, [rows, ...], each behind the tensor for all slots.  Steps change that
            for free slots, too, so it is written when the captions enter, not before.
    """

    logits: torch.Tensor
    shift: torch.Tensor | None = None
    states: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()

    def tensors(self) -> list[torch.Tensor]:
        """Return all that the prefill has computed."""
        found = [self.logits, *(state for _, state in self.states)]
        return found if self.shift is None else [*found, self.shift]


class Family:
    """How the slot engine drives one model; shapes are [rows, ...] for a prefill, [slots, ...] for a decoding step.

    The prefill is the model's own forward over what its own processor gives, so positions, pictures of any number of
    tokens and what else it does with them are its own.  Only the cache and the decoding step are the engine's.
    """

    KINDS = _ATTENTIONS
    """Kinds of layers that are served."""

    def __init__(self, loaded: LoadedModel, max_aspect: float) -> None:
        self._loaded = loaded
        self._max_aspect = max_aspect
        self._model = loaded.model
        self._language = loaded.model.get_decoder()
        self._image: int | None = getattr(loaded.model.config, "image_token_id", None)

    @classmethod
    def why_not(cls, model: Any) -> str | None:
        """Return what of the model's structure the engine cannot drive, in words; ``None`` if nothing."""
        text = model.config.get_text_config()
        kinds = kinds_of(model.config) - cls.KINDS
        if model.config.is_encoder_decoder or getattr(text, "cross_attention_layers", None):
            return "its language model looks at the picture by cross-attention"
        parts = (getattr(model, "model", None), getattr(model, "lm_head", None))
        if None in parts or not hasattr(model.get_decoder(), "embed_tokens"):
            return f"{type(model).__name__} is not a language model that is shown pictures among its tokens"
        if kinds:
            return f"its layers keep what slots do not ({sorted(kinds)[0]})"
        for rope in _ropes(text):
            if (kind := rope.get("rope_type")) not in _FIXED_ROPES:
                return f"its position embedding ({kind}) depends on the longest sequence"
        return None

    @classmethod
    def layout_of(cls, config: Any, dtype: torch.dtype) -> CacheLayout:  # noqa: ARG003 -- for states
        """Return the sizes that decide the cache of a model of this type, and with it how many slots there are."""
        return CacheLayout.of(config.get_text_config())

    @property
    def vocab_size(self) -> int:
        """Logits of one token."""
        return int(self._model.lm_head.weight.shape[0])

    def attend_by(self, name: str) -> str:
        """Let the language model attend by transformers' function of this name; return the one before."""
        before: str = self._language.config._attn_implementation
        self._language.set_attn_implementation(name)
        return before

    def plan(self, encoder: PromptEncoder) -> Plan:
        """Return what is done to pictures before they come here, in the processes of the image loader."""
        return ProcessorPlan(
            self._loaded.processor,
            max_aspect=self._max_aspect,
            add_special_tokens=encoder.add_special_tokens,
            dtype=self._loaded.dtype,
        )

    def request(
        self,
        item: CaptionItem,
        prompt: EncodedPrompt,  # noqa: ARG002 -- for families whose loaders do not see it
        data: bytes,
        limit: int,
    ) -> Request:
        """Return the request for a picture that the plan has made ``data`` of."""
        inputs = from_bytes(data)
        ids = tuple(inputs.pop("input_ids")[0].tolist())
        inputs.pop("attention_mask", None)
        return Request(item, ids, inputs, limit, item.repetition_penalty or 1.0)

    def look(self, requests: Sequence[Request], width: int) -> Any:
        """Return what `prefill` needs of the pictures, on the device, for prompts padded to ``width`` tokens."""
        own, others = in_common(requests, self._image)
        return Seen(self.inputs([requests[row] for row in own], width), own, others)

    def inputs(self, requests: Sequence[Request], width: int) -> Mapping[str, torch.Tensor]:
        """Return what the model is given for prompts that see their pictures themselves."""
        return {
            name: cuda.to_device(_collated(name, requests, width), self._loaded.device) for name in requests[0].inputs
        }

    def prefill(self, ids: torch.Tensor, ends: torch.Tensor, seen: Any, cache: Cache) -> Prefilled:
        """Go through prompts, [rows, tokens], padded on the right; ``ends`` are their lengths without padding.

        Of several about one picture the first does so whole; the others go on from what they have in common with it.
        """
        rows = torch.arange(len(ids), device=ids.device)
        if not seen.others:
            hidden, shift = self.through(ids, ends, cache, seen.inputs)
            return Prefilled(self._logits(hidden[rows, ends - 1]), shift)
        own = self._on_device(seen.own)
        with rows_of(cache, own):
            hidden, shift = self.through(ids[own], ends[own], cache, seen.inputs)
        last = hidden.new_empty(len(ids), hidden.shape[-1])
        last[own] = hidden[rows[: len(own)], ends[own] - 1]
        shifts = ends.new_zeros(len(ids))
        if shift is not None:
            shifts[own] = shift
        for past, *pairs in seen.others:
            mine, leaders = map(self._on_device, pairs)
            shifts[mine] = shifts[leaders]
            with rows_of(cache, mine, after=(leaders, past)):
                rest = self.go_on(ids[mine, past:], past, shifts[mine], cache)
            last[mine] = rest[rows[: len(mine)], ends[mine] - past - 1]
        return Prefilled(self._logits(last), shifts)

    def go_on(self, ids: torch.Tensor, past: int, shift: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Go through the words behind pictures, [rows, tokens], after ``past`` tokens; return the hidden states."""
        places = torch.arange(past, past + ids.shape[1], device=ids.device)
        made = self._model.model(
            input_ids=ids, position_ids=places[None] + shift[:, None], **{CACHE: cache}, use_cache=True
        )
        hidden: torch.Tensor = made.last_hidden_state
        return hidden

    def through(
        self, ids: torch.Tensor, ends: torch.Tensor, cache: Cache, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Go through the model's own forward; return the hidden states, [rows, tokens, hidden], and the shift."""
        whole = self._model.model
        if hasattr(whole, "rope_deltas"):
            # Those of the prefill before.
            whole.rope_deltas = None
        mask = (torch.arange(ids.shape[1], device=ids.device) < ends[:, None]).long()
        hidden = whole(input_ids=ids, attention_mask=mask, **{CACHE: cache}, use_cache=True, **inputs).last_hidden_state
        shift = getattr(whole, "rope_deltas", None)
        return hidden, None if shift is None else shift.view(-1)

    def _on_device(self, rows: Sequence[int]) -> torch.Tensor:
        return cuda.to_device(torch.tensor(rows), self._loaded.device)

    def decode(self, token: torch.Tensor, position: torch.Tensor, cache: Cache, **attention: Any) -> torch.Tensor:
        """Go one token further, at each slot's own position; return the logits of the next.  Never waits for the host.

        ``attention`` is for `etl.caption.slots.kv_cache.slot_attention`.
        """
        hidden = self._model.model(
            input_ids=token[:, None], position_ids=position[:, None], **{CACHE: cache}, use_cache=True, **attention
        ).last_hidden_state
        return self._logits(hidden[:, 0])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model.lm_head(hidden)
        cap: float | None = getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)
        # It changes no order, but what a penalty makes of it.
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Shared(NamedTuple):
    """Rows whose pictures end at the same place, and were seen by rows before them.

    Attributes:
        past: tokens that each has in common with the row before it, its picture among them.
        rows, leaders: numbers of these rows, and of those before them.
    """

    past: int
    rows: tuple[int, ...]
    leaders: tuple[int, ...]


class Seen(NamedTuple):
    """The pictures of a group: what the model is given for the rows that see their picture themselves, these rows, and
    the others.
    """

    inputs: Any
    own: Sequence[int]
    others: Sequence[Shared]


def in_common(requests: Sequence[Request], image: int | None) -> tuple[list[int], list[Shared]]:
    """Return the rows that see their picture themselves, and the others; ``image`` is the token of pictures."""
    first: dict[Any, int] = {}
    own, groups = list[int](), dict[int, list[tuple[int, int, int]]]()
    for row, request in enumerate(requests):
        ids, picture = request.ids, request.item.working_sha256
        end = len(ids) - ids[::-1].index(image) if image in ids else 0
        leader = first.setdefault((picture, ids[:end]), row)
        # Two tokens at least are left: of a single one attention would take it for a step.
        common = sum(takewhile(bool, map(operator.eq, ids[:-2], requests[leader].ids[:-2])))
        if picture and leader != row and 0 < end <= common:
            groups.setdefault(end, []).append((row, leader, common))
        else:
            own.append(row)
    columns = (zip(*group, strict=True) for group in groups.values())
    return own, [Shared(min(common), rows, leaders) for rows, leaders, common in columns]


def kinds_of(config: Any) -> frozenset[str]:
    """Return the kinds of layers that a configuration names."""
    return frozenset(getattr(config.get_text_config(), "layer_types", None) or ())


def _ropes(text: Any) -> list[Mapping[str, Any]]:
    """Return the parameters of a language model's rotary embeddings: one, or one for each kind of layer."""
    found: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    return [each for each in found.values() if isinstance(each, Mapping)] or [found]


def _collated(name: str, requests: Sequence[Request], width: int) -> torch.Tensor:
    """Return one input of several requests, one behind the other, each filled up with zeros to the largest."""
    parts = [request.inputs[name] for request in requests]
    sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    if all(part.shape == (1, len(request.ids)) for part, request in zip(parts, requests, strict=True)):
        sizes = [width]
    whole = parts[0].new_zeros(sum(len(part) for part in parts), *sizes)
    row = 0
    for part in parts:
        whole[(slice(row, row + len(part)), *map(slice, part.shape[1:]))] = part
        row += len(part)
    return whole
