"""The demo's archive: drawn scenes behind URLs, and a manifest that names them as a real one does."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.demo.formats import FORMATS, PictureFormat
from etl.demo.scenes import DRAWN_SIZES, LARGE_SIZES, random_record, random_scene
from etl.demo.server import DemoServer

SEED = 2024
"""Neither the training's seeds (0 to 2) nor its evaluation's (99): the model has not seen these scenes."""

_BUSY, _CUT = 1, 2
"""Numbers of the picture that is refused once and of the one that is cut short until the server is healed."""

_LARGE_EVERY = 50
"""One picture of so many is large; few, because they take most of the time."""

_HTML = b"<!doctype html><title>Viewer</title><p>The picture is shown here, once scripts are enabled.\n"


@dataclass(frozen=True)
class DemoRecord:
    """One line of the demo's manifest, and how it must end.

    Attributes:
        key: its id.
        path: of its picture on the server.
        format: of its picture, for people.
        fields: the manifest line.
        caption: word for word; ``None`` where there is no picture.
        error_class: how it fails for good; ``None`` where there is a picture.
        heals: whether it fails for good as long as the server is not healed.
    """

    key: str
    path: str
    format: str
    fields: dict[str, Any]
    caption: str | None = None
    error_class: str | None = None
    heals: bool = False


def build_archive(
    server: DemoServer, pictures: int, seed: int = SEED, formats: Sequence[PictureFormat] = FORMATS
) -> list[DemoRecord]:
    """Draw at least four pictures, in each format in turn, give them to the server and return their records.

    One more record shares the URL of the first picture; two more have none: a 404, and HTML with status 200.
    """
    rng = random.Random(seed)
    records = list(_drawn(server, pictures, rng, formats))
    first = records[0]
    shared = random_record(rng) | {"name": "Parc La Fontaine, the same picture once more"}
    records.insert(1, _record(server, "scene-0001-again", first.path, first.format, shared, caption=first.caption))
    server.add("/viewer.jpg", _HTML, "text/html; charset=utf-8")
    records.append(_record(server, "gone", "/gone.jpg", "none", random_record(rng), error_class="http_404"))
    records.append(_record(server, "viewer", "/viewer.jpg", "HTML", random_record(rng), error_class="not_an_image"))
    return records


def _drawn(
    server: DemoServer, pictures: int, rng: random.Random, formats: Sequence[PictureFormat]
) -> Iterator[DemoRecord]:
    for number in range(pictures):
        scene = random_scene(rng)
        kind = formats[number % len(formats)]
        size = rng.choice(LARGE_SIZES if number % _LARGE_EVERY == 3 else DRAWN_SIZES)
        key = f"scene-{number + 1:04}"
        path = f"/{key}{kind.suffix}"
        server.add(
            path, kind.encode(scene.draw(*size)), kind.mime, refusals=int(number == _BUSY), cut_short=number == _CUT
        )
        heals = number == _CUT
        yield _record(server, key, path, kind.name, random_record(rng), caption=scene.caption, heals=heals)


def _record(
    server: DemoServer, key: str, path: str, kind: str, fields: dict[str, object], **outcome: Any
) -> DemoRecord:
    return DemoRecord(key, path, kind, {"id": key, **fields, "external_url": server.url(path)}, **outcome)


def write_manifest(records: list[DemoRecord], path: Path) -> None:
    """Write the records as JSON Lines."""
    path.write_text("".join(json.dumps(record.fields, ensure_ascii=False) + "\n" for record in records), "utf-8")
