"""What fetch cannot beat, measured alone: downloading without decoding, and decoding without downloading.

    python -m benchmarks.fetch.limits download URLS DIRECTORY [--connections 16]
    python -m benchmarks.fetch.limits decode FILE...

Each prints one JSON object, without the time of its own start.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from etl.images.decode import decode, encode_working_copy
from etl.settings import Settings


async def download(urls: list[str], directory: Path, connections: int) -> None:
    """Stream every URL into a file: no hash, no fsync, no database."""
    waiting = iter(enumerate(urls))
    limits, context = httpx2.Limits(max_connections=connections), httpx2.create_ssl_context()
    async with httpx2.AsyncClient(trust_env=False, limits=limits, verify=context) as client:

        async def work() -> None:
            for number, url in waiting:
                async with client.stream("GET", url) as response:
                    response.raise_for_status()
                    with (directory / f"{number}").open("wb") as file:
                        async for chunk in response.aiter_raw():
                            file.write(chunk)

        await asyncio.gather(*(work() for _ in range(connections)))


def make_working_copies(paths: list[Path]) -> None:
    """Decode, shrink and encode every file as the decoder processes do; nothing is written."""
    settings = Settings()
    for path in paths:
        picture = decode(path, longest_edge=settings.longest_edge, max_pixels=settings.max_pixels)
        encode_working_copy(picture.image)


def _timed(work: Callable[[], object], files: int) -> str:
    begun, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    return json.dumps({"files": files, "files_per_s": files / seconds, "cpu_ms_per_file": 1000 * cpu_s / files})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure downloading alone, or decoding alone.")
    commands = parser.add_subparsers(dest="command", required=True)
    downloading = commands.add_parser("download")
    downloading.add_argument("urls", type=Path)
    downloading.add_argument("directory", type=Path)
    downloading.add_argument("--connections", type=int, default=16)
    commands.add_parser("decode").add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "decode":
        print(_timed(lambda: make_working_copies(arguments.files), len(arguments.files)))
        return
    urls = arguments.urls.read_text().split()
    print(_timed(lambda: asyncio.run(download(urls, arguments.directory, arguments.connections)), len(urls)))


if __name__ == "__main__":
    main()
