"""From items to what `generate()` takes: opened, encoded, padded to one length."""

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from etl.caption.captioner import failure
from etl.caption.model.checkpoint import one_line
from etl.caption.model.faults import BATCH_FAULTS
from etl.caption.model.loading import LoadedModel
from etl.caption.model.native import native_inputs
from etl.caption.pictures.pixels import crop_aspect
from etl.caption.tokens import PromptEncoder
from etl.clock import now_ms
from etl.domain.items import CaptionItem, ItemFailure
from etl.errors import CaptionError, PromptTooLongError
from etl.images.working_copies import open_working_copy
from etl.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Prepared items of one penalty.  ``inputs`` is ``None`` when the processor failed on them, see ``fault``."""

    items: list[CaptionItem]
    started_at: int
    failures: list[ItemFailure]
    inputs: dict[str, Any] | None = None
    fault: str = ""


class BatchMaker:
    """Makes batches of items; may be asked by two threads, but makes one at a time, as tokenisers want it."""

    def __init__(self, loaded: LoadedModel, settings: Settings, locate: Callable[[str], Path]) -> None:
        """``locate`` maps a working copy's hash to its file.  Raises as `PromptEncoder`."""
        self._loaded = loaded
        self._locate = locate
        self._max_aspect = loaded.max_aspect(settings)
        self._encoder = PromptEncoder(loaded.processor, settings.max_new_tokens, loaded.context, native=loaded.native)
        self._lock = threading.Lock()

    def make(self, items: list[CaptionItem]) -> Batch:
        """Open and encode the items; those that cannot be become failures, as do those too long for the model."""
        with self._lock:
            batch = self._encoded(items)
            if batch.inputs is None:
                return batch
            tokens = batch.inputs["attention_mask"].sum(dim=1).tolist()
            long = [found for pair in zip(batch.items, tokens, strict=True) if (found := self._too_long(*pair, batch))]
            if not long:
                return batch
            left_out = {found.id for found in long}
            rest = self._encoded([item for item in batch.items if item.id not in left_out])
            return dataclasses.replace(rest, failures=[*batch.failures, *long, *rest.failures])

    def _encoded(self, items: list[CaptionItem]) -> Batch:
        started_at = now_ms()
        good, pictures, texts, failures = [], [], [], []
        for item in items:
            try:
                text = self._encoder.encode(item.prompt).text
                picture = crop_aspect(open_working_copy(self._locate(item.working_sha256)), self._max_aspect)
            except CaptionError as error:
                failures.append(failure(item, error, started_at))
                continue
            good.append(item)
            pictures.append(picture)
            texts.append(text)
        if not good:
            return Batch([], started_at, failures)
        try:
            inputs = self._inputs(pictures, texts)
        except BATCH_FAULTS as error:
            return Batch(good, started_at, failures, fault=one_line(error))
        return Batch(good, started_at, failures, inputs=inputs)

    def _inputs(self, pictures: list[Image.Image], texts: list[str]) -> dict[str, Any]:
        """Return what the model takes for these pictures, each with its text."""
        loaded = self._loaded
        if loaded.native is not None:
            return native_inputs(loaded.model.config.model_type, loaded.processor, loaded.native, pictures)
        inputs = loaded.processor(
            # Nested, as some processors take a flat list for the pictures of one prompt.
            images=[[picture] for picture in pictures],
            text=texts,
            padding=True,
            padding_side="left",
            add_special_tokens=self._encoder.add_special_tokens,
            return_tensors="pt",
        )
        return dict(inputs)

    def _too_long(self, item: CaptionItem, tokens: int, batch: Batch) -> ItemFailure | None:
        try:
            self._encoder.check_length(tokens)
        except PromptTooLongError as error:
            return failure(item, error, batch.started_at)
        return None


def moved_to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a value of a batch on the device; what are no tensors some processors give beside them."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
