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
    name="SGI", mime="image/sgi", suffixes=(".rgb",), magic=re.compile(rb"\x01\xda[\0\x01]"),
    opener="PIL.SgiImagePlugin:SgiImageFile",
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
print(real_title({"name": "Rue Notre-Dame.rgb"}))
with DecoderPool(
    directory / "images", processes=1, memory_bytes=2**30, longest_edge=64, max_pixels=10**6, timeout_s=60
) as pool:
    for name in ("view.rgb", "cut.rgb"):
        try:
            decoded = asyncio.run(pool.decode(directory / name))
            print(decoded.mime, decoded.width, decoded.height)
        except Exception as error:
            print(error)
"""


def _ran(tmp_path: Path, added: str) -> list[str]:
    """Return what a program sees of a directory with SGI pictures, where it and its decoders know ``added`` formats."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "view.rgb")
    (tmp_path / "cut.rgb").write_bytes((tmp_path / "view.rgb").read_bytes()[:560])
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
    assert listed == '{"id": "cut.rgb", "path": "cut.rgb"} {"id": "view.rgb", "path": "view.rgb"}'
    assert (title, decoded) == ("None", "image/sgi 8 6")
    assert cut.startswith("the SGI is cut short")


def test_what_is_not_in_the_table_is_no_picture(tmp_path: Path) -> None:
    """Without its line the same files are none, whatever Pillow could do with them."""
    listed, title, *refused = _ran(tmp_path, "")
    assert (listed, title) == ("", "Rue Notre-Dame.rgb")
    assert all(line.startswith("the file is a picture of a kind that is not accepted") for line in refused)
    assert len(refused) == 2


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF89a", "GIF"), (b"GIF", None),
        (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"MM*\0", None),
        (b"RIFF\x0a\n\0\0WEBPVP8 ", "WebP"), (b"RIFF....WAVE", None), (b"BM\x01\x02\x03\n\0\0\0\0", "BMP"),
        (b"BM is a text", None), (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\r\n" * 400 + b"%PDF-1.7", "PDF"), (b"\xff\xd8\xff %PDF-", "JPEG"), (b"", None),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"), (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicavif", "AVIF"),
        (b"\0\0\0\x1cftypheix\0\0\0\0", "HEIF"), (b"\0\0\0\x1cftypmsf1\0\0\0\0msf1hevc", "HEIF"),
        (b"\0\0\0\x1cftypisom\0\0\0\0", None), (b"\xff\x0a\x12", "JPEG XL"),
        (b"8BPS\0\x01", "PSD"), (b"8BPS\0\x02", None), (b"P6 3 2", "PNM"), (b"P4\n# x\n3 2", "PNM"),
        (b"P6 is a text", None), (b"P7\nWIDTH 3", "PAM"), (b"P8\n3", None),
        (b"\x28\0\0\0\3\0\0\0\2\0\0\0\1\0\x18\0", "DIB"), (b"\x28\0\0\0 is a text of ours", None),
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
