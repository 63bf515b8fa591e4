"""Pictures from strangers through confined decoders: a working copy or an error of ours, and no neighbour harmed."""

import asyncio
import random
import re
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from support.bad_pictures import GREAT_BOMBS, KINDS, saved
from support.fuzzing import SOAK_FACTOR, Tally, inputs

from etl.domain.items import DecodedImage
from etl.errors import DecoderCrashedError, ImageError
from etl.images.cache import ImageCache
from etl.images.decoder_pool import DecoderPool

PICTURES = 72
EDGE = 64
MAX_PIXELS = 50_000_000
MEMORY = 512 * 2**20
TIMEOUT_S = 20.0

Maker = Callable[[random.Random], bytes]


def test_pictures(tmp_path: Path, tally: Tally) -> None:
    """Every file gives a sound working copy or a known error, and the picture beside it is decoded all the same."""
    asyncio.run(feed(tmp_path, KINDS, PICTURES, tally))


@pytest.mark.soak
def test_pictures_soak(tmp_path: Path, tally: Tally) -> None:
    """The same with many more pictures."""
    asyncio.run(feed(tmp_path, KINDS, PICTURES * SOAK_FACTOR, tally))


@pytest.mark.soak
def test_great_bombs_soak(tmp_path: Path, tally: Tally) -> None:
    """Files of the worst kind, each of which takes a decoder's whole time or memory."""
    asyncio.run(feed(tmp_path, GREAT_BOMBS, SOAK_FACTOR // 8, tally))


async def feed(directory: Path, kinds: Mapping[str, Maker], count: int, tally: Tally) -> None:
    neighbour = directory / "good.png"
    neighbour.write_bytes(saved("PNG"))
    with DecoderPool(
        directory / "images", processes=2, memory_bytes=MEMORY, longest_edge=EDGE, max_pixels=MAX_PIXELS,
        timeout_s=TIMEOUT_S,
    ) as pool:  # fmt: skip
        expected = await pool.decode(neighbour)
        cache = ImageCache(directory / "images")
        for kind, number, rng in inputs(kinds, count):
            bad = directory / f"{number}.jpg"
            bad.write_bytes(kinds[kind](rng))
            with tally.trying(kind, number) as outcome:
                became, beside = await asyncio.gather(tried(pool, bad, cache), pool.decode(neighbour))
                assert beside == expected
                assert kind != "unharmed" or became == "decoded"
                outcome.append(became)
            bad.unlink()
    tally.memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


async def tried(pool: DecoderPool, path: Path, cache: ImageCache) -> str:
    """Decode one file; return what became of it."""
    try:
        decoded = await pool.decode(path)
    except DecoderCrashedError as error:
        # A signal is a fault of a library in C, which the process is there for; an exit is an exception of ours.
        signal = re.search(r"killed by (SIG\w+)", str(error))
        assert signal, error
        return f"crashed by {signal[1]}"
    except ImageError as error:
        assert str(error).isprintable(), error
        return error.slug
    assert_sound(decoded, cache)
    return "decoded"


def assert_sound(decoded: DecodedImage, cache: ImageCache) -> None:
    """The working copy is there, of its size, and a picture that anything can open."""
    working = decoded.working
    assert 0 < decoded.width * decoded.height <= MAX_PIXELS
    path = cache.working_path(working.sha256)
    assert path.stat().st_size == working.size
    with Image.open(path, formats=["JPEG"]) as picture:
        picture.load()
        assert picture.mode == "RGB" and picture.size == (working.width, working.height)
    assert min(picture.size) >= 1 and max(picture.size) <= EDGE
