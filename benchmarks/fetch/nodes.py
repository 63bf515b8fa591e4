"""The same pictures fetched by this machine and by the nodes of a Ray cluster, in one run.

    ray start --head --port=6379 --num-cpus=1 && ray start --address=127.0.0.1:6379 --num-cpus=1
    RAY_AUTH_MODE=token python -m benchmarks.fetch.nodes --ray-address 127.0.0.1:6379

Draws JPEGs of ten megapixels, of 0.2 MB or with ``--noise`` of some more, serves them from this machine's loopback, and
fetches them into a new state each time.
Nodes that are this machine too show what the way over the cluster costs, not what more machines bring.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from PIL import Image

from etl.demo.formats import FORMATS
from etl.demo.scenes import random_scene
from etl.demo.server import DemoServer
from etl.domain.statuses import Stage
from etl.fetch.stage import fetch
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.store import Store

SIZE = (3600, 2700)


def serve(server: DemoServer, pictures: int, noise: float) -> list[str]:
    """Draw pictures, give them to the server and return their URLs."""
    rng = random.Random(1)
    grain = Image.effect_noise(SIZE, noise).convert("RGB")
    drawn = []
    for _ in range(min(pictures, 12)):
        scene = random_scene(rng).draw(*SIZE)
        drawn.append(FORMATS[0].encode(Image.blend(scene, grain, 0.3) if noise else scene))
    print(f"{pictures} pictures of {sum(map(len, drawn)) / len(drawn) / 1e6:.1f} MB", flush=True)
    for number in range(pictures):
        # Bytes behind the end of a JPEG make it another file with the same pixels.
        server.add(f"/{number}.jpg", drawn[number % len(drawn)] + b"%d" % number, "image/jpeg")
    return [server.url(f"/{number}.jpg") for number in range(pictures)]


def seconds(directory: Path, urls: list[str], **settings: object) -> float:
    """Fetch all into a new state; return how long that took, start of decoders and actors included."""
    directory.mkdir()
    manifest = directory / "manifest.csv"
    manifest.write_text("id,url\n" + "".join(f"{n},{url}\n" for n, url in enumerate(urls)))
    used = Settings(state=directory / "state", allow_host=("127.0.0.1",), per_host=8, min_free=0, **settings)  # type: ignore[arg-type]
    with Store.open(used) as store:
        with store.run((Stage.INGEST,)):
            ingest(store, Manifest(str(manifest)), IngestOptions())
        with store.run((Stage.FETCH,)) as run:
            began = time.perf_counter()
            summary = fetch(store, run, used, RunControl())
            took = time.perf_counter() - began
    assert summary.done == len(urls), summary
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a fetch here with one by a Ray cluster.")
    parser.add_argument("--ray-address", required=True)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.0, help="how grainy the pictures are, such as 20")
    parser.add_argument("--decoders", type=int, default=2, help="of this machine, where it fetches itself")
    parser.add_argument("--insecure", action="store_true")
    arguments = parser.parse_args()
    cluster = {"fetch_backend": "ray", "ray_address": arguments.ray_address, "insecure": arguments.insecure}
    ways: dict[str, dict[str, object]] = {"here": {"decoders": arguments.decoders}, "cluster": cluster}
    with tempfile.TemporaryDirectory(prefix="nodes-") as name, DemoServer() as server:
        urls = serve(server, arguments.pictures, arguments.noise)
        for turn in range(2):
            for way, settings in ways.items():
                took = seconds(Path(name) / f"{way}-{turn}", urls, **settings)
                print(f"{way:>8}: {len(urls) / took:6.1f} pictures/s, {took:.1f} s", flush=True)


if __name__ == "__main__":
    main()
