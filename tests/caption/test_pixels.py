"""Pixels are bit for bit those of transformers' own image processors, and values those that they normalise to."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from etl.caption.model.loading import LoadedModel
from etl.caption.pictures.normalise import Normaliser
from etl.caption.pictures.pixels import PixelPlan, crop_aspect, pixels
from etl.demo.scenes import Scene, Shape
from etl.errors import UnsupportedProcessorError, WorkingCopyError
from etl.images.working_copies import open_working_copy

SIZES = (
    (1, 1), (2, 9), (9, 2), (5, 3), (55, 57), (56, 56), (57, 56), (113, 150), (64, 256), (257, 64),
    (335, 337), (336, 336), (640, 427), (767, 1023), (1024, 683), (1024, 256), (256, 1024), (1000, 3), (3, 1000),
)  # fmt: skip


SCENE = Scene("blue", (Shape("large", "red", "circle", "top left"),), 1)


def clip(edge: int = 56, height: int | None = None, width: int | None = None, **settings: Any) -> Any:
    crop = {"height": height or edge, "width": width or edge}
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=crop, **settings)


def llava(edge: int = 56, **settings: Any) -> Any:
    crop = {"height": edge, "width": edge}
    return transformers.LlavaImageProcessorPil(size={"shortest_edge": edge}, crop_size=crop, **settings)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "clip 336": lambda: clip(336),
    "clip 56": clip,
    "odd crop": lambda: clip(57, 56, 41),
    "crop larger than the picture": lambda: clip(40, 56, 57),
    "crop wider than high": lambda: clip(48, 20, 101),
    "lanczos": lambda: clip(resample=1),
    "bilinear": lambda: clip(resample=2),
    "box": lambda: clip(resample=4),
    "nearest": lambda: clip(resample=0),
    "llava crops": lambda: llava(56),
    "llava pads": lambda: llava(56, do_pad=True),
    "llava pads, never crops": lambda: llava(60, do_pad=True, do_center_crop=False),
    "llava pads in white": lambda: llava(57, do_pad=True, image_mean=[1.0, 0.999, 0.5]),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return JPEGs of all sizes, with edges and noise, every third one gray."""
    folder = tmp_path_factory.mktemp("copies")
    rng = np.random.default_rng(5)
    paths = []
    for number, (width, height) in enumerate(SIZES):
        rough = rng.integers(0, 256, (max(1, height // 7), max(1, width // 7), 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((width, height), Image.Resampling.NEAREST)
        picture = picture.convert("L" if number % 3 == 0 else "RGB")
        paths.append(folder / f"{number}.jpg")
        picture.save(paths[-1], "JPEG", quality=90)
    return paths


def reference(processor: Any, path: Path, max_aspect: float) -> np.ndarray:
    """Return what the processor itself makes of a working copy, before it rescales: [h, w, 3] of uint8."""
    picture = crop_aspect(open_working_copy(path), max_aspect)
    done = processor(images=picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    assert done.dtype == np.uint8
    return np.moveaxis(done, 0, 2)


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("max_aspect", [1.0, 4.0])
def test_pixels_are_the_processors_own(copies: list[Path], kind: str, max_aspect: float) -> None:
    """Over sizes, aspects, tiny and gray pictures, the bytes equal those of the processor."""
    processor = PROCESSORS[kind]()
    plan = PixelPlan.of(processor, max_aspect)
    for path, size in zip(copies, SIZES, strict=True):
        wanted = reference(processor, path, max_aspect)
        assert wanted.shape == plan.shape
        assert pixels(path, plan) == wanted.tobytes(), size


def test_the_shipped_model(loaded: LoadedModel) -> None:
    """The processor of the tiny LLaVA can be taken apart, and its plan survives JSON, as every plan does."""
    plan = PixelPlan.of(loaded.processor.image_processor, 4.0)
    assert plan == PixelPlan(56, 56, 56, Image.Resampling.BICUBIC, 4.0)
    for one in (plan, PixelPlan.of(llava(do_pad=True), 2.5)):
        assert pickle.loads(pickle.dumps(one)) == one
    assert PixelPlan.of(llava(do_pad=True), 2.5).pad == (122, 116, 104)


def test_very_long_pictures_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 30000 x 3 is never enlarged beyond the greatest aspect."""
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], *rest: Any) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", noted)
    for size in ((30000, 3), (3, 30000)):
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "long.jpg")
        assert len(pixels(tmp_path / "long.jpg", PixelPlan(336, 336, 336, 3, 4.0))) == 336 * 336 * 3
    assert sizes == [(1344, 336), (336, 1344)]


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


def test_missing_and_damaged_working_copies(tmp_path: Path) -> None:
    """A file that is no picture, or is not there, is a `WorkingCopyError`."""
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    for name in ("page.jpg", "none.jpg"):
        with pytest.raises(WorkingCopyError, match=name):
            pixels(tmp_path / name, PixelPlan(56, 56, 56, 3, 4.0))


UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "tiles": (transformers.LlavaNextImageProcessorPil, "LlavaNextImageProcessorPil, neither"),
    "squashes": (transformers.SiglipImageProcessorPil, "SiglipImageProcessorPil, neither"),
    "no resizing": (lambda: clip(do_resize=False), "does not resize by the shortest edge"),
    "another size": (
        lambda: transformers.CLIPImageProcessorPil(size={"height": 56, "width": 56}),
        "does not resize by the shortest edge but to {'height': 56, 'width': 56}",
    ),
    "two limits": (
        lambda: transformers.CLIPImageProcessorPil(size={"shortest_edge": 56, "longest_edge": 99}),
        "does not resize by the shortest edge",
    ),
    "no crop": (lambda: clip(do_center_crop=False), "does not crop pictures to one size"),
    "batch padding": (lambda: clip(do_pad=True), "pads pictures to the largest of a batch"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_processors_are_refused(kind: str) -> None:
    """A processor that does anything else is refused, with the reason."""
    make, reason = UNSUPPORTED[kind]
    with pytest.raises(UnsupportedProcessorError) as caught:
        PixelPlan.of(make(), 4.0)
    assert reason in str(caught.value)


NORMALISING: dict[str, Callable[[], Any]] = {
    **{kind: PROCESSORS[kind] for kind in ("clip 56", "odd crop", "llava pads")},
    "own means": lambda: clip(image_mean=[0.1, 0.5, 0.9], image_std=[0.3, 1.0, 0.01]),
    "no normalisation": lambda: clip(do_normalize=False),
    "no rescaling": lambda: clip(do_rescale=False),
    "neither": lambda: clip(do_normalize=False, do_rescale=False),
    "another factor": lambda: clip(rescale_factor=1 / 127.5),
}


@pytest.mark.parametrize("kind", NORMALISING)
def test_values_are_the_processors_own(copies: list[Path], kind: str) -> None:
    """What the device makes of a batch of pixels equals the processor's pixel values, in float32 and cast to halves."""
    processor = NORMALISING[kind]()
    plan, normaliser = PixelPlan.of(processor, 4.0), Normaliser.of(processor)
    cropped = [crop_aspect(open_working_copy(path), 4.0) for path in copies]
    wanted = processor(images=cropped, return_tensors="pt")["pixel_values"].to(torch.float32)
    batch = torch.stack([torch.frombuffer(bytearray(pixels(path, plan)), dtype=torch.uint8) for path in copies])
    batch = batch.view(-1, *plan.shape)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float32):
        values = normaliser(batch, dtype)
        assert values.dtype == dtype
        assert values.is_contiguous()
        assert torch.equal(values, wanted.to(dtype))
