"""What is proved of a device before hours on it are paid for.

By ``etl doctor --gpu``, at the start of a GPU's process, and at the head of the captioning benchmark.  The engine is
tried with the demo's model, which ships with the program and takes a moment, in the number format that is to be used.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image, ImageDraw
from torch.nn.attention import SDPBackend

from etl.caption.model.checkpoint import one_line
from etl.caption.model.cuda import free_memory
from etl.caption.model.faults import short_of_memory
from etl.caption.model.loading import LoadedModel, load
from etl.caption.pictures.normalise import Normaliser
from etl.caption.slots.engine import SlotEngine
from etl.caption.slots.families import family_of
from etl.caption.slots.kernel_check import probe
from etl.caption.slots.kv_cache import CacheLayout
from etl.caption.slots.state import EngineConfig, Request, penalise
from etl.caption.slots.support import TOLERANCE, TOLERANCE_EPS, requests_for
from etl.caption.slots.timing import Timings
from etl.settings import DEMO_MODEL, Settings

log = logging.getLogger(__name__)

TOKENS = 12
"""Longest caption of the trial."""

PROMPTS = ("Describe the picture.", "Describe this photograph. Its title is: A harbour at night.", "Describe it.")
"""Of different lengths, and one more than there are slots, so that a slot is used again."""

_COLOURS = ((200, 30, 30), (230, 200, 40), (60, 60, 200))

_EDGE = 112
"""Of the trial's pictures, in pixels."""

PENALTY = 3.0
"""So large that it changes the demo's words."""

Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried; ``note`` costs speed or is not known, ``fail`` would cost captions."""

    name: str
    verdict: Verdict
    detail: str


def check_device(device: torch.device, dtype: torch.dtype, text_config: Any) -> Iterator[Finding]:
    """Yield what a second can prove: kernel, engine with and without penalty, allocator, attention.

    ``text_config`` is the language model's that is to caption; its heads decide which kernels serve.
    """
    served = check_kernel(device, dtype, text_config)
    yield served
    yield from check_engine(device, dtype)
    yield check_allocator(device)
    yield check_attention(device, dtype, text_config, kernel=served.verdict == "ok")


def fault_at_start(loaded: LoadedModel) -> str | None:
    """Try the device of a model that is about to caption, and log what was found in one line.

    Returns why the slot engine must not be used; ``None`` where nothing speaks against it.
    """
    begun = time.monotonic()
    found = list(check_device(loaded.device, loaded.dtype, loaded.model.config.get_text_config()))
    said = "; ".join(f"{one.name}: {one.detail}" for one in found)
    free_memory()
    log.info("tried %s in %.1f s: %s", loaded.device, time.monotonic() - begun, said)
    return next((f"{one.name}: {one.detail}" for one in found if one.verdict == "fail"), None)


def check_kernel(device: torch.device, dtype: torch.dtype, text_config: Any) -> Finding:
    """Compare the decoding kernel with double precision on a tiny case of the model's heads."""
    if device.type != "cuda":
        return Finding("kernel", "note", "not tried: it runs on GPUs alone, decoding goes through PyTorch's attention")
    layers = CacheLayout.of(text_config).layers
    kinds = {(each.heads, each.kv_heads, each.dim, each.window is not None) for each in layers}
    reasons = (
        probe(device, dtype, heads=heads, kv_heads=kv_heads, dim=dim, windowed=windowed)
        for heads, kv_heads, dim, windowed in sorted(kinds)
    )
    if (reason := next(filter(None, reasons), None)) is not None:
        return Finding(
            "kernel", "note", f"{reason}; decoding goes through PyTorch's attention, which reads more memory"
        )
    return Finding("kernel", "ok", "agrees with double precision")


