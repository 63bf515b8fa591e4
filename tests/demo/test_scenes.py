"""Drawn scenes: their captions say what is drawn, and nothing else decides the drawing."""

import random
import re

import pytest
from PIL import Image, ImageChops

from etl.demo.scenes import COLOURS, KINDS, QUADRANTS, SIZES, Scene, Shape, random_scene


def _distance(pixel: object, colour: str) -> int:
    assert isinstance(pixel, tuple)
    return max(abs(int(value) - wanted) for value, wanted in zip(pixel, COLOURS[colour], strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_caption_has_one_sentence_for_each_shape_and_names_all_their_words(count: int) -> None:
    """A caption of n shapes has n sentences and names every shape's size, colour, kind and place."""
    rng = random.Random(count)
    scene = next(scene for scene in iter(lambda: random_scene(rng), None) if len(scene.shapes) == count)
    assert len(re.findall(r"\.(?: |$)", scene.caption)) == count
    for shape in scene.shapes:
        assert f"{shape.size} {shape.colour} {shape.kind} at the {shape.place}" in scene.caption
    assert f"a {scene.background} background" in scene.caption


def test_the_same_generator_state_gives_the_same_scene_and_drawing() -> None:
    """Scenes are a function of the seed, pixel for pixel."""
    first, second = random_scene(random.Random(5)), random_scene(random.Random(5))
    assert first == second
    assert first.draw(200, 150).tobytes() == second.draw(200, 150).tobytes()
    assert first != random_scene(random.Random(6))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [(200, 200), (300, 200), (160, 240)])
def test_shapes_are_drawn_at_their_places_in_the_central_square_or_all_of_it(
    size: tuple[int, int], whole: bool
) -> None:
    """The pixel at a shape's place has the shape's colour, and at an empty place the background's."""
    rng = random.Random(11)
    across, down = size if whole else (min(size), min(size))
    left, top = (size[0] - across) / 2, (size[1] - down) / 2
    for scene in (random_scene(rng) for _ in range(20)):
        picture = scene.draw(*size, whole=whole)
        drawn = {shape.place: shape.colour for shape in scene.shapes}
        for place, (x, y) in QUADRANTS.items():
            pixel = picture.getpixel((round(left + x * across), round(top + y * down)))
            assert _distance(pixel, drawn.get(place, scene.background)) <= 12, (scene.caption, place)


def test_every_word_of_a_caption_is_told_apart_by_its_pixels() -> None:
    """Changing size, colour, kind or place of a shape changes the picture by far more than the drawing's noise."""
    plain = Shape("small", "red", "circle", "top left")
    others = [
        Shape("large", "red", "circle", "top left"), Shape("small", "blue", "circle", "top left"),
        Shape("small", "red", "triangle", "top left"), Shape("small", "red", "circle", "top right"),
    ]  # fmt: skip
    base = Scene("white", (plain,), seed=1).draw(100, 100)
    for other in others:
        changed = ImageChops.difference(base, Scene("white", (other,), seed=1).draw(100, 100)).convert("L")
        assert sum(changed.point(lambda value: value > 60).histogram()[1:]) > 40, other


def test_only_a_picture_that_is_not_square_has_a_decoy_and_only_outside_its_central_square() -> None:
    """What the centre crop keeps of a wide picture is the scene alone; the margin holds one more shape."""
    scene = Scene("white", (Shape("large", "red", "square", "top left"),), seed=3)
    wide = scene.draw(300, 200)
    centre = wide.crop((50, 0, 250, 200))
    assert ImageChops.difference(centre, scene.draw(200, 200)).getbbox() is None
    margin = wide.crop((0, 0, 50, 200))
    assert ImageChops.difference(margin, Image.new("RGB", margin.size, margin.getpixel((0, 0)))).getbbox() is not None


def test_all_words_occur() -> None:
    """A few hundred scenes use every background, colour, kind, size and place."""
    rng = random.Random(8)
    scenes = [random_scene(rng) for _ in range(300)]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    assert {scene.background for scene in scenes} == {shape.colour for shape in shapes} == set(COLOURS)
    assert {shape.kind for shape in shapes} == set(KINDS)
    assert {shape.size for shape in shapes} == set(SIZES)
    assert {shape.place for shape in shapes} == set(QUADRANTS)
