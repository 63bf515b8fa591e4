"""What the slot engine knows of models' families: which has an adapter of its own, and who drives the others.

`Family` drives every model whose own forward can fill the cache.  One that can do better, or that needs more, is a
subclass and its line in `FAMILIES`; nothing else of the engine knows any family.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from etl.caption.model import cuda
from etl.caption.model.loading import LoadedModel
from etl.caption.pictures.normalise import Normaliser
from etl.caption.pictures.pixels import PixelPlan
from etl.caption.pictures.plan import Plan
from etl.caption.slots.family import Family, kinds_of
from etl.caption.slots.kv_cache import CACHE
from etl.caption.slots.recurrent import RECURRENT, Recurrent
from etl.caption.slots.state import Request
from etl.caption.tokens import EncodedPrompt, PromptEncoder
from etl.domain.items import CaptionItem
from etl.errors import UnsupportedProcessorError


class Llava(Family):
    """LLaVA-1.5: a picture has one size, so its pixels travel as bytes and never wait for the host on the way."""

    def __init__(self, loaded: LoadedModel, max_aspect: float) -> None:
        """Raises `UnsupportedProcessorError` for a checkpoint whose pictures are made otherwise."""
        super().__init__(loaded, max_aspect)
        self._plan = PixelPlan.of(loaded.processor.image_processor, max_aspect)
        self._normalise = Normaliser.of(loaded.processor.image_processor)

    def plan(self, encoder: PromptEncoder) -> Plan:  # noqa: ARG002 -- the prompt has no part in it
        return self._plan

    def request(self, item: CaptionItem, prompt: EncodedPrompt, data: bytes, limit: int) -> Request:
        pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(self._plan.shape)
        return Request(item, prompt.ids, {"pixels": pixels}, limit, item.repetition_penalty or 1.0)

    def inputs(self, requests: Sequence[Request], width: int) -> Mapping[str, torch.Tensor]:  # noqa: ARG002 -- no padding
        device, image = self._loaded.device, self._model.config.image_token_id
        starts = torch.tensor([request.ids.index(image) for request in requests])
        pixels = cuda.to_device(torch.stack([request.inputs["pixels"] for request in requests]), device)
        seen = self._model.model.get_image_features(self._normalise(pixels, self._model.dtype)).pooler_output
        return {"starts": cuda.to_device(starts, device), "features": torch.stack(tuple(seen))}

    def through(
        self,
        ids: torch.Tensor,
        ends: torch.Tensor,  # noqa: ARG002 -- nobody looks at the padding
        cache: Cache,
        inputs: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = torch.arange(len(ids), device=ids.device)
        embedded = self._language.embed_tokens(ids)
        # By position, not by comparing tokens: that would make the host wait for the device.
        features = inputs["features"].to(embedded.dtype)
        places = inputs["starts"][:, None] + torch.arange(features.shape[1], device=ids.device)
        embedded[rows[:, None], places] = features
        hidden = self._language(
            inputs_embeds=embedded,
            position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
            **{CACHE: cache},
            use_cache=True,
        ).last_hidden_state
        return hidden, None


FAMILIES: dict[str, type[Family]] = {"llava": Llava}
"""The adapter of each family that has one, by the ``model_type`` of its configuration."""


def adapter_of(config: Any) -> type[Family]:
    """Return what drives models of this configuration: their family's adapter, or what their layers ask for."""
    return FAMILIES.get(config.model_type) or (Recurrent if kinds_of(config) & RECURRENT else Family)


def family_of(loaded: LoadedModel, max_aspect: float) -> Family:
    """Return what drives the model: its family's adapter where that serves it, else its own forward."""
    try:
        return adapter_of(loaded.model.config)(loaded, max_aspect)
    except UnsupportedProcessorError:
        return Family(loaded, max_aspect)
