"""Loads a model's processor: what makes tensors of pictures and prompts.

Of a processor for pictures and videos the half for videos is left out where it cannot be had: it needs torchvision,
pictures do not.
"""

import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

from etl.caption.model.checkpoint import one_line
from etl.caption.model.files import MAX_TEMPLATE, VOCABULARIES
from etl.caption.model.native import PROMPTS
from etl.caption.model.repository_code import instead_of
from etl.errors import ModelError
from etl.extras import installer
from etl.text import clean

log = logging.getLogger(__name__)

LLAVA_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The conversation format of LLaVA-1.5, for snapshots from before chat templates were shipped."""

_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")

_EXTRA = ("num2words", "torchvision")
"""Packages that some processors need, and that the project does without."""

_LOCAL = {"local_files_only": True, "trust_remote_code": False}

_VIDEO = "video_processor"

_LOADERS = {
    "feature_extractor": transformers.AutoFeatureExtractor,
    "image_processor": transformers.AutoImageProcessor,
    "tokenizer": transformers.AutoTokenizer,
}


def load_processor(name: str, folder: Path, config: Any, *, pad_to_square: bool) -> Any:
    """Return the processor of a checkpoint whose configuration was vetted, with the PIL image processor.

    Raises `ModelError`, with what to type where a package is missing.
    """
    if pad_to_square and config.model_type != "llava":
        raise ModelError(f"{name} is no LLaVA-1.5 model; only its pictures can be padded: leave --pad-to-square out")
    if absent := _absent(folder):
        raise ModelError(
            f"{name} has no {absent}: it was saved without its processor; copy the small files of the model that it "
            "was made from beside it"
        )
    try:
        processor = _llava(folder, config) if config.model_type == "llava" else _whole_or_pictures(folder, config)
        if getattr(processor.image_processor, "backend", None) != "pil":
            processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **_LOCAL)
        if pad_to_square:
            processor.image_processor = transformers.LlavaImageProcessorPil.from_pretrained(
                folder, do_pad=True, local_files_only=True
            )
    # What transformers raises for files that it cannot make sense of has no common class.
    except Exception as error:
        raise ModelError(_why(name, folder, config.model_type, error)) from error
    if config.model_type not in PROMPTS:
        # Some repositories have it in the tokenizer's configuration alone.
        processor.chat_template = processor.chat_template or getattr(processor.tokenizer, "chat_template", None)
    if len(str(processor.chat_template)) > MAX_TEMPLATE:
        raise ModelError(f"the chat template of {name} is longer than {MAX_TEMPLATE:,} characters; is it damaged?")
    if not processor.chat_template and config.model_type not in PROMPTS:
        raise ModelError(f"{name} has no chat template, so it is not a chat model; use an instruction-tuned one")
    return processor


def _whole_or_pictures(folder: Path, config: Any) -> Any:
    kind = _processor_class(folder, config)
    if kind is None:
        raise ValueError(f"transformers has none for {config.model_type} models; use one that answers prompts")
    # Without torchvision, a class that needs it is a stand-in, which says so when it is used.
    if _is_there("torchvision") or getattr(kind, "_backends", None) or _VIDEO not in kind.get_attributes():
        return transformers.AutoProcessor.from_pretrained(folder, **_LOCAL)
    try:
        return _pictures_only(kind, folder)
    except (AttributeError, LookupError, TypeError) as error:
        # It asks its other half for something before there is a picture.
        raise ImportError(f"{kind.__name__} requires torchvision") from error


def _processor_class(folder: Path, config: Any) -> Any:
    """Return the class that a checkpoint's files name, or that its configuration stands for."""
    for file in _NAMED_IN:
        path = folder / file
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if named := found.get("processor_class"):
            return processor_class_from_name(named)
    return PROCESSOR_MAPPING.get(type(config), None)


