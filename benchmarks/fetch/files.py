"""The files that the fetch benchmark downloads: made once, the same ones every time."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from etl.demo.scenes import random_scene


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind and of its directory.
        description: for people.
        suffix: of the files' names.
        count, small_count: how many there are; in the smoke test.
        make: the bytes of the file with a number, given a picture of grain to cut from.
    """

    name: str
    description: str
    suffix: str
    count: int
    small_count: int
    make: Callable[[int, Image.Image], bytes]


def _cut(grain: Image.Image, number: int, width: int, height: int) -> Image.Image:
    """Return a window of the grain; every number has another one, so that no two files are alike."""
    rng = random.Random(f"{number} {width}")
    left, top = rng.randrange(grain.width - width), rng.randrange(grain.height - height)
    return grain.crop((left, top, left + width, top + height))


def _photograph(number: int, grain: Image.Image, width: int, height: int, quality: int) -> bytes:
    picture = random_scene(random.Random(number)).draw(width, height)
    noise = _cut(grain, number, width, height).convert("RGB")
    buffer = io.BytesIO()
    # Grain is centred on 128.
    ImageChops.add(picture, noise, offset=-128).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _jpeg(number: int, grain: Image.Image) -> bytes:
    return _photograph(number, grain, 3000, 2000, 78)


def _small(number: int, grain: Image.Image) -> bytes:
    return _photograph(number, grain, 180, 135, 82)


def _tiff(number: int, grain: Image.Image) -> bytes:
    buffer = io.BytesIO()
    _cut(grain, number, 5120, 4096).save(buffer, "TIFF")
    return buffer.getvalue()


KINDS = {
    kind.name: kind
    for kind in (
        Kind("jpeg", "JPEG, 3000x2000", ".jpg", 300, 12, _jpeg),
        Kind("tiff", "raw 8-bit gray TIFF, 5120x4096", ".tif", 20, 4, _tiff),
        Kind("small", "JPEG, 180x135", ".jpg", 2000, 100, _small),
    )
}

GRAIN_SIGMA = 12
"""Of the noise that makes a drawing as heavy to compress as a photograph."""


def make_files(kind: Kind, directory: Path, count: int) -> list[Path]:
    """Return the first ``count`` files of the kind below ``directory``; those that are missing are made."""
    directory = directory / kind.name
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{kind.name}-{number:05d}{kind.suffix}" for number in range(count)]
    missing = [(number, path) for number, path in enumerate(paths) if not path.exists()]
    if missing:
        # Pillow's noise has no seed: the files of two cache directories differ, but not in what they cost.
        grain = Image.effect_noise((5400, 4400), GRAIN_SIGMA)
        for number, path in missing:
            part = path.with_suffix(".part")
            part.write_bytes(kind.make(number, grain))
            part.replace(path)
    return paths
