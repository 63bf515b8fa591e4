"""Loads a vision-language model and its processor, from the hub, a directory or the shipped demo checkpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from etl.caption.model.chat import Chat
from etl.caption.model.checkpoint import find_checkpoint, one_line
from etl.caption.model.device import choose_device, choose_dtype
from etl.caption.model.files import INDEX
from etl.caption.model.forms import other_form
from etl.caption.model.native import PROMPTS, native_text
from etl.caption.model.processors import load_processor
from etl.caption.model.repository_code import instead_of, needs_own_code
from etl.caption.model.resolution import LONGEST_SHAPE, keeps_shape, limit_pixels
from etl.caption.model.templates import arguments, with_arguments
from etl.caption.model.vetting import vet
from etl.caption.recipe import Recipe, text_sha256
from etl.errors import ModelError
from etl.settings import Settings
from etl.text import clean

log = logging.getLogger(__name__)

_LOADING_FAULTS = (Exception,)
"""What transformers raises for a checkpoint that it cannot load: a configuration may hold anything, and so divides by
zero in one layer and fails a check of types in another."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to caption.

    Attributes:
        name: for the recipe: Hugging Face id, directory name or ``demo``.
        revision: commit on the hub, or ``sha256:`` and 16 hex digits over a directory's files.
        model: in evaluation mode, on ``device``, its weights in ``dtype``.
        processor: with the PIL image processor.
        context: limit in tokens for prompt, picture and caption together; ``None`` when the model names none.
        eos: token ids that end a caption.
        pad: token id that fills shorter rows.
        begins: token ids that an encoder-decoder's captions begin with; of other models none.
        template_arguments: what the chat template was given (`etl.caption.model.templates`).
        native: what a captioner without a chat is asked (`etl.caption.model.native`); ``None`` for a chat model.
    """

    name: str
    revision: str
    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    context: int | None
    eos: tuple[int, ...]
    pad: int
    begins: tuple[int, ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    native: str | None = None

    def generation_config(self, max_new_tokens: int) -> GenerationConfig:
        """Return greedy decoding, free of the sampling defaults that some checkpoints ship."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=list(self.eos),
            pad_token_id=self.pad,
            decoder_start_token_id=self.begins[0] if self.begins else None,
        )

    def max_aspect(self, settings: Settings) -> float:
        """Return the ratio beyond which pictures are cropped around their centre before the model sees them."""
        asked = settings.max_aspect
        return max(asked, LONGEST_SHAPE) if keeps_shape(self.processor.image_processor) else asked

    def recipe(self, settings: Settings, *, engine: str, longest_edge: int | None = None) -> Recipe:
        """Return the recipe under these settings; ``longest_edge`` is the working copies', in pixels."""
        images = self.processor.image_processor
        described = images.to_dict()
        preprocessing = {name: _jsonable(described[name]) for name in _IMAGE_SETTINGS if name in described}
        preprocessing |= {
            "backend": getattr(images, "backend", "unknown"),
            "longest_edge": settings.longest_edge if longest_edge is None else longest_edge,
            "max_aspect": self.max_aspect(settings),
        }
        generation = {
            "max_new_tokens": settings.max_new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "eos": list(self.eos),
            "chat_template_sha256": text_sha256(str(self.processor.chat_template)),
        }
        if self.template_arguments:
            generation["chat_template_arguments"] = dict(self.template_arguments)
        if self.native is not None:
            generation["native_prompt"] = self.native
        elif (form := Chat(self.processor).form) != "parts":
            generation["chat_content"] = form
        dtype = str(self.dtype).removeprefix("torch.")
        return Recipe(
            model=self.name,
            revision=self.revision,
            engine=engine,
            dtype=dtype,
            preprocessing=preprocessing,
            generation=generation,
        )


_FOR_WEIGHTS = 0.85
"""Share of each GPU's memory that a divided model may fill; the rest is for captions."""

_IMAGE_SETTINGS = (
    "image_processor_type", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "pad_size",
    "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "image_grid_pinpoints",
    # Of those that see pictures in many sizes.
    "patch_size", "merge_size", "temporal_patch_size", "crop_to_patches", "min_patches", "max_patches",
    "do_image_splitting", "max_image_size", "max_image_tiles", "max_soft_tokens", "pooling_kernel_size", "tile_size",
    "min_tiles", "max_tiles", "use_thumbnail", "min_image_tokens", "max_image_tokens", "max_num_patches",
    "do_pan_and_scan", "pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops", "pan_and_scan_min_ratio_to_activate",
)  # fmt: skip


