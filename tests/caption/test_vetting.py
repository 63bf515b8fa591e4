"""Checkpoints that ask for code, for files elsewhere or for all memory are refused, in one line and at once."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl.caption.model.checkpoint import DEMO_CHECKPOINT, Checkpoint, find_checkpoint
from etl.caption.model.vetting import vet
from etl.errors import ModelError
from etl.settings import Settings

SMALL = ("*.json", "*.jinja", "*.txt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the shipped checkpoint's small files."""
    target = tmp_path / "m"
    target.mkdir()
    for pattern in SMALL:
        for path in DEMO_CHECKPOINT.glob(pattern):
            shutil.copy(path, target)
    return target


def change(file: str, *path: str, value: Any) -> Callable[[Path], None]:
    """Return a function that sets one value of a JSON file of a checkpoint."""

    def go(folder: Path) -> None:
        values = inner = json.loads((folder / file).read_text())
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / file).write_text(json.dumps(values))

    return go


def index(name: str) -> Callable[[Path], None]:
    """Return a function that adds an index naming one file as weights."""
    content = json.dumps({"metadata": {}, "weight_map": {"a": name}})

    def add(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(content)

    return add


def test_honest_checkpoints_pass(folder: Path) -> None:
    """The shipped model, a divided one, and sizes that count all pixels in other families are nobody's attack."""
    index("model-00001-of-00002.safetensors")(folder)
    change("config.json", "attn_implementation", value="sdpa")(folder)
    vet(Checkpoint("m", folder, None))
    change("config.json", "model_type", value="qwen2_vl")(folder)
    change("processor_config.json", "image_processor", "size", value={"longest_edge": 12_845_056})(folder)
    vet(Checkpoint("m", folder, None))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (index("pytorch_model.bin"), "only safetensors files of its own directory"),
        (index("../other/model.safetensors"), "only safetensors files of its own directory"),
        (index("/etc/passwd"), "only safetensors files of its own directory"),
        (index("a.safetensors\n"), "only safetensors files of its own directory"),
        (change("config.json", "attn_implementation", value="evil/kernel"), "code from the hub"),
        (change("config.json", "_attn_implementation", value={"": "evil/kernel"}), "code from the hub"),
        (change("config.json", "text_config", "attn_implementation", value="evil/kernel:f"), "code from the hub"),
        (change("config.json", "use_kernels", value=True), "code from the hub"),
        (change("config.json", "vision_config", "image_size", value=10**6), "image_size = 1000000"),
        (change("config.json", "text_config", "num_hidden_layers", value=10**6), "num_hidden_layers = 1000000"),
        (change("config.json", "text_config", "vocab_size", value=10**12), "vocab_size = 1000000000000"),
        (change("config.json", "text_config", "head_dim", value=float("inf")), "head_dim = inf"),
        (change("config.json", "text_config", "hidden_size", value=-5), "hidden_size = -5"),
        (change("processor_config.json", "image_processor", "crop_size", value={"height": 10**6}), "height = 1000000"),
        (change("processor_config.json", "image_processor", "size", value={"shortest_edge": 0}), "shortest_edge = 0"),
        (change("processor_config.json", "image_processor", "size", value=float("nan")), "size = nan"),
    ],
)
def test_what_is_never_done_is_refused(folder: Path, attack: Callable[[Path], None], message: str) -> None:
    """Pickles and files elsewhere behind an index, kernels of the hub and absurd sizes: one line that says which."""
    attack(folder)
    with pytest.raises(ModelError, match=message) as caught:
        vet(Checkpoint("m\x1b[31m", folder, None))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", "[]", "1"])
def test_a_file_of_any_kind_does_no_harm(folder: Path, text: str) -> None:
    """What is no JSON object is left to the loader, and one nested without end is refused."""
    (folder / "config.json").write_text(text, encoding="latin-1")
    try:
        vet(Checkpoint("m", folder, None))
    except ModelError as error:
        assert "cannot be read" in str(error)


