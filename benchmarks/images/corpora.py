"""Every file of some folders through our decoders, and what judges see in it: libvips, Pillow, MuPDF and Chromium.

    python -m benchmarks.images.corpora /corpora/* --out /tmp/corpora

fetches nothing.  Into the folder of ``--out`` go ``files.jsonl``, a line for each, and sheets of those that differ:
ours and the judges' pictures beside each other.  What the judges saw is kept there too, for the next time.  libvips
and Pillow say what differs; whether a picture is shown at all, they and MuPDF or Chromium, where these are installed.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageChops, ImageDraw, ImageStat

from benchmarks.images import chromium
from benchmarks.images.judges import JUDGES, MAX_PIXELS
from etl.errors import EtlError
from etl.images.cache import ImageCache
from etl.images.decode import encode_working_copy
from etl.images.decoder_pool import DecoderPool

EDGE = 128
ALLOWED = 6.0
"""Mean absolute difference, of 255, beyond which two pictures are different ones."""

MEMORY = 2 * 1024**3
TIMEOUT_S = 60.0
COLUMNS, ROWS = 3, 9
"""Files on a sheet."""

VOICES = (("vips",), ("Pillow",), ("MuPDF", "Chromium"))
"""Judges; the last are one together, so that two which draw pages and scripts do not make every text a picture."""

COLOUR_JUDGES = ("vips", "Pillow")
BY_NAME = re.compile("an icon or a cursor|a TGA|is SVG")
"""What is refused on purpose, in the words of its refusal."""


@dataclass
class Found:
    """What became of a file: ours or the error of ours, and each judge's picture."""

    path: Path
    ours: Image.Image | None = None
    refused: str = ""
    message: str = ""
    judged: dict[str, Image.Image] = field(default_factory=dict)

    @property
    def differences(self) -> dict[str, float]:
        """How far each judge's picture is from ours; 255 where it has another shape."""
        return {} if self.ours is None else {name: distance(self.ours, seen) for name, seen in self.judged.items()}

    @property
    def is_shown(self) -> bool:
        """Whether two of three judges show something, and it is not of a kind that is refused on purpose."""
        return sum(map(bool, self._voices())) > 1 and not BY_NAME.search(self.message)

    @property
    def is_agreed(self) -> bool:
        """Whether two of three judges show the same: of a damaged file each may show other noise."""
        pairs = itertools.combinations(self._voices(), 2)
        return self.is_shown and any(distance(*both) <= ALLOWED for pair in pairs for both in itertools.product(*pair))

    def _voices(self) -> list[list[Image.Image]]:
        shows = {name: seen for name, seen in self.judged.items() if not is_blank(seen)}
        return [[shows[name] for name in names if name in shows] for names in VOICES]

    @property
    def verdict(self) -> str:
        """How the file counts in the table."""
        judging = [name for name in COLOUR_JUDGES if name in self.judged]
        if self.ours is None:
            return f"refused: {self.refused}" + (", a judge reads it" if judging else "")
        if not judging:
            return "accepted: blank" if is_blank(self.ours) else "accepted, no judge"
        far = sum(self.differences[name] > ALLOWED for name in judging)
        return ("accepted", "different from one", "different from both")[far if len(judging) > 1 else 2 * far]


def is_blank(image: Image.Image) -> bool:
    """Return whether the picture has one colour."""
    return all(high - low < 4 for low, high in cast("list[tuple[int, int]]", image.getextrema()))


