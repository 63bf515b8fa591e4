"""Loading: what is wrong with a model is said in one line, and nothing unsafe is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caption.conftest import Scenes
from safetensors.torch import load_file, save_file

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.caption.model.files import INDEX
from etl.caption.model.loading import LoadedModel, load
from etl.caption.slots.support import why_not
from etl.caption.tokens import PromptEncoder
from etl.errors import ModelError
from etl.settings import Settings

MakeSettings = Callable[..., Settings]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the shipped checkpoint that a test may damage."""
    return shutil.copytree(DEMO_CHECKPOINT, tmp_path / "my-llava", ignore=shutil.ignore_patterns("*.md"))


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file, or remove them when the value is ``None``."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_demo(loaded: LoadedModel) -> None:
    """The shipped checkpoint loads in float32 on the CPU, with the PIL backend and a hash as its revision."""
    assert (loaded.name, loaded.device.type, loaded.dtype) == ("demo", "cpu", torch.float32)
    assert loaded.revision.startswith("sha256:")
    assert len(loaded.revision) == len("sha256:") + 16
    assert loaded.processor.image_processor.backend == "pil"
    assert loaded.context == 1024


def test_automatic_dtype(settings: MakeSettings) -> None:
    """``auto`` on a CPU is float32, whatever the checkpoint says; a named type is obeyed."""
    assert load(settings(dtype="auto")).model.dtype == torch.float32
    assert load(settings(dtype="bfloat16")).model.dtype == torch.bfloat16


def test_directories_are_named_and_hashed(copy: Path, settings: MakeSettings, loaded: LoadedModel) -> None:
    """A directory's recipe has its name, not its path, and its hash changes with any weight or configuration."""
    first = load(settings(model=str(copy)))
    assert (first.name, first.revision) == ("my-llava", loaded.revision)
    weights = load_file(copy / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    second = load(settings(model=str(copy)))
    change_json(copy / "generation_config.json", temperature=0.5)
    third = load(settings(model=str(copy)))
    assert len({first.revision, second.revision, third.revision}) == 3


def test_hub_cache_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: MakeSettings, loaded: LoadedModel
) -> None:
    """A cached hub model loads offline at its commit; one that is not cached is said to be so."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(DEMO_CHECKPOINT, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    cached = load(settings(model="someone/tiny"))

    recipe = cached.recipe(settings(), engine="generate")
    assert recipe.source == f"someone/tiny@{commit}"
    assert recipe.generation == loaded.recipe(settings(), engine="generate").generation
    with pytest.raises(ModelError, match=r"not .* in the local cache"):
        load(settings(model="someone/else"))
    with pytest.raises(ModelError, match=r"not .* in the local cache"):
        load(settings(model="someone/tiny", revision="other"))


def damage(name: str) -> Callable[[Path], object]:
    """Return what turns a good checkpoint into one with the named fault."""
    kinds: dict[str, Callable[[Path], object]] = {
        "no config": lambda folder: (folder / "config.json").unlink(),
        "config is no JSON": lambda folder: (folder / "config.json").write_text("{"),
        "config is a list": lambda folder: (folder / "config.json").write_text("[]"),
        "unknown kind": lambda folder: change_json(folder / "config.json", model_type="ours"),
        "remote code": lambda folder: change_json(
            folder / "config.json", model_type="ours", auto_map={"AutoConfig": "code.OurConfig"}
        ),
        "text only": lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "pickles": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "garbage": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
        "cut": lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-1000]
        ),
        "incomplete": lambda folder: save_file(
            dict(list(load_file(folder / "model.safetensors").items())[1:]), folder / "model.safetensors",
            metadata={"format": "pt"},
        ),
        "other shapes": lambda folder: change_json(
            folder / "config.json", text_config=json.loads((folder / "config.json").read_text())["text_config"]
            | {"intermediate_size": 64},
        ),
        "no tokenizer": lambda folder: [path.rename(path.with_suffix(".gone")) for path in folder.glob("tokenizer*")],
        "no image processor": lambda folder: (folder / "processor_config.json").unlink(),
        "cut tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "trunc'),
        "pointer": lambda folder: (folder / "model.safetensors").write_text(POINTER),
        "small pointer": lambda folder: (folder / "tokenizer.json").write_text(POINTER),
        "a part is missing": lambda folder: divide(folder).unlink(),
        "no index": lambda folder: (divide(folder).parent / INDEX).unlink(),
        "bad index": lambda folder: (folder / INDEX).write_text('{"weight_map": [1]}'),
        "unknown quantisation": lambda folder: change_json(
            without_tensors(folder) / "config.json", quantization_config={"quant_method": "q9"}
        ),
        "mlx": lambda folder: change_json(
            folder / "config.json", quantization={"bits": 4}, vision_config=json.loads(
                (folder / "config.json").read_text())["vision_config"] | {"intermediate_size": 64},
        ),
        "adapter": lambda folder: adapter(emptied(folder)),
        "adapter beside": lambda folder: adapter(folder),
        "llama.cpp": lambda folder: (emptied(folder) / "model-q4.gguf").touch(),
        "llama.cpp beside": lambda folder: (folder / "model.safetensors").rename(folder / "q4.gguf"),
        "draws": lambda folder: (emptied(folder) / "model_index.json").write_text("{}"),
        "one too high": lambda folder: shutil.copytree(DEMO_CHECKPOINT, emptied(folder) / "snapshots" / "ab"),
    }  # fmt: skip
    return kinds[name]


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"


def emptied(folder: Path) -> Path:
    """Return the folder without its files."""
    for path in folder.iterdir():
        path.unlink()
    return folder


def without_tensors(folder: Path) -> Path:
    """Return the folder with weights that are under no name that transformers knows."""
    save_file({}, folder / "model.safetensors")
    return folder


def divide(folder: Path) -> Path:
    """Divide the weights into two files with an index; return the second."""
    weights = sorted(load_file(folder / "model.safetensors").items())
    files = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for number, file in enumerate(files):
        save_file(dict(weights[number::2]), folder / file, metadata={"format": "pt"})
    named = {name: files[number % 2] for number, (name, _) in enumerate(weights)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    (folder / "model.safetensors").unlink()
    return folder / files[1]


def adapter(folder: Path) -> None:
    """Leave an adapter in the place of the weights."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base\\u001b[31m"}')
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_file({}, folder / "adapter_model.safetensors")


