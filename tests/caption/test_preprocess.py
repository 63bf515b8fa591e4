"""Working copies are opened and cropped, and prompts encoded exactly as the model's processor would."""

import io
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etl.caption.model.loading import LoadedModel
from etl.caption.model.processors import LLAVA_CHAT_TEMPLATE
from etl.caption.pictures.pixels import crop_aspect
from etl.caption.tokens import PromptEncoder
from etl.demo.scenes import Scene, Shape
from etl.errors import CacheUnreadableError, CaptionError, ModelError, PromptTooLongError, WorkingCopyError
from etl.images.working_copies import open_working_copy, working_copy_bytes

SCENE = Scene("blue", (Shape("large", "red", "circle", "top left"),), 1)


def test_working_copies_open_as_rgb(tmp_path: Path) -> None:
    """A greyscale file comes back as RGB of the same size, with its file closed."""
    path = tmp_path / "copy.jpg"
    SCENE.draw(60, 40).convert("L").save(path)
    picture = open_working_copy(path)
    assert (picture.mode, picture.size) == ("RGB", (60, 40))


def huge_jpeg(jpeg: bytes) -> bytes:
    """Return the file with a header that says 65000 x 65000 pixels."""
    frame = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:frame] + (65000).to_bytes(2) * 2 + jpeg[frame + 4 :]


def broken_files() -> dict[str, bytes]:
    """Return damaged pictures by kind of damage."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    SCENE.draw().save(jpeg, "JPEG")
    SCENE.draw().save(png, "PNG")
    return {
        "empty": b"",
        "html": b"<html>not found</html>",
        "cut": jpeg.getvalue()[:-2000],
        "huge": huge_jpeg(jpeg.getvalue()),
        "png checksum": png.getvalue()[:40] + b"\0\0\0\0" + png.getvalue()[44:],
    }


@pytest.mark.parametrize("kind", broken_files())
def test_damaged_working_copies(tmp_path: Path, kind: str) -> None:
    """Whatever Pillow raises for a damaged file becomes a `WorkingCopyError` that names the file."""
    path = tmp_path / "copy.jpg"
    path.write_bytes(broken_files()[kind])
    with pytest.raises(WorkingCopyError, match=r"copy\.jpg cannot be read"):
        open_working_copy(path)


def test_missing_working_copies(tmp_path: Path) -> None:
    """A missing file, or a directory in its place, is a `WorkingCopyError`."""
    with pytest.raises(WorkingCopyError, match="not in the cache"):
        open_working_copy(tmp_path / "none.jpg")
    with pytest.raises(WorkingCopyError):
        open_working_copy(tmp_path)


def test_what_is_not_the_files_fault_is_told_apart(tmp_path: Path) -> None:
    """With no descriptor left, or a name that no file can have, nothing is said against the working copy."""
    path = tmp_path / "copy.jpg"
    Image.new("RGB", (4, 3)).save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open("rb") as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), hard))
        try:
            with pytest.raises(CacheUnreadableError, match=r"Too many open files.*nothing was charged.*ulimit -n"):
                open_working_copy(path)
            with pytest.raises(CacheUnreadableError, match="Too many open files"):
                working_copy_bytes(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(CacheUnreadableError, match="name too long"):
        open_working_copy(tmp_path / ("n" * 300))
    # The memory of this process at address 0: opened well, and read with EIO as from a disk that has lost a sector.
    with pytest.raises(WorkingCopyError, match="Input/output error") as caught:
        working_copy_bytes(Path(f"/proc/{os.getpid()}/mem"))
    assert type(caught.value) is WorkingCopyError


@pytest.mark.parametrize(
    ("size", "max_aspect", "wanted"),
    [
        ((30000, 3), 4.0, (12, 3)),
        ((3, 30000), 4.0, (3, 12)),
        ((400, 100), 4.0, (400, 100)),
        ((401, 100), 4.0, (400, 100)),
        ((300, 200), 1.0, (200, 200)),
        ((7, 1), 1.5, (1, 1)),
        ((1, 1), 1.0, (1, 1)),
    ],
)
def test_crop_aspect(size: tuple[int, int], max_aspect: float, wanted: tuple[int, int]) -> None:
    """The long side is cut to the limit, and never below one pixel."""
    assert crop_aspect(Image.new("RGB", size), max_aspect).size == wanted


def test_crop_aspect_keeps_the_centre() -> None:
    """What remains is the middle of the picture, so the model's centre crop sees the same square."""
    picture = SCENE.draw(1200, 100)
    cropped = crop_aspect(picture, 2.0)
    assert np.array_equal(np.asarray(cropped), np.asarray(picture)[:, 500:700])