def test_it_is_refused_before_torch_is_loaded(folder: Path) -> None:
    """A run looks at the small files first, so no time of a GPU is paid for."""
    change("config.json", "vision_config", "image_size", value=10**6)(folder)
    code = (
        "import sys\nfrom etl.caption.backends import check_model\nfrom etl.settings import Settings\n"
        "try: check_model(Settings(model=sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["ModelError", "False"]


def _instead(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that puts something else in the place of a file."""

    def go(folder: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return go


def _to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _of(size: int) -> Callable[[Path], None]:
    """Return a function that makes a file of so many bytes, which takes no room."""

    def go(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return go


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (_instead("config.json", _to("/dev/zero")), "config.json: it is a device, not a plain file"),
        (_instead("config.json", os.mkfifo), "config.json: it is a FIFO, not a plain file"),
        (_instead("config.json", _of(5 * 2**20)), "config.json: it has 5,242,880 bytes, more than 4,194,304"),
        (_instead("config.json", _to("/proc/self/status")), "config.json: it is a link to an empty file"),
        (_instead("generation_config.json", _to("/dev/zero")), "generation_config.json: it is a device"),
        (_instead("processor_config.json", os.mkfifo), "processor_config.json: it is a FIFO"),
        (_instead("tokenizer.json", _of(2**40)), "tokenizer.json: it has 1,099,511,627,776 bytes"),
        (_instead("tokenizer.model", os.mkfifo), "tokenizer.model: it is a FIFO"),
        (_instead("tokenizer_config.json", _of(2**30)), "tokenizer_config.json: it has 1,073,741,824 bytes"),
        (_instead("chat_template.jinja", _of(2**20)), "chat_template.jinja: it has 1,048,576 bytes, more than 262,144"),
        (_instead("additional_chat_templates/a.jinja", os.mkfifo), "a.jinja: it is a FIFO"),
        (_instead("model.safetensors.index.json", _of(2**30)), "index.json: it has 1,073,741,824 bytes"),
        (_instead("notes.txt", os.mkfifo), "notes.txt: it is a FIFO"),
        (_instead("notes.txt", _of(2**42)), "notes.txt: it has 4,398,046,511,104 bytes"),
        (_instead("model.safetensors", os.mkfifo), "model.safetensors: it is a FIFO"),
        (_instead("\x1b[31m", os.mkfifo), r"\\x1b\[31m: it is a FIFO"),
    ],
)
def test_what_never_ends_is_not_opened(folder: Path, attack: Callable[[Path], None], message: str) -> None:
    """Devices, FIFOs, files of the kernel and files far too large, behind any name: one line, and nobody reads one."""
    from etl.caption.backends import check_model

    attack(folder)
    with pytest.raises(ModelError, match=message) as caught:
        check_model(Settings(model=str(folder)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def _weights(text: bytes, announced: int | None = None, behind: int = 0) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        size = len(text) if announced is None else announced
        path = folder / "model.safetensors"
        path.write_bytes(size.to_bytes(8, "little") + text)
        os.truncate(path, path.stat().st_size + behind)

    return go


def _tensor(shape: Any, end: Any = 16) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (_weights(b"", announced=2**40, behind=2**41), "its header has 1,099,511,627,776 bytes, more than 16,777,216"),
        (_weights(b"[" * 10**6), "its header cannot be read"),
        (_weights(_tensor([2**40] * 17), behind=16), "a tensor has too many dimensions"),
        (_weights(_tensor([10**4000]), behind=16), "its header holds sizes that cannot be"),
        (_weights(_tensor([-4]), behind=16), "its header holds sizes that cannot be"),
        (_weights(_tensor([4.0]), behind=16), "its header holds sizes that cannot be"),
        (_weights(_tensor([4], end=10**400), behind=16), "its header holds sizes that cannot be"),
        (_weights(_tensor([4]), behind=8), "it does not end where its tensors do"),
        (_weights(_tensor([4]), behind=2**42), "it does not end where its tensors do"),
        (_weights(b"null"), "its header cannot be read"),
        (_weights(b'{"a": 1}'), "its header cannot be read"),
        (_instead("model.safetensors", _to("/dev/zero")), "device"),
    ],
)
def test_headers_of_weights_that_never_end(folder: Path, attack: Callable[[Path], None], message: str) -> None:
    """What a header says is bounded and adds up, before a byte of the weights is read, hashed or multiplied."""
    attack(folder)
    with pytest.raises(ModelError, match=message) as caught:
        find_checkpoint(str(folder), "main").with_weights()
    assert len(str(caught.value)) < 300


def test_a_hub_s_cache_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    """Its snapshots lead to files beside them, as do directories that people make; a link to nowhere is not there."""
    from etl.caption.model.weights import weight_bytes

    shutil.copy(DEMO_CHECKPOINT / "model.safetensors", folder)
    snapshot = tmp_path / "models--x" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    (snapshot / "added_tokens.json").symlink_to("../../blobs/gone")
    checkpoint = find_checkpoint(str(snapshot), "main")
    checkpoint.with_weights()
    vet(checkpoint)
    assert weight_bytes(snapshot, "float32") == weight_bytes(DEMO_CHECKPOINT, "float32")


class _Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def _code(folder: Path, mark: Path) -> None:
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nclass A: pass\n")


def _with_code(folder: Path, mark: Path) -> None:
    _code(folder, mark)
    change("config.json", "auto_map", value={"AutoConfig": "code.A", "AutoModelForImageTextToText": "code.A"})(folder)
    change("processor_config.json", "auto_map", value={"AutoProcessor": "code.A"})(folder)
    change("tokenizer_config.json", "auto_map", value={"AutoTokenizer": ["code.A", "code.A"]})(folder)


def _pickles(folder: Path, mark: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(mark)))


def test_code_beside_a_known_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    """``auto_map`` in every file and a pickle beside the weights change nothing: the model loads, nothing else runs."""
    from etl.caption.model.loading import load

    mark = tmp_path / "mark"
    shutil.copy(DEMO_CHECKPOINT / "model.safetensors", folder)
    _with_code(folder, mark)
    _pickles(folder, mark)
    assert load(Settings(model=str(folder), device="cpu", dtype="float32")).name == "m"
    assert not mark.exists()


def _lying(header: dict[str, Any], announced: int | None = None) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        text = json.dumps(header).encode()
        size = len(text) if announced is None else announced
        (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + bytes(24))

    return go


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (_lying({}, announced=2**60), "corrupt"),
        (_lying({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                 "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}), "corrupt"),
        (_lying({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}), "corrupt"),
        (change("config.json", "vision_config", "patch_size", value=0), "cannot be loaded"),
        (change("config.json", "text_config", "max_position_embeddings", value="many"), "faulty"),
    ],
)  # fmt: skip
def test_weights_and_configurations_that_lie(folder: Path, attack: Callable[[Path], None], message: str) -> None:
    """Headers with huge, overlapping or overflowing tensors, and values of the wrong kind, are a `ModelError`."""
    from etl.caption.model.loading import load

    shutil.copy(DEMO_CHECKPOINT / "model.safetensors", folder)
    attack(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(Settings(model=str(folder), device="cpu", dtype="float32"))
    assert len(str(caught.value)) < 600


def test_a_template_in_a_configuration_is_bounded_too(folder: Path) -> None:
    """A novel is refused by its length, before Jinja reads it, wherever it stands."""
    from etl.caption.model.loading import load

    shutil.copy(DEMO_CHECKPOINT / "model.safetensors", folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 1 }}" * 10**5}))
    with pytest.raises(ModelError, match="the chat template of m is longer than 262,144 characters"):
        load(Settings(model=str(folder), device="cpu", dtype="float32"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}<image>", "template failed: access to attribute"),
        ("{{ raise_exception('a\x1b[31m\nb') }}", r"failed: a\\x1b\[31m\\nb"),
        ("<image>{% for i in range(9999) %}xxxxxxxxxxxxxxxx{% endfor %}", "159,991 characters"),
        ("<image><image>", "2 image placeholders"),
        ("{{ 1 // 0 }}", "template failed"),
    ],
)
def test_chat_templates_are_sandboxed_and_bounded(folder: Path, template: str, message: str) -> None:
    """A template that reaches for Python's internals, fails or writes a novel is a `ModelError` of one line."""
    import transformers

    from etl.caption.tokens import PromptEncoder

    (folder / "chat_template.jinja").write_text(template)
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    with pytest.raises(ModelError, match=message) as caught:
        PromptEncoder(processor, 8, 1024)
    assert str(caught.value).isprintable()


def test_a_working_copy_of_another_kind_is_not_opened(tmp_path: Path) -> None:
    """What lies in a copied cache under a JPEG's name is given to none of Pillow's other parsers."""
    from PIL import Image

    from etl.errors import WorkingCopyError
    from etl.images.working_copies import open_working_copy

    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", "PNG")
    (tmp_path / "b.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(WorkingCopyError, match="cannot be read"):
            open_working_copy(tmp_path / name)
