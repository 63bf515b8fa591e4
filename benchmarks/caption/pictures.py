"""What it costs to feed a caption engine with pictures, beside transformers' own image processor.

    python -m benchmarks.caption.pictures --pictures 200

Draws pictures with the grain of photographs, puts them into a cache as fetch does (1024 pixels on the long side), and
turns them into 336 x 336 pixels: in this process, through an `ImageLoader`, and through CLIP's image processor.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageChops

from etl.caption.pictures.loader import ImageLoader
from etl.caption.pictures.pixels import PixelPlan, crop_aspect, pixels
from etl.demo.scenes import random_scene
from etl.domain.items import CaptionItem
from etl.images.cache import ImageCache
from etl.images.decode import encode_working_copy
from etl.images.working_copies import open_working_copy

PLAN = PixelPlan(336, 336, 336, Image.Resampling.BICUBIC, 4.0)
"""LLaVA-1.5's."""

SHAPES = ((1024, 683), (1024, 768), (683, 1024), (1024, 1024), (1024, 576))
"""Of working copies, in pixels."""

GRAIN_SIGMA = 12
"""Of the noise that makes a drawing as heavy as a photograph."""

WANTED_PER_S = 35
"""What an engine close to a GPU's limit asks for."""

PENDING = 128
"""How far the engine is ahead."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="distinct working copies")
    parser.add_argument(
        "--runs", type=int, default=5, help="repetitions, of which median, lowest and highest are shown"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cache = ImageCache(Path(directory))
        hashes, sizes = _fill(cache, options.pictures)
        print(f"{len(hashes)} working copies, {statistics.mean(sizes) / 1000:.0f} kB on average; {options.runs} runs")
        paths = [cache.working_path(sha256) for sha256 in hashes]
        _show(
            "pixels(), CPU ms a picture", [_cpu_ms(paths, lambda path: pixels(path, PLAN)) for _ in range(options.runs)]
        )
        opened = [_cpu_ms(paths, open_working_copy) for _ in range(options.runs)]
        _show("  of that, decoding", opened)
        for processes in (0, 1, 2):
            _feed(cache, hashes, processes, options.runs)
        prepare = _processor()
        _show("CLIP's processor, CPU ms a picture", [_cpu_ms(paths, prepare) for _ in range(options.runs)])


def _fill(cache: ImageCache, count: int) -> tuple[list[str], list[int]]:
    """Put so many working copies into the cache; return their hashes and their sizes in bytes."""
    grain = Image.effect_noise((1400, 1400), GRAIN_SIGMA)
    hashes, sizes = [], []
    for number in range(count):
        rng = random.Random(number)
        width, height = SHAPES[number % len(SHAPES)]
        left, top = rng.randrange(grain.width - width), rng.randrange(grain.height - height)
        noise = grain.crop((left, top, left + width, top + height)).convert("RGB")
        # Grain is centred on 128.
        data = encode_working_copy(ImageChops.add(random_scene(rng).draw(width, height), noise, offset=-128))
        hashes.append(cache.put_working(data))
        sizes.append(len(data))
    return hashes, sizes


def _cpu_ms(paths: Sequence[Path], prepare: Callable[[Path], object]) -> float:
    prepare(paths[0])
    begun = time.process_time()
    for path in paths:
        prepare(path)
    return (time.process_time() - begun) * 1000 / len(paths)


def _feed(cache: ImageCache, hashes: Sequence[str], processes: int, runs: int) -> None:
    first_s, rates, cores, memory = [], [], [], []
    for _ in range(runs):
        own, begun = time.process_time(), time.perf_counter()
        with ImageLoader(PLAN, cache.working_path, processes=processes) as loader:
            loader.submit(CaptionItem(0, hashes[0], ""))
            loader.take(60)
            first_s.append(time.perf_counter() - begun)
            begun, before = time.perf_counter(), _cpu_s(own)
            _run(loader, hashes)
            rates.append(len(hashes) / (time.perf_counter() - begun))
            cores.append((_cpu_s(own) - before) / len(hashes) * WANTED_PER_S)
            memory += [_pss(pid) / 1e6 for pid in _children()]
    print(f"image loader with {processes or 'no'} processes")
    _show("  pictures/s", rates)
    _show(f"  cores at {WANTED_PER_S} pictures/s, this side's share included", cores)
    _show("  s until the first picture", first_s)
    if memory:
        _show("  memory of a process (PSS), MB", memory)


def _run(loader: ImageLoader, hashes: Sequence[str]) -> None:
    """Take one picture of each, as an engine does that looks every few milliseconds."""
    waiting, done = list(enumerate(hashes)), 0
    while done < len(hashes):
        while waiting and loader.pending < PENDING:
            number, sha256 = waiting.pop()
            loader.submit(CaptionItem(number, sha256, ""))
        taken = loader.take(1)
        if broken := [loaded.error for loaded in taken if loaded.error]:
            raise SystemExit(str(broken[0]))
        done += len(taken)


def _processor() -> Callable[[Path], object]:
    """Return CLIP's own image processor, as a function of a working copy."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return lambda path: processor(images=crop_aspect(open_working_copy(path), PLAN.max_aspect), return_tensors="pt")


def _children() -> list[int]:
    """Return the ids of this process's children; the kernel lists them by the thread that started them."""
    threads = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]


def _cpu_s(since: float) -> float:
    """Return the CPU seconds of this process since then and of all that its children have ever used."""
    ticks = os.sysconf("SC_CLK_TCK")
    spent = time.process_time() - since
    for pid in _children():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / ticks
    return spent


def _pss(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def _show(name: str, values: Sequence[float]) -> None:
    print(f"{name}: {statistics.median(values):.3g} [{min(values):.3g}-{max(values):.3g}]")


if __name__ == "__main__":
    main()