def test_divided_weights_are_whole(copy: Path, settings: MakeSettings) -> None:
    """Weights in several files are loaded by their index."""
    divide(copy)
    assert load(settings(model=str(copy))).name == "my-llava"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no config", "has no config.json"),
        ("config is no JSON", "cannot be read"),
        ("config is a list", "cannot be read"),
        ("unknown kind", "does not know: ours"),
        ("remote code", "never run"),
        ("text only", "gpt2 model, which cannot describe pictures"),
        ("no weights", "no safetensors weights"),
        ("pickles", "only pickled weights"),
        ("garbage", "corrupt"),
        ("cut", "corrupt"),
        ("incomplete", "incomplete: 1 are missing"),
        ("other shapes", "have other shapes than its config.json says; fetch both again"),
        ("no tokenizer", "has no tokenizer.json: it was saved without its processor; copy the small files"),
        ("no image processor", "has no preprocessor_config.json: it was saved without its processor"),
        ("cut tokenizer", "the tokenizer.json of my-llava is damaged; fetch it again"),
        ("pointer", "model.safetensors: Git LFS has not brought it yet; type git lfs pull"),
        ("small pointer", "tokenizer.json: Git LFS has not brought it yet"),
        ("a part is missing", "1 of their files are missing, such as model-2-of-2.safetensors; fetch them again"),
        ("no index", "has neither model.safetensors nor the model.safetensors.index.json"),
        ("bad index", "the model.safetensors.index.json of my-llava is damaged; fetch it again"),
        ("unknown quantisation", r"is quantised; use --backend vllm, or .*\(what was said: \d+ are missing"),
        ("mlx", "is quantised; use --backend vllm"),
        ("adapter", r"is an adapter \(LoRA\) for some/base.*, not a model; merge it"),
        ("adapter beside", r"is an adapter \(LoRA\)"),
        ("llama.cpp", r"in llama.cpp's form \(GGUF\); use the repository that it was made from, or let llama-server"),
        ("llama.cpp beside", r"in llama.cpp's form \(GGUF\)"),
        ("draws", "draws pictures"),
        ("one too high", "is no model itself; did you mean .*/my-llava/snapshots/ab"),
    ],
)
def test_faulty_checkpoints(
    copy: Path, settings: MakeSettings, capfd: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    """Each fault is a `ModelError` of one line that says what is wrong; nothing else is printed."""
    damage(fault)(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load(settings(model=str(copy)))
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", ["./none", "/none/at/all", "a/b/c", "two words"])
def test_names_that_cannot_be(settings: MakeSettings, model: str) -> None:
    """A path that is not there, and what is no hub id, are refused without asking the hub."""
    with pytest.raises(ModelError, match=r"no directory|neither a directory nor"):
        load(settings(model=model))


def test_old_snapshots(copy: Path, settings: MakeSettings, loaded: LoadedModel) -> None:
    """A snapshot from before processors knew patch sizes and chat templates encodes prompts as a new one."""
    images = json.loads((copy / "processor_config.json").read_text())["image_processor"]
    del images["image_processor_type"]
    images["feature_extractor_type"] = "CLIPFeatureExtractor"
    (copy / "preprocessor_config.json").write_text(json.dumps(images))
    (copy / "processor_config.json").unlink()
    (copy / "chat_template.jinja").unlink()
    old = load(settings(model=str(copy)))
    encoded = PromptEncoder(old.processor, 40, old.context).encode("Describe.")
    assert encoded.ids.count(old.processor.image_token_id) == 16
    assert "USER: <image>\nDescribe. ASSISTANT:" in encoded.text
    assert old.processor.image_processor.to_dict() == loaded.processor.image_processor.to_dict()


def test_old_processors_without_additional_tokens(copy: Path, settings: MakeSettings) -> None:
    """A processor configuration that forgot the class token counts the image tokens rightly."""
    change_json(copy / "processor_config.json", num_additional_image_tokens=None, patch_size=None)
    old = load(settings(model=str(copy)))
    assert PromptEncoder(old.processor, 40, old.context).image_tokens == 16


def test_sampling_defaults_are_dropped(copy: Path, settings: MakeSettings) -> None:
    """A checkpoint that ships sampling is captioned greedily all the same."""
    change_json(copy / "generation_config.json", do_sample=True, temperature=0.9, top_p=0.6, max_length=20)
    sampled = load(settings(model=str(copy)))
    config = sampled.generation_config(40)
    prepared = sampled.model._prepare_generation_config(config)[0]
    assert (prepared.do_sample, prepared.max_new_tokens) == (False, 40)
    assert prepared.temperature in (None, 1.0)


def test_a_divided_model_is_driven_by_generate(
    tmp_path: Path, settings: MakeSettings, loaded: LoadedModel, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that accelerate divides, here between memory and disk, captions as a whole one does."""
    parts = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "model.language_model": "disk",
             "lm_head": "cpu"}  # fmt: skip
    placement = {"device_map": parts, "offload_folder": str(tmp_path)}
    monkeypatch.setattr("etl.caption.model.loading._device_map", lambda _: placement)
    divided = load(settings(), spread=True)
    assert "spread over several devices" in str(why_not(divided))
    items, chosen = scenes.items[:2], settings(max_new_tokens=6)
    right = list(GenerateCaptioner(loaded, chosen, scenes.locate).caption(items))
    assert list(GenerateCaptioner(divided, chosen, scenes.locate).caption(items)) == right


def test_only_llava_can_be_padded(copy: Path, settings: MakeSettings) -> None:
    """``pad_to_square`` for another kind of model is refused with one line."""
    change_json(copy / "config.json", model_type="llava_next")
    with pytest.raises(ModelError, match=r"no LLaVA-1\.5 model.*leave --pad-to-square out"):
        load(settings(model=str(copy), pad_to_square=True))
