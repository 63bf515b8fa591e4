"""An archive of large pictures behind image services of IIIF: what their sizes save.

    python -m benchmarks.fetch.image_services [--pictures 40]

A loopback server gives each picture of 3 to 11 MB in the sizes that its level allows.  It is fetched once as its
manifest has it, and once for each level with ``--iiif-size`` as it is.  Prints bytes, requests and seconds of each.
"""

import argparse
import functools
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.iiif_server import ImageArchive, Served

from etl.domain.statuses import Stage
from etl.fetch.stage import fetch
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.store import Store

LARGEST = 6000, 4500
CONTEXT = "http://iiif.io/api/presentation/3/context.json"


@functools.cache
def scene() -> Image.Image:
    """Return a picture with detail of every size, as photographs have it."""
    bands = []
    for _ in range(3):
        band = Image.new("L", LARGEST, 128)
        for step in range(7):
            grain = Image.effect_noise((LARGEST[0] >> step, LARGEST[1] >> step), 12 * 1.3**step)
            band = ImageChops.add(band, grain.resize(LARGEST, Image.Resampling.BILINEAR), offset=-128)
        bands.append(band)
    return Image.merge("RGB", bands)


def drawn(width: int, height: int) -> bytes:
    """Return the scene in this size, as a server would make it."""
    held = io.BytesIO()
    scene().resize((width, height), Image.Resampling.BILINEAR).save(held, "JPEG", quality=90)
    return held.getvalue()


def served(level: int, count: int) -> dict[str, Served]:
    """Return so many pictures, each of a shape of its own; of level 0 with the halves of theirs as sizes."""
    found = {}
    for n in range(count):
        width = 3200 + 75 * n
        height = round(width * (0.62 + 0.003 * n))
        halves = tuple((width >> step, height >> step) for step in range(1, 4))
        found[f"/level-{level}/{n}"] = Served(level=level, width=width, height=height, sizes=() if level else halves)
    return found


def manifest(archive: ImageArchive) -> dict[str, Any]:
    """Return a manifest of the archive, as libraries' software writes them: services with their level, no sizes."""
    canvases = []
    for path, one in archive.pictures.items():
        service = {"id": archive.base + path, "type": "ImageService3", "profile": f"level{one.level}"}
        body = {
            "id": f"{archive.base}{path}/full/max/0/default.jpg", "type": "Image", "width": one.width,
            "height": one.height, "service": [service],
        }  # fmt: skip
        page = {"type": "AnnotationPage", "items": [{"type": "Annotation", "motivation": "painting", "body": body}]}
        canvases.append({"id": f"{archive.base}{path}/canvas", "type": "Canvas", "items": [page]})
    return {"@context": CONTEXT, "id": f"{archive.base}/m", "type": "Manifest", "items": canvases}


def measure(level: int, count: int, **changes: Any) -> tuple[int, int, float]:
    """Return the bytes and the requests that a fetch took, and its seconds."""
    with tempfile.TemporaryDirectory() as folder, ImageArchive(drawn) as archive:
        archive.pictures = served(level, count)
        path = Path(folder, "manifest.json")
        path.write_text(json.dumps(manifest(archive)), encoding="utf-8")
        settings = Settings(state=Path(folder, "state"), allow_host=("127.0.0.1",), min_free=0, **changes)
        with Store.open(settings) as store, store.run((Stage.FETCH,)) as run:
            ingest(store, Manifest(str(path)), IngestOptions())
            begun = time.monotonic()
            assert fetch(store, run, settings, RunControl()).done == count
        return archive.sent, len(archive.asked), time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    count = parser.parse_args().pictures
    ends = [
        len(drawn(one.width, one.height)) / 1e6 for one in (*served(2, 1).values(), list(served(2, count).values())[-1])
    ]
    print(f"{count} pictures of {ends[0]:.1f} to {ends[1]:.1f} MB")
    whole = measure(2, count, iiif_size=1_000_000)
    for name, found in (("as written", whole), *((f"level {level}", measure(level, count)) for level in (2, 1, 0))):
        size, requests, seconds = found
        less = whole[0] / size
        print(f"{name:>10}: {size / 1e6:6.1f} MB, {less:4.1f} times less, {requests:3} requests, {seconds:5.1f} s")


if __name__ == "__main__":
    main()