class NoVideos(dict[str, Any]):
    """Stands where a processor has what takes videos: some ask for its settings also where there is none, and a
    processor describes itself in JSON.
    """

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _pictures_only(kind: Any, folder: Path) -> Any:
    """Return a checkpoint's processor of this class without the half that takes videos."""

    class PicturesOnly(kind):  # type: ignore[misc]  # made of a class of transformers
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == _VIDEO and argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    PicturesOnly.__name__ = kind.__name__
    parts = [
        None if part == _VIDEO else _LOADERS[part].from_pretrained(folder, **_LOCAL) for part in kind.get_attributes()
    ]
    described, _ = kind.get_processor_dict(folder, **_LOCAL)
    processor = PicturesOnly.from_args_and_dict(parts, described)
    processor.video_processor = NoVideos()
    return processor


def _llava(folder: Path, config: Any) -> Any:
    """Return the processor of a LLaVA model; what old snapshots lack is taken from config.json.

    Pixtral is of this kind, too, and has a processor of its own.
    """
    clip = config.vision_config.model_type == "clip_vision_model"
    try:
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, **_LOCAL)
    except Exception as error:
        if not clip:
            raise
        log.debug("building the processor from config.json: %s", error)
        processor = None
    if clip and not isinstance(processor, transformers.LlavaProcessor):
        processor = transformers.LlavaProcessor(
            image_processor=transformers.CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL),
        )
    if not isinstance(processor, transformers.LlavaProcessor):
        return processor
    processor.patch_size = processor.patch_size or config.vision_config.patch_size
    processor.vision_feature_select_strategy = (
        processor.vision_feature_select_strategy or config.vision_feature_select_strategy
    )
    if clip:
        processor.num_additional_image_tokens = 1
    processor.chat_template = processor.chat_template or LLAVA_CHAT_TEMPLATE
    return processor


def _absent(folder: Path) -> str:
    """Return which file of those that every processor needs is not there; empty if none."""
    if not any((folder / file).is_file() for file in VOCABULARIES):
        return "tokenizer.json"
    # It may hold all parts of a processor.
    whole = folder / "processor_config.json"
    described = (folder / "preprocessor_config.json").is_file() or (
        whole.is_file() and b"image_processor" in whole.read_bytes()
    )
    return "" if described else "preprocessor_config.json"


def _why(name: str, folder: Path, kind: str, error: Exception) -> str:
    """Return why a processor cannot be loaded: what is to be installed or used instead, where that is all."""
    said = str(error).lower()
    if "trust_remote_code" in said:
        return f"{name} needs code from its own repository, which is never run; use {instead_of(kind)}"
    if "operator torchvision::" in said:
        command = install_beside_torch(["--force-reinstall", "torchvision"], torch.__version__)
        return f"the torchvision that is installed does not fit torch {torch.__version__}; type: {command}"
    missing = [package for package in _EXTRA if package in said and not _is_there(package)]
    if not missing:
        damaged = next((path.name for path in sorted(folder.glob("*.json")) if not _is_json(path)), None)
        whose = f"the {clean(damaged, 100)} of {name} is damaged; fetch it again" if damaged else ""
        return whose or f"the processor of {name} cannot be loaded: {one_line(error)}"
    packages = " and ".join(missing)
    return f"{name} needs {packages} for its pictures; type: {install_beside_torch(missing, torch.__version__)}"


def install_beside_torch(packages: list[str], version: str) -> str:
    """Return the command that installs packages and leaves torch, of this version, as it is."""
    if "torchvision" not in packages:
        return f"{installer()} {' '.join(packages)}"
    release, _, build = version.partition("+")
    # Without its own release named, pip might bring another torch along.
    command = f"{installer()} {' '.join(packages)} torch=={release}"
    if not re.fullmatch(r"cpu|cu\d+|rocm[\d.]+|xpu", build):
        return command
    return f"{command} --extra-index-url https://download.pytorch.org/whl/{build}"


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
