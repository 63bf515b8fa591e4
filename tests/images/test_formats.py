"""The table of picture formats: what its lines say, and that one more is accepted everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from etl.images.formats import FORMATS, format_of

ONE_MORE = r"""
import re
from etl.images import formats
formats.FORMATS += (formats.ImageFormat(
    name="PPM", mime="image/x-portable-pixmap", suffixes=(".ppm",), magic=re.compile(rb"P6\s"),
    opener="PIL.PpmImagePlugin:PpmImageFile",
),)
"""

USED = """
import asyncio, sys
from pathlib import Path
from etl.images.decoder_pool import DecoderPool
from etl.ingest.manifest import Manifest
from etl.ingest.prompts import real_title

directory = Path(sys.argv[1])
print(*(line.decode().strip() for line in Manifest(str(directory)).lines()))
print(real_title({"name": "Rue Notre-Dame.ppm"}))
with DecoderPool(
    directory / "images", processes=1, memory_bytes=2**30, longest_edge=64, max_pixels=10**6, timeout_s=60
) as pool:
    for name in ("view.ppm", "cut.ppm"):
        try:
            decoded = asyncio.run(pool.decode(directory / name))
            print(decoded.mime, decoded.width, decoded.height)
        except Exception as error:
            print(error)
"""


def _ran(tmp_path: Path, added: str) -> list[str]:
    """Return what a program sees of a directory with PPMs; it and its decoders know the formats that are ``added``."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "view.ppm")
    (tmp_path / "cut.ppm").write_bytes((tmp_path / "view.ppm").read_bytes()[:40])
    (tmp_path / "sitecustomize.py").write_text(added)
    path = os.pathsep.join((str(tmp_path), *sys.path))
    done = subprocess.run(
        [sys.executable, "-c", USED, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_another_format_is_one_line_of_the_table(tmp_path: Path) -> None:
    """Ingest of a directory, prompts, decoder processes and their words know a format that was added to the table."""
    listed, title, decoded, cut = _ran(tmp_path, ONE_MORE)
    assert listed == '{"id": "cut.ppm", "path": "cut.ppm"} {"id": "view.ppm", "path": "view.ppm"}'
    assert (title, decoded) == ("None", "image/x-portable-pixmap 8 6")
    assert cut.startswith("the PPM is broken: image file is truncated")


def test_what_is_not_in_the_table_is_no_picture(tmp_path: Path) -> None:
    """Without its line the same files are none, whatever Pillow could do with them."""
    listed, title, *refused = _ran(tmp_path, "")
    assert (listed, title) == ("", "Rue Notre-Dame.ppm")
    assert all(line.startswith("the format is unknown") for line in refused)
    assert len(refused) == 2


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF89a", "GIF"), (b"GIF", None),
        (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"MM*\0", None),
        (b"RIFF\x0a\n\0\0WEBPVP8 ", "WebP"), (b"RIFF....WAVE", None), (b"BM\x01\x02\x03\n\0\0\0\0", "BMP"),
        (b"BM is a text", None), (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\r\n" * 400 + b"%PDF-1.7", "PDF"), (b"\xff\xd8\xff %PDF-", "JPEG"), (b"", None),
    ],
)  # fmt: skip
def test_first_bytes_tell_the_format(head: bytes, name: str | None) -> None:
    """A file is of the format whose marker it begins with; a PDF may have its own further on."""
    known = format_of(head)
    assert (known.name if known else None) == name


def test_no_two_formats_claim_the_same() -> None:
    """Names, types and suffixes are each of one format, and suffixes are in lower case."""
    suffixes = [suffix for known in FORMATS for suffix in known.suffixes]
    for values in (suffixes, [known.name for known in FORMATS], [known.mime for known in FORMATS]):
        assert len(values) == len(set(values))
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in suffixes)
