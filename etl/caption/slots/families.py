"""What the slot engine knows of a model's family: its parts, its positions, and what of it lies in the cache.

A new family is an adapter with the methods of `Family` and its line in `FAMILIES`.
"""

from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from etl.caption.slots.kv_cache import CacheLayout

_FIXED_ROPES = (None, "default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on how long the longest sequence is, which would differ between slots."""


class Family(Protocol):
    """How the slot engine drives one model; shapes are [rows, ...] for a prefill, [slots, ...] for a decoding step."""

    def __init__(self, model: Any) -> None: ...

    @staticmethod
    def why_not(config: Any, max_seq_len: int) -> str | None:
        """Return why slots cannot serve a model of this configuration, for sequences of up to so many tokens."""

    @staticmethod
    def layout_of(config: Any) -> CacheLayout:
        """Return the sizes that decide the cache, and with it how many slots there are."""

    @property
    def vocab_size(self) -> int:
        """Logits of one token."""

    def attend_by(self, name: str) -> str:
        """Let the language model attend by transformers' function of this name; return the one before."""

    def image_start(self, ids: tuple[int, ...]) -> int:
        """Return the place of the picture's first token in a prompt."""

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what stands for the picture's tokens, [rows, image tokens, hidden]."""

    def prefill(
        self, ids: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, features: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Go through prompts, [rows, tokens], padded on the right; return the logits of each one's next token.

        ``starts`` are the places of the pictures, ``ends`` the lengths without padding.
        """

    def decode(self, token: torch.Tensor, position: torch.Tensor, cache: Cache, **attention: Any) -> torch.Tensor:
        """Go one token further, at each slot's own position; return the logits of the next.  Never waits for the host.

        ``attention`` is for `etl.caption.slots.kv_cache.slot_attention`.
        """


class Llava(Family):
    """LLaVA-1.5: the picture's features take the places of its tokens, and positions count the tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._language = model.model.language_model

    @staticmethod
    def why_not(config: Any, max_seq_len: int) -> str | None:
        text = config.get_text_config()
        window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
        if window is not None and window < max_seq_len:
            return f"its attention sees only the last {window} tokens"
        if any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or ()) and window is not None:
            return "its layers attend in different ways"
        rope: Any = getattr(text, "rope_parameters", None) or {}
        if (kind := rope.get("rope_type")) not in _FIXED_ROPES:
            return f"its position embedding ({kind}) depends on the longest sequence"
        return None

    @staticmethod
    def layout_of(config: Any) -> CacheLayout:
        return CacheLayout.of(config.get_text_config())

    @property
    def vocab_size(self) -> int:
        return int(self._model.lm_head.weight.shape[0])

    def attend_by(self, name: str) -> str:
        before: str = self._language.config._attn_implementation
        self._model.set_attn_implementation({"text_config": name})
        return before

    def image_start(self, ids: tuple[int, ...]) -> int:
        return ids.index(self._model.config.image_token_id)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.stack(tuple(self._model.model.get_image_features(pixel_values).pooler_output))

    def prefill(
        self, ids: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, features: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        rows = torch.arange(len(ids), device=ids.device)
        embedded = self._language.embed_tokens(ids)
        # By position, not by comparing tokens: that would make the host wait for the device.
        places = starts[:, None] + torch.arange(features.shape[1], device=ids.device)
        embedded[rows[:, None], places] = features.to(embedded.dtype)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return self._logits(self._pass(embedded, positions, cache)[rows, ends - 1])

    def decode(self, token: torch.Tensor, position: torch.Tensor, cache: Cache, **attention: Any) -> torch.Tensor:
        embedded = self._language.embed_tokens(token)[:, None]
        return self._logits(self._pass(embedded, position[:, None], cache, **attention)[:, 0])

    def _pass(self, embedded: torch.Tensor, positions: torch.Tensor, cache: Cache, **attention: Any) -> torch.Tensor:
        hidden: torch.Tensor = self._language(
            inputs_embeds=embedded, past_key_values=cache, use_cache=True, position_ids=positions, **attention
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model.lm_head(hidden)
        return logits


FAMILIES: dict[str, type[Family]] = {"llava": Llava}
"""The adapter of each family, by the ``model_type`` of its configuration."""
