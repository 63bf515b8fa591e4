"""``etl doctor --gpu`` at work, in a process started as a GPU's is: what it tried, and what is to be expected."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from etl.caption.gpus.ceilings import measure_ceilings
from etl.caption.gpus.checks import Finding, check_device
from etl.caption.gpus.roofline import Load, Shapes, bounds
from etl.caption.model import cuda
from etl.caption.model.checkpoint import find_checkpoint, one_line
from etl.caption.model.device import choose_device, choose_dtype
from etl.caption.model.loading import read_config
from etl.caption.model.vetting import vet
from etl.caption.model.weights import weight_bytes
from etl.caption.slots.capacity import max_seq_len_for, slots_within
from etl.errors import EtlError, ModelError
from etl.processes import Parent
from etl.settings import Settings
from etl.units import duration, size

PROMPT_TOKENS = 43
"""Of the default prompt with the chat around it, beside those of the picture (`benchmarks/README.md`)."""

OF_BOUND = 0.65
"""Share of the serial bound that the engine is expected to reach: estimated, not measured."""


@dataclasses.dataclass(frozen=True)
class _Model:
    """What is known of a model that need not be here: configuration, number format, bytes of weights; or why not."""

    config: Any
    dtype: torch.dtype
    weights: int | None
    trouble: str = ""


def main(config: Mapping[str, Any], parent: Parent) -> None:
    """Send a finding for each thing that is tried, then ``null``.

    ``config``: ``settings`` as `Settings.to_json` gives them, ``to_do``: captions that the state at hand still wants.
    """
    settings = Settings.from_json(config["settings"])
    try:
        for finding in report(settings, config["to_do"]):
            parent.send(json.dumps(dataclasses.asdict(finding)).encode())
    except Exception as error:
        said = str(error) if isinstance(error, EtlError) else f"{type(error).__name__}: {one_line(error)}"
        parent.send(json.dumps(dataclasses.asdict(Finding("gpu", "fail", said))).encode())
    parent.send(b"null")
    # Until the parent has read it and closes the socket.
    parent.recv()


def report(settings: Settings, to_do: int) -> Iterator[Finding]:
    """Yield what was found on the settings' device for their model.  Raises `ModelError`."""
    device = choose_device(settings.device, settings.model)
    model = _model(settings, device)
    if model.trouble:
        yield Finding("model", "note", f"{model.trouble}; what follows is for LLaVA-1.5-7B")
    text = model.config.get_text_config()
    yield from check_device(device, model.dtype, text)
    shapes = _shapes(model.config)
    if shapes is None:
        yield Finding("speed", "note", "how fast it will be is known for models built like LLaVA-1.5 alone")
        return
    fits, slots = _memory(settings, device, model, shapes)
    yield fits
    if slots > 0:
        yield _speed(settings, device, model, shapes, slots, to_do)


def _model(settings: Settings, device: torch.device) -> _Model:
    try:
        checkpoint = find_checkpoint(settings.model, settings.revision)
        vet(checkpoint)
        config = read_config(checkpoint.name, checkpoint.folder)
        dtype = choose_dtype(settings.dtype, device, checkpoint.folder)
        weights = weight_bytes(checkpoint.folder, str(dtype).removeprefix("torch."))
    except ModelError as error:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        return _Model(transformers.LlavaConfig(), dtype, None, str(error))
    return _Model(config, dtype, weights or None)


def _shapes(config: Any) -> Shapes | None:
    try:
        return Shapes.of(config)
    except (AttributeError, TypeError):
        return None


def _memory(settings: Settings, device: torch.device, model: _Model, shapes: Shapes) -> tuple[Finding, int]:
    """Return what of the model fits into the device's memory, and in how many slots."""
    if device.type != "cuda":
        slots = settings.slots or settings.batch_size
        return Finding("memory", "note", f"no GPU's; {slots} captions at once"), slots
    values = shapes.decoder_weights + 2 * shapes.head_weights + shapes.vision_weights
    weights = model.weights or values * model.dtype.itemsize
    free, total = cuda.memory(device)
    name = str(model.dtype).removeprefix("torch.")
    said = f"{size(free)} of {size(total)} free, weights {size(weights)} as {name}"
    text = model.config.get_text_config()
    longest = shapes.image_tokens + PROMPT_TOKENS + settings.max_new_tokens
    max_seq_len = max_seq_len_for(longest, getattr(text, "max_position_embeddings", None))
    # As much of a loaded model as decides its memory.
    known: Any = SimpleNamespace(model=SimpleNamespace(config=model.config), dtype=model.dtype, device=device)
    fit = slots_within(known, settings, max_seq_len, (free - weights, total), penalised=False)
    slots = settings.slots or fit
    if fit < 1:
        return Finding(
            "memory", "fail", f"{said}: no room for a single caption; use a larger GPU or a smaller model"
        ), 0
    return Finding("memory", "ok", f"{said}, room for {fit} slots of {max_seq_len} tokens"), slots


def _speed(settings: Settings, device: torch.device, model: _Model, shapes: Shapes, slots: int, to_do: int) -> Finding:
    ceilings = measure_ceilings(device, model.dtype)
    width = model.dtype.itemsize
    load = Load(shapes.image_tokens + PROMPT_TOKENS, settings.max_new_tokens / 2, slots, width, width)
    most = bounds(shapes, ceilings, load).serial
    rate = OF_BOUND * most
    said = (
        f"{ceilings.flops / 1e12:.3g} TFLOP/s, {ceilings.bandwidth / 1e9:.3g} GB/s; about {rate:.2g} captions/s of "
        f"{load.caption:.0f} tokens expected (estimated, {most:.2g} at most)"
    )
    if to_do:
        said += f"; {to_do:,} to do: {duration(to_do / rate)}"
    return Finding("speed", "ok", said)
