"""Loads a vision-language model and its processor, from the hub, a directory or the shipped demo checkpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from etl.caption.model.checkpoint import find_checkpoint, one_line
from etl.caption.model.device import choose_device, choose_dtype
from etl.caption.model.files import MAX_TEMPLATE
from etl.caption.model.vetting import vet
from etl.caption.recipe import Recipe, text_sha256
from etl.errors import ModelError
from etl.settings import Settings

log = logging.getLogger(__name__)

LLAVA_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The conversation format of LLaVA-1.5, for snapshots from before chat templates were shipped."""

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

    def generation_config(self, max_new_tokens: int) -> GenerationConfig:
        """Return greedy decoding, free of the sampling defaults that some checkpoints ship."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=list(self.eos),
            pad_token_id=self.pad,
        )

    def recipe(self, settings: Settings, *, engine: str, longest_edge: int | None = None) -> Recipe:
        """Return the recipe under these settings; ``longest_edge`` is the working copies', in pixels."""
        images = self.processor.image_processor
        described = images.to_dict()
        preprocessing = {name: _jsonable(described[name]) for name in _IMAGE_SETTINGS if name in described}
        preprocessing |= {
            "backend": getattr(images, "backend", "unknown"),
            "longest_edge": settings.longest_edge if longest_edge is None else longest_edge,
            "max_aspect": settings.max_aspect,
        }
        generation = {
            "max_new_tokens": settings.max_new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "eos": list(self.eos),
            "chat_template_sha256": text_sha256(str(self.processor.chat_template)),
        }
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
    processor = _processor(name, folder, config, pad_to_square=settings.pad_to_square)
    model = _model(name, folder, device, dtype, _device_map(settings) if spread else {})
    if spread:
        device = model.device
    eos = _token_ids(model.generation_config.eos_token_id) or _token_ids(processor.tokenizer.eos_token_id)
    if not eos:
        raise ModelError(f"{name} names no end-of-sequence token; its captions would never end")
    pad = processor.tokenizer.pad_token_id
    model.generation_config = GenerationConfig()
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
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
    )
    log.info("loaded %s@%s as %s on %s", name, revision, dtype, device)
    return loaded


def read_config(name: str, folder: Path) -> Any:
    """Return the configuration of a checkpoint of this name, vetted before.  Raises `ModelError`."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except FileNotFoundError as error:
        raise ModelError(f"{name} has no config.json, so it is not a transformers model") from error
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"the config.json of {name} cannot be read: {one_line(error)}") from error
    if kind not in transformers.CONFIG_MAPPING:
        if "auto_map" in raw:
            raise ModelError(f"{name} needs code from its own repository, which is never run; use a LLaVA model")
        raise ModelError(f"{name} is of a kind that transformers {transformers.__version__} does not know: {kind}")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOADING_FAULTS as error:
        raise ModelError(f"the config.json of {name} is faulty: {one_line(error)}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(f"{name} is a {kind} model, which cannot describe pictures; use a LLaVA model")
    return config


def _processor(name: str, folder: Path, config: Any, *, pad_to_square: bool) -> Any:
    if pad_to_square and config.model_type != "llava":
        raise ModelError(f"{name} is no LLaVA-1.5 model; only its pictures can be padded: leave --pad-to-square out")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        if config.model_type == "llava":
            processor = _llava_processor(folder, config, local)
        else:
            processor = transformers.AutoProcessor.from_pretrained(folder, **local)
        if getattr(processor.image_processor, "backend", None) != "pil":
            processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
        if pad_to_square:
            processor.image_processor = transformers.LlavaImageProcessorPil.from_pretrained(
                folder, do_pad=True, local_files_only=True
            )
    except _LOADING_FAULTS as error:
        raise ModelError(f"the processor of {name} cannot be loaded: {one_line(error)}") from error
    if len(str(processor.chat_template)) > MAX_TEMPLATE:
        raise ModelError(f"the chat template of {name} is longer than {MAX_TEMPLATE:,} characters; is it damaged?")
    if not processor.chat_template:
        raise ModelError(f"{name} has no chat template, so it is not a chat model; use an instruction-tuned one")
    return processor


def _llava_processor(folder: Path, config: Any, local: dict[str, bool]) -> Any:
    """Return the LLaVA processor; what old snapshots lack is taken from config.json."""
    clip = config.vision_config.model_type == "clip_vision_model"
    try:
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, **local)
    except _LOADING_FAULTS as error:
        if not clip:
            raise
        log.debug("building the processor from config.json: %s", error)
        processor = None
    if not isinstance(processor, transformers.LlavaProcessor):
        processor = transformers.LlavaProcessor(
            image_processor=transformers.CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder, **local),
        )
    processor.patch_size = processor.patch_size or config.vision_config.patch_size
    processor.vision_feature_select_strategy = (
        processor.vision_feature_select_strategy or config.vision_feature_select_strategy
    )
    if clip:
        processor.num_additional_image_tokens = 1
    processor.chat_template = processor.chat_template or LLAVA_CHAT_TEMPLATE
    return processor


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
        raise ModelError(f"{name} cannot be loaded: {one_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"the weights of {name} are incomplete: {len(missing)} are missing, such as {missing[0]}")
    try:
        return model.eval() if placement else model.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name} as {str(dtype).removeprefix('torch.')} does not fit into the memory of {device}; "
            "use --dtype float16, a smaller model or a larger GPU"
        ) from error


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
