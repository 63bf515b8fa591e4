"""What is flagged about a decoded picture, from its file to the decoder's answer."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from etl.domain.items import DecodedImage
from etl.images.decode import make_working_copy

PAPER = (236, 228, 208)


def page(size: tuple[int, int] = (600, 800), colour: tuple[int, ...] = PAPER, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def noisy() -> Image.Image:
    """An empty page as a scanner sees it: grain all over, and two specks of dust."""
    grain = Image.effect_noise((600, 800), 12).convert("RGB")
    scanned = Image.blend(page(), grain, 0.2)
    draw = ImageDraw.Draw(scanned)
    draw.point([(100, 200), (430, 610)], "black")
    return scanned


def written() -> Image.Image:
    """A page that is empty but for one short word in its corner."""
    image = page()
    ImageDraw.Draw(image).text((500, 760), "page 12", "black")
    return image


def hairline() -> Image.Image:
    image = page()
    ImageDraw.Draw(image).line([(100, 400), (500, 430)], (60, 60, 60))
    return image


PICTURES: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "white page": (lambda: page(colour=(255, 255, 255)), "blank"),
    "yellowed page, scanned": (noisy, "blank"),
    "transparent picture": (lambda: page(mode="RGBA", colour=(200, 30, 30, 0)), "blank"),
    "one word on a page": (written, ""),
    "one thin line on a page": (hairline, ""),
    "two colours of the same brightness": (lambda: Image.merge("RGB", (
        Image.linear_gradient("L"), Image.linear_gradient("L").rotate(180), Image.new("L", (256, 256), 90),
    )), ""),
    "counting pixel": (lambda: page((1, 1)), "blank tiny"),
    "icon": (lambda: Image.linear_gradient("L").resize((24, 24)), "tiny"),
    "spacer": (lambda: Image.linear_gradient("L").resize((200, 5)), "tiny"),
    "smallest that is not tiny": (lambda: Image.linear_gradient("L").resize((32, 32)), ""),
    "cutting of one line": (lambda: written().crop((440, 755, 590, 775)), ""),
    "something on a small picture": (lambda: Image.linear_gradient("L").resize((4, 4)), "tiny"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_flags_of_a_picture(name: str, tmp_path: Path) -> None:
    """A picture on which there is nothing is blank, whatever its grain; one with anything on it is not."""
    make, flags = PICTURES[name]
    make().save(tmp_path / "picture.png")
    decoded, _ = make_working_copy(tmp_path / "picture.png", longest_edge=1024, max_pixels=10_000_000)
    assert " ".join(decoded.flags) == flags
    assert DecodedImage.from_fields(json.loads(json.dumps(dataclasses.asdict(decoded)))) == decoded
