"""Make the pictures of docs/dashboard.md: the dashboard beside a real run over drawn pictures.

    python -m benchmarks.tui.screenshots        # or: make screenshots

Needs ``rsvg-convert`` (package librsvg2-bin) and a fixed-width font (fonts-dejavu-core).
"""

import argparse
import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from textual.pilot import Pilot

from etl.demo.archive import build_archive, write_manifest
from etl.demo.server import HOST, DemoServer
from etl.state.database import DATABASE_NAME
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from tui.app import Dashboard
from tui.settings import DashboardSettings

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"

PICTURES = 240
COLOURS = 128
"""A screen has few: a palette of so many makes the files four times smaller."""


@dataclass(frozen=True)
class Shot:
    """One picture: its file, the size in cells, the keys that lead there, and how it is drawn."""

    name: str
    columns: int
    lines: int
    keys: tuple[str, ...] = ()
    theme: str = "dark"
    ascii_only: bool = False


SHOTS = (
    Shot("overview", 80, 24),
    Shot("overview-wide", 150, 40, theme="light"),
    Shot("overview-ascii", 80, 24, ascii_only=True),
    Shot("failures", 80, 24, ("f",)),
    Shot("story", 80, 24, ("f", "enter", "enter")),
    Shot("captions", 80, 24, ("c", "n", "n")),
    Shot("records", 80, 24, ("w", "slash", *"parc", "enter")),
    Shot("help", 100, 50, ("question_mark",)),
)


@contextmanager
def running(directory: Path) -> Iterator[Path]:
    """Run the demo's pictures through the whole pipeline in a process of its own; yield its state once it captions."""
    state = directory / "state"
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with DemoServer() as server:
        # What fails comes last in the demo, and the pictures are taken in the middle of the run.
        write_manifest(build_archive(server, PICTURES)[::-1], directory / "manifest.jsonl")
        command = [
            sys.executable, "-m", "etl.cli.app", "run", "--input", "manifest.jsonl", "--output", "captions.jsonl",
            "--state", "state", "--model", "demo", "--device", "cpu", "-q", "--allow-host", HOST, "--host-rate", "3",
            "--batch-size", "4", "--gpu-price", "2.5", "--max-attempts", "2", "--backoff", "0.2",
        ]  # fmt: skip
        process = subprocess.Popen(command, env=kept | {"OMP_NUM_THREADS": "1"}, cwd=directory)
        try:
            while not _captioned(state) > 80:
                assert process.poll() is None, "the run has ended too early"
                time.sleep(0.5)
            yield state
        finally:
            process.terminate()
            process.wait()


def _captioned(state: Path) -> int:
    if not (state / DATABASE_NAME).exists():
        return 0
    with Reader(state) as reader:
        return read_progress(reader).captions.get("done", 0)


async def take(state: Path, shot: Shot) -> str:
    """Return one picture as SVG."""
    settings = DashboardSettings(theme=shot.theme)
    app = Dashboard(state, ascii_only=shot.ascii_only, settings=settings)
    async with app.run_test(size=(shot.columns, shot.lines)) as pilot:
        await _seen(pilot)
        for key in shot.keys:
            await pilot.press(key)
            await pilot.pause(0.3)
        await pilot.pause(1.2)
        svg = app.export_screenshot(title="etl dashboard")
    # Spaces at the beginning of a text would be lost, and the web's fonts are not asked for.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("<text ", '<text xml:space="preserve" ')


async def _seen(pilot: Pilot[None]) -> None:
    for _ in range(100):
        app = pilot.app
        if isinstance(app, Dashboard) and app.snapshot is not None:
            break
        await pilot.pause(0.05)
    await pilot.pause(0.6)


def write(svg: str, target: Path) -> None:
    """Write one picture as a small PNG."""
    tool = shutil.which("rsvg-convert")
    if tool is None:
        raise SystemExit("rsvg-convert is needed (package librsvg2-bin)")
    done = subprocess.run([tool, "--format", "png"], input=svg.encode(), capture_output=True, check=True)
    with Image.open(io.BytesIO(done.stdout)) as image:
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size // 1024} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of docs/dashboard.md.")
    parser.add_argument("--target", type=Path, default=FOLDER, help="directory to write them to")
    target = parser.parse_args().target
    target.mkdir(exist_ok=True)
    target = target.resolve()
    with tempfile.TemporaryDirectory(prefix="archive-") as directory, running(Path(directory)):
        # So that the pictures show what a person would have typed, and not where this was run.
        os.chdir(directory)
        state = Path("state")
        for shot in SHOTS:
            write(asyncio.run(take(state, shot)), target / f"{shot.name}.png")


if __name__ == "__main__":
    main()