def distance(ours: Image.Image, judges: Image.Image) -> float:
    """Return the mean absolute difference of two pictures, whose sizes may be off by rounding."""
    if any(abs(one - other) > 2 for one, other in zip(ours.size, judges.size, strict=True)):
        return 255.0
    # What filters do differently at edges, and the working copy's JPEG everywhere, is no difference.
    with Image.open(io.BytesIO(encode_working_copy(judges))) as compressed:
        size = (max(1, ours.width // 2), max(1, ours.height // 2))
        both = [image.resize(size, Image.Resampling.BOX) for image in (ours, compressed)]
    return sum(ImageStat.Stat(ImageChops.difference(*both)).mean) / 3


class Judge:
    """The child process that runs the judges, started anew when a file costs it its life."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def see(self, path: Path) -> dict[str, Any]:
        """Return the line that `benchmarks.images.judges` answers with; nothing where it dies or takes too long."""
        if self._child is None:
            command = ["nice", "-n", "15", sys.executable, "-m", "benchmarks.images.judges", str(EDGE)]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(os.fsencode(path) + b"\n")
        self._child.stdin.flush()
        ready, _, _ = select.select([self._child.stdout], [], [], TIMEOUT_S)
        line = self._child.stdout.readline() if ready else b""
        if line:
            return dict(json.loads(line))
        self.close()
        return {}

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def judge_all(paths: list[Path], kept: Path) -> None:
    """Append to the file what the judges see in those that it does not know."""
    known = {json.loads(line)["path"] for line in kept.open()} if kept.exists() else set()
    paths = [path for path in paths if str(path) not in known]
    judge = Judge()
    shown: Iterable[tuple[Path, Image.Image | None]] = ((path, None) for path in paths)
    if chromium.COMMAND:
        shown = chromium.see(paths, EDGE)
    with kept.open("a") as file:
        for path, seen in shown:
            fields = {"path": str(path)} | judge.see(path)
            if seen is not None:
                fields["Chromium"] = [*seen.size, base64.b64encode(seen.tobytes()).decode()]
            print(json.dumps(fields), file=file)
    judge.close()


def decode_all(paths: list[Path], cache_root: Path) -> list[Found]:
    """Decode in confined processes, as fetch does."""

    async def one(pool: DecoderPool, path: Path) -> Found:
        try:
            working = (await pool.decode(path)).working
        except EtlError as error:
            return Found(path, refused=error.slug, message=str(error))
        with Image.open(ImageCache(cache_root).working_path(working.sha256)) as image:
            return Found(path, image.convert("RGB"))

    async def every(pool: DecoderPool) -> list[Found]:
        return await asyncio.gather(*(one(pool, path) for path in paths))

    with DecoderPool(
        cache_root, processes=2, memory_bytes=MEMORY, longest_edge=EDGE, max_pixels=MAX_PIXELS, timeout_s=TIMEOUT_S
    ) as pool:
        return asyncio.run(every(pool))


def add_judged(found: list[Found], kept: Path) -> None:
    """Give each file what the judges saw."""
    lines = {fields.pop("path"): fields for fields in map(json.loads, kept.open())}
    for each in found:
        for name, picture in lines[str(each.path)].items():
            if picture is not None:
                width, height, pixels = picture
                if width and height:
                    each.judged[name] = Image.frombytes("RGB", (width, height), base64.b64decode(pixels))


def sheets(found: list[Found], out: Path, name: str) -> None:
    """Write the pictures of the files onto sheets."""
    names = [*JUDGES, "Chromium"] if chromium.COMMAND else [*JUDGES]
    per_sheet, cell = COLUMNS * ROWS, ((len(names) + 1) * (EDGE + 4) + 18, EDGE + 18)
    for number, first in enumerate(range(0, len(found), per_sheet)):
        sheet = Image.new("RGB", (COLUMNS * cell[0], ROWS * cell[1]), "#707070")
        draw = ImageDraw.Draw(sheet)
        for place, each in enumerate(found[first : first + per_sheet]):
            x, y = place % COLUMNS * cell[0], place // COLUMNS * cell[1]
            shown = [("ours", each.ours), *((judge, each.judged.get(judge)) for judge in names)]
            for column, (_, picture) in enumerate(shown):
                if picture is not None:
                    sheet.paste(picture, (x + column * (EDGE + 4), y + 13))
            rest = " ".join(f"{judge[0]}{value:.0f}" for judge, value in each.differences.items())
            words = f"{first + place} {'/'.join(each.path.parts[-2:])[-48:]} {rest}"
            draw.text((x + 2, y), words.encode("ascii", "replace").decode(), "white")
        sheet.save(out / f"{name}-{number}.png")


def main() -> None:
    """Write the files of ``--out`` and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for folder in options.folders for path in folder.rglob("*") if path.is_file())
    kept = out / "judged.jsonl"
    with tempfile.TemporaryDirectory(dir=out) as cache, ThreadPoolExecutor() as threads:
        judging = threads.submit(judge_all, paths, kept)
        found = decode_all(paths, Path(cache))
        judging.result()
    add_judged(found, kept)
    groups: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        groups[each.verdict].append(each)
    for old in out.glob("*.png"):
        old.unlink()
    for verdict, files in groups.items():
        if verdict.startswith("different") or "blank" in verdict or "a judge" in verdict:
            sheets(files, out, verdict.replace(":", "").replace(",", "").replace(" ", "-"))
    shown = [each for each in found if each.is_shown]
    missed = [each for each in shown if each.ours is None]
    sheets(missed, out, "missed")
    with (out / "files.jsonl").open("w") as file:
        for each in found:
            far = {name: round(value, 1) for name, value in each.differences.items()}
            fields = {"path": str(each.path), "verdict": each.verdict, "message": each.message, "differences": far}
            print(json.dumps(fields | {"shown": each.is_shown, "agreed": each.is_agreed}), file=file)
    for verdict, count in sorted(Counter(each.verdict for each in found).items()):
        print(f"| {verdict} | {count} |")
    agreed = [each for each in shown if each.is_agreed]
    print(f"| two of three judges show something; refused of these | {len(shown)}; {len(missed)} |")
    missed = [each for each in agreed if each.ours is None]
    in_part = sum(each.refused == "truncated_image" for each in missed)
    words = f"{len(missed)}, {in_part} of which show a part"
    print(f"| two of three judges show the same; refused of these | {len(agreed)}; {words} |")
    for (refused, message), count in Counter((each.refused, each.message[:90]) for each in missed).most_common():
        print(f"| ... {refused}: {message} | {count} |")


if __name__ == "__main__":
    main()
