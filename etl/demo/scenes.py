"""Drawn scenes with known captions: the demo's pictures and the oracle of the tests.

A scene has one to three shapes in the quadrants of its central square, on a plain background.  Its caption
has one to three sentences and names every shape, colour, size and place, so a picture that was cropped,
turned or decoded wrongly gives a wrong sentence.  Pictures that are not square carry a decoy shape in the
margins which LLaVA's centre crop cuts off: whoever pads or squashes instead will see it.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (230, 210, 50),
    "purple": (130, 50, 160),
    "orange": (240, 140, 40),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}
KINDS = ("circle", "square", "triangle")
SIZES = {"small": 0.10, "large": 0.19}
"""Half the extent of a shape, as a share of the central square's edge."""

QUADRANTS = {
    "top left": (0.26, 0.26),
    "top right": (0.74, 0.26),
    "bottom left": (0.26, 0.74),
    "bottom right": (0.74, 0.74),
}
"""Name -> centre (x, y) as shares of the central square's edge, in reading order."""

DRAWN_SIZES = ((224, 224), (256, 192), (200, 280), (320, 240), (320, 320), (400, 250))
"""Sizes to draw scenes in, in pixels: the model was trained on these, which are quick to draw and decode ..."""

LARGE_SIZES = ((1200, 900), (900, 1300))
"""... and on some of these, which are larger than a working copy."""

_TITLES = (
    "Rue Saint-Antoine", "Parc La Fontaine", "Vue aérienne du port", "Place d'Armes", "Avenue du Mont-Royal",
    "Marché Bonsecours", "Carré Saint-Louis", "Chasse-neige tiré par un cheval", "Jardin botanique", "Pont Victoria",
    "Carte index générale", "Hôtel de ville", "Boulevard Saint-Laurent coin avenue des Pins", "Canal de Lachine",
    "Le marché aux fleurs", "Gare Windsor", "Quartier Hochelaga", "Île Sainte-Hélène", "Ouvriers au travail",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One shape of a scene; every attribute is a word of its caption."""

    size: str
    colour: str
    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.kind} at the {self.place}"


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order on a background.  ``seed`` fixes the drawing's small deviations."""

    background: str
    shapes: tuple[Shape, ...]
    seed: int

    @property
    def caption(self) -> str:
        """The one right caption: one sentence for one shape, two for two, three for three."""
        first, *rest = (f"A {shape}" for shape in self.shapes)
        if not rest:
            return f"{first} of a {self.background} background."
        number = {2: "Two", 3: "Three"}[len(self.shapes)]
        opening = f"{number} shapes on a {self.background} background."
        if len(rest) == 1:
            return f"{opening} {first} and a{rest[0][1:]}."
        return f"{opening} {first} and a{rest[0][1:]}. The third is a{rest[1][1:]}."

    def draw(self, width: int = 320, height: int = 320, *, whole: bool = False) -> Image.Image:
        """Return the scene as an RGB picture of ``width`` x ``height`` pixels.

        With ``whole`` the quadrants are those of the whole picture, and there is no decoy: for models that see it all.
        """
        rng = random.Random(self.seed)
        picture = Image.new("RGB", (width, height), _shade(rng, self.background))
        canvas = ImageDraw.Draw(picture)
        edge = min(width, height)
        across, down = (width, height) if whole else (edge, edge)
        left, top = (width - across) / 2, (height - down) / 2
        for shape in self.shapes:
            x, y = (share + rng.uniform(-0.03, 0.03) for share in QUADRANTS[shape.place])
            radius = SIZES[shape.size] * rng.uniform(0.92, 1.08) * edge
            _draw(canvas, shape.kind, left + x * across, top + y * down, radius, _shade(rng, shape.colour))
        if not whole:
            self._draw_decoy(canvas, rng, width, height)
        return picture

    def _draw_decoy(self, canvas: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int) -> None:
        margin = abs(width - height) / 2
        if margin < 4:
            return
        colour = rng.choice([name for name in COLOURS if name != self.background])
        along, across = rng.uniform(0.2, 0.8) * min(width, height), margin / 2
        x, y = (across, along) if width > height else (along, across)
        _draw(canvas, rng.choice(KINDS), x, y, margin * 0.4, _shade(rng, colour))


def _shade(rng: random.Random, colour: str) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, value + rng.randint(-12, 12))) for value in COLOURS[colour])
    return red, green, blue


def _draw(
    canvas: ImageDraw.ImageDraw, kind: str, x: float, y: float, radius: float, fill: tuple[int, int, int]
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == "circle":
        canvas.ellipse(box, fill=fill)
    elif kind == "square":
        canvas.rectangle(box, fill=fill)
    else:
        canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)


def random_scene(rng: random.Random) -> Scene:
    """Draw the words of a scene from ``rng``; the same generator state gives the same scene."""
    background = rng.choice(list(COLOURS))
    foreground = [name for name in COLOURS if name != background]
    places = sorted(rng.sample(list(QUADRANTS), rng.randint(1, 3)), key=list(QUADRANTS).index)
    shapes = tuple(Shape(rng.choice(list(SIZES)), rng.choice(foreground), rng.choice(KINDS), place) for place in places)
    return Scene(background, shapes, rng.getrandbits(32))


def random_record(rng: random.Random) -> dict[str, object]:
    """Return title and date fields as archives have them: a title, a shelf mark, a file name or nothing."""
    name = rng.choice([
        rng.choice(_TITLES), f"{rng.choice(_TITLES)} - {rng.randint(1890, 1975)}",
        f"VM97,S3,D{rng.randint(1, 20):02},P{rng.randint(1, 900):03}", f"VM97-3_7P{rng.randint(1, 50)}-08.jpg", "",
    ])  # fmt: skip
    year = rng.randint(1890, 1975)
    date = rng.choice([str(year), f"{year}-{year + 2}", f"Décennie {year // 10 * 10}", f"19 juillet {year}", None])
    return {"name": name, "attributes_map": {"Date": date} if date else {}}
