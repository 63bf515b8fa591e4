"""Whether the slot engine can drive a model: asked of its structure first, then of a few tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from etl.caption.model.loading import LoadedModel
from etl.caption.slots.engine import Finished, SlotEngine
from etl.caption.slots.families import adapter_of, family_of
from etl.caption.slots.state import EngineConfig, Request
from etl.caption.slots.timing import Timings
from etl.caption.tokens import PromptEncoder
from etl.domain.items import CaptionItem

TRIAL_TOKENS = 6
"""Tokens written and compared: the first comes from the prefill, the others from decoding steps."""

TRIAL_PROMPTS = ("Describe the picture.", "What is shown here, and where might it have been taken?")
"""Of different lengths, so that the padding of one is put to the test."""

TRIAL_SIZES = ((480, 320), (300, 400))
"""Of different aspects, which many models give different numbers of tokens.  Pixels."""

_TRIAL = ((0, 0), (1, 1), (0, 1))
"""Picture and prompt of each trial caption; two are about one picture, which many families then see once."""

TOLERANCE = 1e-3
TOLERANCE_EPS = 16
"""Tokens count as equally likely when their logits differ by less than this share of the larger one, by less than so
many roundings of it, or by what the model's own batches change.  A model that is driven wrongly is off by far more."""

_NOISE = 4
"""Both of two tokens may be off by what a batch changes, and by twice that in a third way to add the numbers up."""


def why_not(loaded: LoadedModel) -> str | None:
    """Return why the slot engine cannot drive the model, in words, judging by its structure; ``None`` if nothing
    speaks against it.
    """
    model = loaded.model
    if loaded.native is not None:
        return "it captions without being asked, which slots do not"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    return adapter_of(model.config).why_not(model)


def differs(loaded: LoadedModel, max_aspect: float) -> str | None:
    """Return how the slot engine's tokens differ from those of the model's own `generate()`; ``None`` if they do not.

    Two pictures of different aspects are asked about, side by side; then `generate()` is led along the same tokens, one
    caption at a time, and asked which it would have chosen at each place.
    """
    requests = trial_requests(loaded, max_aspect)
    longest = max(request.max_seq_len for request in requests)
    config = EngineConfig(slots=len(requests), max_seq_len=longest, limit=TRIAL_TOKENS)
    # Without an end, so that every token of the trial is written.
    endless = dataclasses.replace(loaded, eos=())
    engine = SlotEngine(endless, family_of(endless, max_aspect), config, Timings(loaded.device), poll=1)
    try:
        engine.admit(requests)
        finished: list[Finished] = []
        while engine.in_use:
            finished += engine.step()
    finally:
        engine.close()
    for each, alone, noise in zip(finished, *_own_logits(loaded, finished), strict=True):
        if (place := _first_difference(each.ids, alone, noise, loaded.dtype)) is not None:
            return f"token {place + 1} of a trial caption is not the model's own"
    return None


def trial_requests(loaded: LoadedModel, max_aspect: float) -> list[Request]:
    """Return requests for the trial's pictures and prompts."""
    asked = [(_picture(*TRIAL_SIZES[picture]), TRIAL_PROMPTS[prompt]) for picture, prompt in _TRIAL]
    requests = requests_for(loaded, max_aspect, asked, TRIAL_TOKENS)
    named = [dataclasses.replace(each.item, working_sha256=f"trial {_TRIAL[each.item.id][0]}") for each in requests]
    return [dataclasses.replace(each, item=item) for each, item in zip(requests, named, strict=True)]


def requests_for(
    loaded: LoadedModel,
    max_aspect: float,
    asked: Sequence[tuple[Image.Image, str]],
    limit: int,
    penalty: float | None = None,
) -> list[Request]:
    """Return requests for pictures and prompts, numbered from 0, made in this process."""
    encoder = PromptEncoder(loaded.processor, limit, loaded.context)
    family = family_of(loaded, max_aspect)
    plan, requests = family.plan(encoder), []
    for number, (picture, prompt) in enumerate(asked):
        encoded = encoder.encode(prompt)
        item = CaptionItem(number, "", prompt, repetition_penalty=penalty)
        requests.append(family.request(item, encoded, plan.prepare(picture, encoded.text), limit))
    return requests


def _picture(width: int, height: int) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.ROTATE_180), Image.new("L", ramp.size, 90)))


class _Led(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Lets `generate()` choose the tokens that it is given, [rows, tokens]."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._steps = iter(tokens.T)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return torch.full_like(scores, -torch.inf).scatter_(1, next(self._steps)[:, None], 0.0)


def _own_logits(loaded: LoadedModel, finished: list[Finished]) -> tuple[list[torch.Tensor], list[float]]:
    """Return the model's own logits for the tokens of each caption, and how far they are off in a batch of all."""
    together = _led_along(loaded, finished)
    alone = [_led_along(loaded, [each])[0] for each in finished]
    return alone, [float((one - many).abs().max()) for one, many in zip(alone, together, strict=True)]


@torch.inference_mode()
def _led_along(loaded: LoadedModel, finished: list[Finished]) -> torch.Tensor:
    """Return the logits of `generate()` on its way along the captions, [captions, tokens, vocab_size]."""
    encoder = PromptEncoder(loaded.processor, TRIAL_TOKENS, loaded.context)
    inputs: dict[str, Any] = loaded.processor(
        images=[[_picture(*TRIAL_SIZES[_TRIAL[each.request.item.id][0]])] for each in finished],
        text=[encoder.encode(each.request.item.prompt).text for each in finished],
        add_special_tokens=encoder.add_special_tokens,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(loaded.device, loaded.dtype)
    tokens = torch.tensor([each.ids for each in finished], device=loaded.device)
    config = loaded.generation_config(TRIAL_TOKENS)
    config.eos_token_id = None
    config.output_logits = config.return_dict_in_generate = True
    led = LogitsProcessorList([_Led(tokens)])
    found = loaded.model.generate(**inputs, generation_config=config, logits_processor=led)
    return torch.stack(found.logits, 1).float()


def _first_difference(ids: list[int], alone: torch.Tensor, noise: float, dtype: torch.dtype) -> int | None:
    """Return the index of the first token that the model would not have chosen; ties by rounding do not count.

    ``alone``, [tokens, vocab_size], are its own logits, ``noise`` what a batch of its own changed in them.
    """
    best = alone.max(-1).values
    chosen = alone.gather(-1, torch.tensor(ids, device=alone.device)[:, None])[:, 0]
    share = max(TOLERANCE, TOLERANCE_EPS * torch.finfo(dtype).eps)
    tolerance = (share * best.abs().clamp(min=1.0)).clamp(min=_NOISE * noise)
    # Each token is judged after those that were really written, so one that rounding decided decides no other.
    wrong = ~(best - chosen <= tolerance)
    return int(wrong.nonzero()[0, 0]) if bool(wrong.any()) else None
