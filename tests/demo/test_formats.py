"""The demo's picture formats: real files of their kind, which show the scene to who decodes them rightly."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from etl.demo.formats import FORMATS, PictureFormat
from etl.demo.scenes import Scene, Shape
from etl.images import formats
from etl.images.decode import decode

SCENE = Scene("white", (Shape("large", "red", "square", "top left"), Shape("small", "blue", "circle", "top right")), 1)


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two pictures' channels, 0 to 255."""
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other)).mean)


def _by_name(name: str) -> PictureFormat:
    return next(kind for kind in FORMATS if kind.name == name)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_every_format_shows_the_scene_when_decoded_by_the_pipeline(kind: PictureFormat, tmp_path: Path) -> None:
    """The pipeline's decoder gives back the drawn picture, upright and in its colours, and knows its type."""
    drawn = SCENE.draw(240, 180)
    file = tmp_path / f"picture{kind.suffix}"
    file.write_bytes(kind.encode(drawn))
    picture = decode(file, longest_edge=1024, max_pixels=10**7)
    assert picture.mime == kind.mime
    assert _difference(picture.image.resize(drawn.size), drawn) < 4


def test_every_accepted_type_takes_part() -> None:
    """The demo serves each type of picture that archives serve; what is accepted beyond them is named here."""
    rare = {"image/avif", "image/heic", "image/jxl", "image/vnd.adobe.photoshop", "image/x-ms-dib"}
    rare |= {"image/x-portable-anymap", "image/x-portable-arbitrarymap"}
    rare |= {"image/x-canon-cr3", "image/x-fuji-raf", "image/x-panasonic-rw2"}
    assert {kind.mime for kind in FORMATS} | rare == {accepted.mime for accepted in formats.FORMATS}


def test_formats_are_what_their_names_say() -> None:
    """CMYK, palette, compression and the orientation tag are really in the files."""
    drawn = SCENE.draw(240, 180)
    with Image.open(io.BytesIO(_by_name("CMYK JPEG").encode(drawn))) as image:
        assert image.mode == "CMYK"
    with Image.open(io.BytesIO(_by_name("palette PNG").encode(drawn))) as image:
        assert image.mode == "P"
    with Image.open(io.BytesIO(_by_name("TIFF LZW").encode(drawn))) as image:
        assert image.info["compression"] == "tiff_lzw"
    with Image.open(io.BytesIO(_by_name("TIFF CMYK Deflate").encode(drawn))) as image:
        assert (image.mode, image.info["compression"]) == ("CMYK", "tiff_adobe_deflate")
    with Image.open(io.BytesIO(_by_name("TIFF JPEG").encode(drawn))) as image:
        assert image.info["compression"] == "jpeg"
    assert _by_name("PDF").encode(drawn).startswith(b"%PDF-")


def test_a_turned_picture_is_wrong_for_who_ignores_its_tag() -> None:
    """The stored pixels lie on their side."""
    drawn = SCENE.draw(240, 180)
    with Image.open(io.BytesIO(_by_name("turned JPEG").encode(drawn))) as image:
        assert image.size == (180, 240)
        assert _difference(image.resize(drawn.size), drawn) > 10