def check_engine(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    """Caption with the slot engine, without and with a repetition penalty, and compare with `generate()`.

    Raises `ModelError` when the GPU is lost.
    """
    name = str(dtype).removeprefix("torch.")
    demo = load(Settings(model=DEMO_MODEL, device=str(device), dtype=name))
    for title, penalty in (("slots", 1.0), ("slots, penalised", PENALTY)):
        try:
            yield _tried(title, demo, penalty)
        except Exception as error:
            if device.type == "cuda":
                # Of a GPU that is lost nothing else can be tried.
                short_of_memory(error, device)
            log.debug("the trial of the slot engine failed", exc_info=error)
            yield Finding(title, "fail", f"{type(error).__name__}: {one_line(error)}")


def _tried(title: str, demo: LoadedModel, penalty: float) -> Finding:
    asked = [(_picture(colour), prompt) for colour, prompt in zip(_COLOURS, PROMPTS, strict=True)]
    requests = requests_for(demo, 4.0, asked, TOKENS, penalty)
    normalise = Normaliser.of(demo.processor.image_processor)
    config = EngineConfig(2, max(request.max_seq_len for request in requests), TOKENS, penalised=penalty != 1.0)
    engine = SlotEngine(demo, family_of(demo, 4.0), config, Timings(demo.device), poll=1)
    steps, finished, waiting = 0, [], list(requests)
    try:
        recorded = engine._graph is not None
        while waiting or engine.in_use:
            if waiting and engine.free:
                group, waiting = waiting[: engine.free], waiting[engine.free :]
                engine.admit(group)
            finished += engine.step()
            steps += 1
    finally:
        engine.close()
    tokens = 0
    for each in finished:
        pixels = normalise(each.request.inputs["pixels"][None].to(demo.device), demo.dtype)
        place = _first_difference(demo, each.request, each.ids, pixels)
        if place is not None or not each.finite:
            return Finding(title, "fail", f"token {(place or 0) + 1} of a trial caption is not that of generate()")
        tokens += len(each.ids)
    said = f"{tokens} tokens of {len(finished)} captions are those of generate()"
    if demo.device.type != "cuda":
        return Finding(title, "ok", said)
    if not recorded:
        return Finding(title, "note", f"{said}; without a recorded graph, so decoding waits for launches")
    return Finding(title, "ok", f"{said}; a recorded graph, replayed {steps} times")


def _picture(colour: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", (_EDGE, _EDGE), (120, 170, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, _EDGE * 2 // 3, _EDGE, _EDGE), fill=(60, 140, 60))
    draw.ellipse((_EDGE // 4, _EDGE // 4, _EDGE * 3 // 4, _EDGE * 3 // 4), fill=colour)
    return picture


@torch.inference_mode()
def _first_difference(demo: LoadedModel, request: Request, ids: list[int], pixels: torch.Tensor) -> int | None:
    """Return the index of the first token that is not the one of `generate()`; ties by rounding do not count."""
    config = demo.generation_config(TOKENS)
    config.repetition_penalty = request.penalty
    prompt = torch.tensor([request.ids], device=demo.device)
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pixel_values": pixels}
    wanted = demo.model.generate(**inputs, generation_config=config)[0, len(request.ids) :].tolist()
    if ids == wanted:
        return None
    place = next((n for n, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
    if place == min(len(ids), len(wanted)):
        return place
    # Both were written after the same words: are the two equally likely there?
    before = torch.tensor([[*request.ids, *wanted[:place]]], device=demo.device)
    logits = demo.model(input_ids=before, pixel_values=pixels).logits[:, -1].float()
    used = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, before, value=True)
    scores = penalise(logits, used, torch.tensor([request.penalty], device=demo.device))[0]
    tolerance = max(TOLERANCE, TOLERANCE_EPS * torch.finfo(demo.dtype).eps) * float(scores.abs().max().clamp(min=1.0))
    return None if float(scores[wanted[place]] - scores[ids[place]]) <= tolerance else place


def check_allocator(device: torch.device) -> Finding:
    """Say whether the allocator really grows its segments, as the variable that a process is started with asks for."""
    if device.type != "cuda":
        return Finding("allocator", "ok", "the host's")
    held = torch.empty(32 * 2**20, dtype=torch.uint8, device=device)
    grows = any(segment.get("is_expandable") for segment in torch.cuda.memory_snapshot())  # type: ignore[no-untyped-call]
    del held
    if grows:
        return Finding("allocator", "ok", "expandable segments")
    asked = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "nothing"
    return Finding("allocator", "note", f"no expandable segments (asked for: {asked[:100]}); memory may fragment")


def check_attention(device: torch.device, dtype: torch.dtype, text_config: Any, *, kernel: bool) -> Finding:
    """Say which of PyTorch's kernels a prefill takes, and which a decoding step, given whether ours serves."""
    layer = CacheLayout.of(text_config).layers[0]
    heads, kv_heads, dim = layer.heads, layer.kv_heads, layer.dim

    def chosen(rows: int, queries: int, keys: int, mask: torch.Tensor | None) -> str:
        query = torch.empty(rows, heads, queries, dim, dtype=dtype, device=device)
        key = torch.empty(rows, kv_heads, keys, dim, dtype=dtype, device=device)
        options = {"is_causal": mask is None, "enable_gqa": heads != kv_heads}
        choice = torch._fused_sdp_choice(query, key, key, mask, **options)
        return SDPBackend(choice).name.lower().replace("_", " ")

    prefill = chosen(2, 64, 64, None)
    valid = torch.ones(2, 1, 1, 64, dtype=torch.bool, device=device)
    decode = "the decoding kernel" if kernel else chosen(2, 1, 64, valid)
    slow = device.type == "cuda" and "math" in (prefill, decode)
    said = f"prefill through {prefill}, decoding through {decode}"
    return Finding(
        "attention", "note" if slow else "ok", said + ("; math is slow and takes more memory" if slow else "")
    )