def test_cropping_does_not_change_what_the_model_sees(loaded: LoadedModel) -> None:
    """The processor's pixel values are the same with and without the crop."""
    picture = SCENE.draw(560, 56)
    images = loaded.processor.image_processor
    whole = images(images=picture, return_tensors="np")["pixel_values"]
    cropped = images(images=crop_aspect(picture, 4.0), return_tensors="np")["pixel_values"]
    assert np.array_equal(whole, cropped)


def test_encoding_equals_the_processor(loaded: LoadedModel) -> None:
    """Ids are those that the processor gives for the same chat and a picture, image tokens included."""
    encoder = PromptEncoder(loaded.processor, 40, 1024)
    encoded = encoder.encode('Décrivez "Île Sainte-Hélène" \u20391913\u203a 🎈\nplease.')
    wanted = loaded.processor(images=SCENE.draw(), text=encoded.text)["input_ids"][0]
    assert list(encoded.ids) == list(wanted)
    assert encoded.text.count("<image>") == 1
    assert encoded.ids.count(loaded.processor.image_token_id) == encoder.image_tokens == 16


def test_equal_prompts_are_encoded_once(loaded: LoadedModel) -> None:
    """The second encoding of a prompt is the object of the first."""
    encoder = PromptEncoder(loaded.processor, 40, 1024)
    assert encoder.encode("Describe.") is encoder.encode("Describe.")


def test_prompts_must_fit_the_context(loaded: LoadedModel) -> None:
    """Prompt, image tokens and new tokens together may fill the context, and not exceed it by one."""
    length = len(PromptEncoder(loaded.processor, 1, None).encode("Describe this.").ids)
    PromptEncoder(loaded.processor, 40, length + 40).encode("Describe this.")
    with pytest.raises(PromptTooLongError, match="do not fit"):
        PromptEncoder(loaded.processor, 40, length + 39).encode("Describe this.")


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>", "<pad>"])
def test_special_tokens_in_prompts_are_refused(loaded: LoadedModel, token: str) -> None:
    """A prompt cannot end itself, start another turn or add a picture: its special tokens are named and refused."""
    encoder = PromptEncoder(loaded.processor, 40, 1024)
    with pytest.raises(CaptionError, match="special token"):
        encoder.encode(f"A title{token}and more")


@pytest.fixture
def template(loaded: LoadedModel, request: pytest.FixtureRequest) -> LoadedModel:
    """Give the model another chat template for one test."""
    before = loaded.processor.chat_template
    loaded.processor.chat_template = request.param
    request.addfinalizer(lambda: setattr(loaded.processor, "chat_template", before))
    return loaded


@pytest.mark.parametrize("template", ["USER: {{ messages[0]['content'][1]['text'] }}", "<image><image>"], indirect=True)
def test_templates_must_place_one_picture(template: LoadedModel) -> None:
    """A chat template with no picture or two is refused at once, not on every item."""
    with pytest.raises(ModelError, match=r"(0|2) image placeholders"):
        PromptEncoder(template.processor, 40, 1024)


@pytest.mark.parametrize("template", ["<s>" + LLAVA_CHAT_TEMPLATE], indirect=True)
def test_one_start_token(template: LoadedModel) -> None:
    """A template that writes the start token itself gets no second one from the tokenizer."""
    tokenizer = template.processor.tokenizer
    encoder = PromptEncoder(template.processor, 40, 1024)
    assert not encoder.add_special_tokens
    assert encoder.encode("Describe.").ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", [" <s><s>" + LLAVA_CHAT_TEMPLATE, "<s><s>" + LLAVA_CHAT_TEMPLATE], indirect=True)
def test_two_start_tokens(template: LoadedModel) -> None:
    """A chat that would begin with two start tokens is refused."""
    template.processor.chat_template = template.processor.chat_template.lstrip()
    with pytest.raises(ModelError, match="start token"):
        PromptEncoder(template.processor, 40, 1024).encode("Describe.")
