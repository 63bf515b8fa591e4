"""What large TIFFs of rarer kinds cost, beside libvips and Pillow: CPU time and peak memory of a process for each.

python -m benchmarks.images.tiffs --megapixels 27
"""

import argparse
import contextlib
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyvips

EDGE = 1024


def drawn(megapixels: float) -> pyvips.Image:
    """Return a picture with detail in all places, four wide and three high."""
    side = int((megapixels * 1e6 / 12) ** 0.5)
    bands = [pyvips.Image.perlin(4 * side, 3 * side, cell_size=200 + n, seed=n) * 90 + 128 for n in range(3)]
    noise = pyvips.Image.gaussnoise(4 * side, 3 * side, sigma=6, mean=0, seed=9)
    return (bands[0].bandjoin(bands[1:]) + noise).cast("uchar").copy(interpretation="srgb")


def planar(picture: pyvips.Image, path: Path) -> None:
    """Write 16 bits a sample, a plane for each colour: one strip each, as scanners do."""
    planes = [(band.cast("ushort") * 257).cast("ushort").write_to_memory() for band in picture.bandsplit()]
    first = 8 + 10 * 12 + 6
    arrays = first + 6 + 24
    tags = (
        (256, 4, 1, picture.width), (257, 4, 1, picture.height), (258, 3, 3, first), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 3, first + 6), (277, 3, 1, 3), (278, 4, 1, picture.height), (279, 4, 3, first + 18), (284, 3, 1, 2),
    )  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    places = [arrays + number * len(planes[0]) for number in range(3)]
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<I", 8) + directory)
        file.write(struct.pack("<3H6I", 16, 16, 16, *places, *[len(plane) for plane in planes]))
        file.writelines(planes)


def palette(picture: pyvips.Image, path: Path) -> None:
    from PIL import Image

    size = (picture.width, picture.height)
    Image.frombytes("RGB", size, picture.write_to_memory()).quantize(256, dither=0).save(
        path, compression="tiff_lzw", tiffinfo={278: 64}
    )


KINDS: dict[str, Callable[[pyvips.Image, Path], object]] = {
    "float RGB, Deflate": lambda image, path: (image.cast("float") / 255).copy(interpretation="rgb").tiffsave(
        str(path), compression="deflate", predictor="none"
    ),
    "CIELAB, 16 bits, raw": lambda image, path: image.colourspace("labs").tiffsave(str(path)),
    "palette, LZW": palette,
    "RGB, 16-bit planes, raw": planar,
    "BigTIFF, RGB, tiles, LZW": lambda image, path: image.tiffsave(
        str(path), bigtiff=True, tile=True, compression="lzw"
    ),
    "RGB, 16 bits, Deflate": lambda image, path: (image.cast("ushort") * 257).cast("ushort").copy(
        interpretation="rgb16"
    ).tiffsave(str(path), compression="deflate"),
}  # fmt: skip


def ours(path: str) -> None:
    from etl.images.decode import decode

    decode(Path(path), longest_edge=EDGE, max_pixels=10**9)


def by_pillow(path: str) -> None:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as image:
        image.thumbnail((EDGE, EDGE))
        image.convert("RGB")


def by_vips(path: str) -> None:
    image = pyvips.Image.new_from_file(path, access="sequential")
    image.thumbnail_image(EDGE).colourspace("srgb").write_to_memory()


READERS: dict[str, Callable[[str], None]] = {"ours": ours, "libvips": by_vips, "Pillow": by_pillow}


def measured(reader: str, path: Path) -> str:
    """Return seconds of CPU and the peak in MB, in a new process; what it cannot read is a dash."""
    command = [sys.executable, "-m", "benchmarks.images.tiffs", "--read", reader, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "-"


def files(folder: Path, megapixels: float) -> Iterator[tuple[str, Path]]:
    """Write a file of each kind, one after the other."""
    picture = drawn(megapixels).copy_memory()
    for number, (kind, write) in enumerate(KINDS.items()):
        path = folder / f"{number}.tif"
        write(picture, path)
        yield kind, path
        path.unlink()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=27)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        reader, path = options.read
        with contextlib.redirect_stdout(sys.stderr):
            began = time.process_time()
            READERS[reader](path)
            took = time.process_time() - began
        # Not ru_maxrss, which begins with what the parent has.
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak
        print(f"{took:.1f} / {int(peak[1]) / 1000:.0f}")
        return
    print("| kind | file MB | " + " | ".join(f"{reader}, s / MB" for reader in READERS) + " |")
    print("|---" * (2 + len(READERS)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, path in files(Path(folder), options.megapixels):
            cells = [kind, f"{path.stat().st_size / 1e6:.0f}", *(measured(reader, path) for reader in READERS)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
