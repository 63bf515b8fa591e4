"""The two programs that the fetch benchmark compares, and the limits: each takes URLs and says what it took."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.fetch.server import ADDRESSES
from benchmarks.process_tree import Usage, run_measured

CORES = 2
LONGEST_EDGE = 1024
QUALITY = 90
CONNECTIONS = 16
MOST_PER_HOST = 32
"""Requests at once to one host that our setting allows."""

PEER_THREADS = 16
"""Of each of the peer's processes, so that it has twice as many connections as we have."""

BACKOFF_S = 1.0

_PEER = "import json, sys; from img2dataset import download; download(**json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Result:
    """What one program made of one list of URLs: the usage of its processes, and the working copies that it made."""

    usage: Usage
    copies: int


def run_ours(urls: list[str], work: Path, connections: int = CONNECTIONS) -> Result:
    """Ingest the URLs, then measure ``etl fetch``: hashes, fsyncs and database commits as always."""
    with _emptied(work):
        manifest = work / "manifest.jsonl"
        manifest.write_text("".join(json.dumps({"id": str(n), "url": url}) + "\n" for n, url in enumerate(urls)))
        environment = _environment() | {
            "ETL_STATE": str(work / "state"), "ETL_ALLOW_HOST": ",".join(ADDRESSES),
            "ETL_CONCURRENCY": str(connections), "ETL_PER_HOST": str(min(connections, MOST_PER_HOST)),
            "ETL_DECODERS": str(CORES), "ETL_LONGEST_EDGE": str(LONGEST_EDGE), "ETL_BACKOFF": str(BACKOFF_S),
        }  # fmt: skip
        etl = [sys.executable, "-m", "etl.cli.app"]
        subprocess.run([*etl, "ingest", "-q", str(manifest)], env=environment, check=True)
        usage = run_measured([*etl, "fetch", "-q"], output=work / "log", environment=environment)
        _exit_unless_ok(usage, work / "log", "etl fetch")
        return Result(usage, _copies(work / "state" / "images" / "working"))


def run_peer(python: str, urls: list[str], work: Path, *, retries: int = 0) -> Result:
    """Measure img2dataset, tuned: a shard for each process, no EXIF, no upscaling, its SHA-256 on as by default."""
    with _emptied(work):
        (work / "urls.txt").write_text("\n".join(urls))
        options: dict[str, Any] = {
            "url_list": str(work / "urls.txt"), "output_folder": str(work / "out"), "output_format": "files",
            "image_size": LONGEST_EDGE, "resize_mode": "keep_ratio_largest", "resize_only_if_bigger": True,
            "encode_format": "jpg", "encode_quality": QUALITY, "processes_count": CORES, "thread_count": PEER_THREADS,
            "number_sample_per_shard": max(1, -(-len(urls) // CORES)), "extract_exif": False, "timeout": 60,
            "retries": retries, "enable_wandb": False,
        }  # fmt: skip
        # Its augmentation library would ask the network for a newer version of itself.
        environment = _environment() | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        command = [python, "-c", _PEER, json.dumps(options)]
        usage = run_measured(command, output=work / "log", environment=environment)
        _exit_unless_ok(usage, work / "log", "img2dataset")
        return Result(usage, _copies(work / "out"))


def download_limit(urls: list[str], work: Path) -> dict[str, float]:
    """Return files/s and CPU of streaming the URLs into files."""
    with _emptied(work):
        (work / "urls.txt").write_text("\n".join(urls))
        (work / "files").mkdir()
        return _limit("download", str(work / "urls.txt"), str(work / "files"), "--connections", str(CONNECTIONS))


def decode_limit(paths: list[Path]) -> dict[str, float]:
    """Return files/s and CPU of making working copies on one core."""
    return _limit("decode", *map(str, paths))


def _limit(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.fetch.limits", *arguments]
    output = subprocess.run(command, env=_environment(), check=True, stdout=subprocess.PIPE).stdout
    return dict(json.loads(output))


def _environment() -> dict[str, str]:
    """Return the environment without proxies and without settings of ours; with bytecode, as when installed."""
    left_out = ("ETL_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}


@contextmanager
def _emptied(work: Path) -> Iterator[None]:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    yield
    # Not on an error: then the log is wanted.
    shutil.rmtree(work)
    # What this run left unwritten is not to slow the next one.
    os.sync()


def _exit_unless_ok(usage: Usage, log: Path, name: str) -> None:
    if usage.code:
        sys.exit(f"{name}: exit code {usage.code}\n{log.read_text(errors='replace')[-2000:]}")


def _copies(directory: Path) -> int:
    """Return how many working copies there are; exits when one is larger than it should be."""
    paths = list(directory.rglob("*.jpg"))
    for path in paths[:3]:
        with Image.open(path) as picture:
            if max(picture.size) > LONGEST_EDGE:
                sys.exit(f"{path} is {picture.size}")
    return len(paths)
