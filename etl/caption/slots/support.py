"""Whether the slot engine can drive a model: asked of its configuration first, then of a few tokens."""

import dataclasses

import torch
from PIL import Image

from etl.caption.model.loading import LoadedModel
from etl.caption.pictures.normalise import Normaliser
from etl.caption.pictures.pixels import PixelPlan
from etl.caption.slots.engine import Finished, SlotEngine
from etl.caption.slots.families import FAMILIES
from etl.caption.slots.state import EngineConfig, Request
from etl.caption.slots.timing import Timings
from etl.caption.tokens import PromptEncoder
from etl.domain.items import CaptionItem

TRIAL_TOKENS = 6
"""Tokens written and compared: the first comes from the prefill, the others from decoding steps."""

TRIAL_PROMPTS = ("Describe the picture.", "What is shown here, and where might it have been taken?")
"""Of different lengths, so that the padding of one is put to the test."""

TOLERANCE = 1e-3
TOLERANCE_EPS = 16
"""Tokens count as equally likely when their logits differ by less than this share of the larger one, by less than so
many roundings of it, or by what the model's own batches change.  A model that is driven wrongly is off by far more."""

_NOISE = 4
"""Both of two tokens may be off by what a batch changes, and by twice that in a third way to add the numbers up."""


def why_not(loaded: LoadedModel, max_seq_len: int) -> str | None:
    """Return why the slot engine cannot drive the model, in words, judging by its parts; ``None`` if nothing speaks
    against it.

    ``max_seq_len`` is the longest sequence that may be asked for.
    """
    model = loaded.model
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return f"{type(model).__name__} is not built like LLaVA-1.5"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    return family.why_not(model.config, max_seq_len)


def differs(loaded: LoadedModel, max_aspect: float) -> str | None:
    """Return how the slot engine's tokens differ from the model's own; ``None`` when they do not.

    Two prompts are answered side by side in two slots; then the model itself is asked, one sequence at a time and with
    its own attention, which token it would have chosen at each place.
    """
    requests = _trial(loaded, max_aspect)
    config = EngineConfig(slots=2, max_seq_len=max(request.max_seq_len for request in requests), limit=TRIAL_TOKENS)
    normalise = Normaliser.of(loaded.processor.image_processor)
    # Without an end, so that every token of the trial is written.
    endless = dataclasses.replace(loaded, eos=())
    engine = SlotEngine(endless, normalise, config, Timings(loaded.device), poll=1)
    try:
        engine.admit(requests)
        finished = []
        while engine.in_use:
            finished += engine.step()
    finally:
        engine.close()
    for each, alone, noise in zip(finished, *_own_logits(loaded, finished, normalise), strict=True):
        if (place := _first_difference(each.ids, alone, noise, loaded.dtype)) is not None:
            return f"token {place + 1} of a trial caption is not the model's own"
    return None


def _trial(loaded: LoadedModel, max_aspect: float) -> list[Request]:
    plan = PixelPlan.of(loaded.processor.image_processor, max_aspect)
    encoder = PromptEncoder(loaded.processor, TRIAL_TOKENS, loaded.context)
    size = (plan.crop_width, plan.crop_height)
    ramp = Image.linear_gradient("L").resize(size)
    picture = Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.ROTATE_90), Image.new("L", size, 90)))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(size[1], size[0], 3)
    return [
        Request(CaptionItem(number, "", prompt), encoder.encode(prompt).ids, pixels, TRIAL_TOKENS)
        for number, prompt in enumerate(TRIAL_PROMPTS)
    ]


@torch.inference_mode()
def _own_logits(
    loaded: LoadedModel, finished: list[Finished], normalise: Normaliser
) -> tuple[list[torch.Tensor], list[float]]:
    """Return the model's own logits for the tokens of each caption, and how far they are off in a batch of all."""
    device = loaded.device
    rows = [torch.tensor([*each.request.ids, *each.ids], device=device) for each in finished]
    pixels = normalise(torch.stack([each.request.pixels for each in finished]).to(device), loaded.dtype)
    # Padded on the right: no causal row sees it.
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=loaded.pad)
    together = loaded.model(input_ids=padded, pixel_values=pixels).logits
    found: tuple[list[torch.Tensor], list[float]] = ([], [])
    for number, (each, row) in enumerate(zip(finished, rows, strict=True)):
        own = slice(len(each.request.ids) - 1, len(row) - 1)
        alone = loaded.model(input_ids=row[None], pixel_values=pixels[number : number + 1]).logits[0, own].float()
        found[0].append(alone)
        found[1].append(float((alone - together[number, own].float()).abs().max()))
    return found


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