def load(settings: Settings, *, spread: bool = False) -> LoadedModel:
    """Load ``settings.model`` at ``settings.revision`` onto ``settings.device``.

    With ``spread``, accelerate divides its layers among all GPUs that are visible.

    Only safetensors weights are read, and no code of the repository is run.  Raises `ModelError`, with one
    line that says what is wrong and what to do.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    device = choose_device(settings.device, settings.model)
    checkpoint = find_checkpoint(settings.model, settings.revision)
    name, folder = checkpoint.name, checkpoint.folder
    vet(checkpoint)
    config = read_config(name, folder)
    checkpoint.with_weights()
    dtype = choose_dtype(settings.dtype, device, folder)
    revision = checkpoint.revision()
    processor = load_processor(name, folder, config, pad_to_square=settings.pad_to_square)
    limit_pixels(name, processor.image_processor, settings.model_min_pixels, settings.model_max_pixels)
    given, native = _asked(name, config, processor, settings)
    model = _model(name, folder, device, dtype, _device_map(settings) if spread else {})
    if spread:
        device = model.device
    eos = _eos(config, model.generation_config) or _token_ids(processor.tokenizer.eos_token_id)
    if not eos:
        raise ModelError(f"{name} names no end-of-sequence token; its captions would never end")
    pad = processor.tokenizer.pad_token_id
    begins = _begins(config, model.generation_config)
    model.generation_config = GenerationConfig()
    # An encoder's prompt takes no room from what its decoder writes.
    context = None if begins else getattr(config.get_text_config(), "max_position_embeddings", None)
    loaded = LoadedModel(
        name=name,
        revision=revision,
        model=model,
        processor=processor,
        device=device,
        dtype=dtype,
        context=context,
        eos=eos,
        pad=eos[0] if pad is None else pad,
        begins=begins,
        template_arguments=given,
        native=native,
    )
    log.info("loaded %s@%s as %s on %s", name, revision, dtype, device)
    return loaded


def _asked(name: str, config: Any, processor: Any, settings: Settings) -> tuple[dict[str, Any], str | None]:
    """Write arguments into the chat template; return them, and what a model without one is asked."""
    if processor.chat_template:
        if settings.native_prompt:
            raise ModelError(f"{name} answers the prompts of records by its chat template; leave --native-prompt out")
        if isinstance(processor.chat_template, dict):
            several = processor.chat_template
            processor.chat_template = several.get("default") or next(iter(several.values()))
        given = arguments(name, processor.chat_template, settings.chat_template_arg)
        processor.chat_template = with_arguments(processor.chat_template, given)
        return given, None
    if settings.chat_template_arg:
        raise ModelError(f"{name} has no chat template that could take arguments; leave --chat-template-arg out")
    native = native_text(config.model_type, processor, settings.native_prompt)
    words = settings.native_prompt or PROMPTS[config.model_type]
    asked = f"is asked {clean(words, 100)!r}" if words else "is given to it without words"
    log.warning("%s has no chat template: every picture %s, whatever the prompts of records say", name, asked)
    return {}, native


def _eos(config: Any, generation: GenerationConfig) -> tuple[int, ...]:
    # BLIP's own generation ends at this token, whatever it is configured to end at.
    if config.model_type == "blip":
        return _token_ids(config.text_config.sep_token_id)
    return _token_ids(generation.eos_token_id)


def _begins(config: Any, generation: GenerationConfig) -> tuple[int, ...]:
    text = config.get_text_config()
    if not (config.is_encoder_decoder or getattr(text, "is_encoder_decoder", False)):
        return ()
    start = generation.decoder_start_token_id
    start = getattr(text, "decoder_start_token_id", None) if start is None else start
    return tuple(token for token in (start, generation.forced_bos_token_id) if token is not None)


def read_config(name: str, folder: Path) -> Any:
    """Return the configuration of a checkpoint of this name, vetted before.  Raises `ModelError`."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except FileNotFoundError as error:
        other = other_form(name, folder)
        raise ModelError(other or f"{name} has no config.json, so it is not a transformers model") from error
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"the config.json of {name} cannot be read: {one_line(error)}") from error
    known = kind in transformers.CONFIG_MAPPING
    if needs_own_code(raw, known):
        raise ModelError(f"{name} needs code from its own repository, which is never run; use {instead_of(kind)}")
    if not known:
        raise ModelError(
            f"{name} is of a kind that transformers {transformers.__version__} does not know: {clean(str(kind), 100)}; "
            f"use {instead_of(kind)}"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOADING_FAULTS as error:
        raise ModelError(f"the config.json of {name} is faulty: {one_line(error)}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(f"{name} is a {kind} model, which cannot describe pictures; use {instead_of(kind)}")
    return config


def _device_map(settings: Settings) -> dict[str, Any]:
    """Return what makes transformers divide a model, within the share of each GPU's memory that may be used."""
    shares: dict[int | str, int] = {
        gpu: round(torch.cuda.get_device_properties(gpu).total_memory * settings.gpu_memory_fraction * _FOR_WEIGHTS)
        for gpu in range(torch.cuda.device_count())
    }
    # Without an entry for the host, nothing is put there: it would be copied to a GPU for each token.
    return {"device_map": "auto", "max_memory": shares}


def _model(name: str, folder: Path, device: torch.device, dtype: torch.dtype, placement: Mapping[str, Any]) -> Any:
    try:
        model, found = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **placement,
        )
    except SafetensorError as error:
        raise ModelError(f"the weights of {name} are corrupt: {one_line(error)}; fetch them again") from error
    except _LOADING_FAULTS as error:
        said = one_line(error)
        raise ModelError(_other_weights(name, folder, said) or f"{name} cannot be loaded: {said}") from error
    if missing := sorted(found["missing_keys"]):
        said = f"{len(missing)} are missing, such as {missing[0]}"
        raise ModelError(_other_weights(name, folder, said) or f"the weights of {name} are incomplete: {said}")
    try:
        return model.eval() if placement else model.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name} as {str(dtype).removeprefix('torch.')} does not fit into the memory of {device}; "
            "use --dtype float16, a smaller model or a larger GPU"
        ) from error


def _other_weights(name: str, folder: Path, said: str) -> str:
    """Return what weights that cannot be loaded are instead, and what to do; empty where nothing tells."""
    if not any((folder / file).is_file() for file in ("model.safetensors", INDEX)):
        other = other_form(name, folder)
        return other or f"{name} has neither model.safetensors nor the {INDEX} for weights in several files; fetch it"
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if raw.get("quantization_config") or raw.get("quantization"):
        return f"{name} is quantised; use --backend vllm, or what it was made from (what was said: {said})"
    if "ignore_mismatched_sizes" in said:
        return f"the weights of {name} have other shapes than its config.json says; fetch both again"
    return ""


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int | float | str) or value is None:
        return value
    if hasattr(value, "items"):
        return {key: _jsonable(entry) for key, entry in value.items() if entry is not None}
    return [_jsonable(entry) for entry in value]
