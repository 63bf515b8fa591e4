"""Against processors as they are with torchvision: run by `make test-torchvision`, in an environment that has it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.tiny_families import CHATS, FAMILIES, NEED_TORCHVISION, checkpoint

from etl.caption.model.chat import Chat
from etl.caption.model.loading import read_config
from etl.caption.model.processors import NoVideos, load_processor
from etl.demo.scenes import random_scene

pytestmark = [
    pytest.mark.torchvision,
    pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"),
]

# By name: every worker of a test run would make all models to find out.
WITH_VIDEO = [
    "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_thinking", "qwen3_5", "internvl", "gemma4",
    "smolvlm",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a maker of small checkpoints."""
    root = tmp_path_factory.mktemp("families")
    return lambda family: root / family if (root / family).is_dir() else checkpoint(family, root)


def batch(processor: Any, form: Chat) -> dict[str, Any]:
    """Return what a processor makes of pictures of several shapes."""
    import random

    rng = random.Random(5)
    pictures = [[random_scene(rng).draw(*size)] for size in ((320, 240), (224, 224), (90, 300), (700, 100))]
    texts = [form.render(f"Describe the picture{'.' * number}") for number in range(len(pictures))]
    return dict(processor(images=pictures, text=texts, padding=True, padding_side="left", return_tensors="pt"))


def test_none_is_forgotten() -> None:
    """All families whose processor has a half for videos are there."""
    assert [family for family, made in FAMILIES.items() if made().video] == WITH_VIDEO


@pytest.mark.parametrize("family", WITH_VIDEO)
def test_half_a_processor_makes_what_the_whole_makes(
    family: str, made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its half for videos, a processor gives the very tensors that transformers' own gives with Pillow."""
    folder = made(family)
    whole = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    whole.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    # As where torchvision is not installed.
    monkeypatch.setattr("etl.caption.model.processors._is_there", lambda package: package != "torchvision")
    half = load_processor(family, folder, read_config(family, folder), pad_to_square=False)
    assert isinstance(half.video_processor, NoVideos) and not isinstance(whole.video_processor, NoVideos)
    expected, found = batch(whole, Chat(whole)), batch(half, Chat(half))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name]
        assert same, name


@pytest.mark.parametrize("family", [family for family in CHATS if family not in NEED_TORCHVISION])
def test_pillow_makes_what_torchvision_makes(family: str, made: Callable[[str], Path]) -> None:
    """The pictures that Pillow prepares differ from those of the processor's own choice by rounding alone."""
    folder = made(family)
    own = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    ours = load_processor(family, folder, read_config(family, folder), pad_to_square=False)
    assert ours.image_processor.backend == "pil"
    expected, found = batch(own, Chat(own)), batch(ours, Chat(ours))
    assert expected.keys() == found.keys()
    assert torch.equal(expected["input_ids"], found["input_ids"])
    # A level of 255, normalised, is up to 0.016.
    assert float((expected["pixel_values"].float() - found["pixel_values"].float()).abs().mean()) < 0.016
