"""Raw data of cameras that are no TIFFs give the JPEG that is within them, or say what is missing."""

from pathlib import Path

import pytest
from images.test_decode import BLUE, RED, assert_halves
from PIL import Image
from support.raw_files import MADE, cr3
from support.workbench import encoded

from etl.errors import CorruptImageError, NotAnImageError, TruncatedImageError
from etl.images.decode import decode


def jpeg(size: tuple[int, int] = (1200, 40), orientation: int = 0) -> bytes:
    """Return red above blue, which another orientation puts elsewhere."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (0, size[1] // 2, *size))
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    return encoded(picture, quality=95, exif=exif)


@pytest.mark.parametrize("kind", MADE)
def test_the_preview_is_shown_upright(tmp_path: Path, kind: str) -> None:
    """It comes with the size and the orientation that the camera gave it."""
    data = cr3(jpeg(), orientation=8) if kind == "CR3" else MADE[kind](jpeg(orientation=8))
    (tmp_path / "a").write_bytes(data)
    picture = decode(tmp_path / "a", longest_edge=300, max_pixels=10**6)
    assert (picture.width, picture.height) == (40, 1200)
    assert_halves(picture, RED, BLUE)


@pytest.mark.parametrize("kind", MADE)
def test_a_preview_that_is_small_damaged_or_missing_is_refused(tmp_path: Path, kind: str) -> None:
    """The error says what the file is, and what of it cannot be had."""
    for preview, words in ((jpeg((160, 40)), "no preview larger than 160 pixels"), (bytes(99), "with no preview")):
        (tmp_path / "a").write_bytes(MADE[kind](preview))
        with pytest.raises(CorruptImageError, match=words):
            decode(tmp_path / "a", longest_edge=300, max_pixels=10**6)
    whole = MADE[kind](jpeg((1200, 400)))
    (tmp_path / "a").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(TruncatedImageError):
        decode(tmp_path / "a", longest_edge=300, max_pixels=10**6)
    for size in range(0, 200, 7):
        (tmp_path / "a").write_bytes(whole[:size])
        with pytest.raises((CorruptImageError, NotAnImageError)):
            decode(tmp_path / "a", longest_edge=300, max_pixels=10**6)
