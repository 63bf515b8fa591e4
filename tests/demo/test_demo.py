"""``etl demo``: the whole pipeline in a real process, checked by what it prints and leaves behind."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from etl.cli.demo_screen import DemoScreen
from etl.cli.options import Context
from etl.demo import run
from etl.demo.archive import DemoRecord, build_archive
from etl.demo.server import DemoServer
from etl.errors import UsageError
from etl.settings import Settings


class Heard:
    """Takes what the demo says, and draws nothing."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append

    def watch(self) -> "contextlib.nullcontext[run.Show]":
        return contextlib.nullcontext(lambda _: None)

    def draw(self, _picture: bytes, _caption: str) -> bool:
        return False


def _etl(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "etl.cli.app", *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.soak
def test_the_demo_ends_well_and_leaves_a_state_to_look_at(tmp_path: Path) -> None:
    """It exits 0, tells what happened in few lines that fit, and keeps export and state; proxies or not."""
    state = tmp_path / "kept"
    done = _etl("demo", str(state), "--pictures", "10", HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="", COLUMNS="90")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("picture "))) + 1 :][:3]
    assert all(line.endswith("  right") and len(line) <= 90 for line in table)
    assert [line.split("  ")[0].strip() for line in table] == ["scene-0001", "scene-0001-again", "scene-0002"]
    second_run = next(n for n, line in enumerate(lines) if line.startswith("second run:"))
    assert lines[second_run + 1] == "  failed: gone http_404, viewer not_an_image"
    assert len(lines) - sum("/s" in line for line in lines) <= 15, "what happened is told in few lines"
    assert "11 of 11 captions are right, word for word" in lines

    rows = [json.loads(line) for line in (state / run.EXPORT).read_text("utf-8").splitlines()]
    assert len(rows) == 13
    assert {row["id"]: row["vlm_error"] for row in rows if row["vlm_caption"] is None} == {
        "gone": "http_404",
        "viewer": "not_an_image",
    }
    status = json.loads(_etl("status", "--json", "--state", str(state)).stdout)
    assert (status["records"]["captioned"], status["records"]["failed"]) == (11, 2)
    assert any(line.startswith(f"  etl dashboard --state {state} ") for line in lines)


def test_a_demo_that_does_not_heal_does_not_end_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that stays broken is marked as wrong in the table, and the demo says no."""
    monkeypatch.setattr(DemoServer, "heal", lambda _: None)
    lines: list[str] = []
    assert not run.run_demo(Settings(device="cpu"), None, 4, Heard(lines))
    assert [line.split()[0] for line in lines if line.endswith("WRONG")] == ["scene-0003"]
    assert "4 of 5 captions are right, word for word" in lines


def test_a_demo_with_a_wrong_caption_does_not_end_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption that differs in one letter from the right one is shown first, as wrong, and the demo says no."""

    def with_one_other_caption(server: DemoServer, pictures: int) -> list[DemoRecord]:
        records = build_archive(server, pictures)
        return [*records[:3], dataclasses.replace(records[3], caption=f"{records[3].caption}!"), *records[4:]]

    monkeypatch.setattr(run, "build_archive", with_one_other_caption)
    lines: list[str] = []
    assert not run.run_demo(Settings(device="cpu"), None, 4, Heard(lines))
    first = next(number for number, line in enumerate(lines) if line.startswith("picture ")) + 1
    assert [line.split()[0] for line in lines if line.endswith("WRONG")] == [lines[first].split()[0]] == ["scene-0003"]
    assert "4 of 5 captions are right, word for word" in lines


def test_the_demo_touches_no_directory_that_holds_something(tmp_path: Path) -> None:
    """A directory that is not empty is refused, and nothing is written there."""
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        run.run_demo(Settings(device="cpu"), tmp_path, 4, Heard([]))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_picture_is_drawn_where_there_are_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pixels in each cell, the caption beside them with nothing hidden in it; with few colours nothing is drawn."""
    picture = io.BytesIO()
    drawn = Image.new("RGB", (240, 160), (255, 0, 0))
    drawn.paste((0, 0, 255), (0, 80, 240, 160))
    drawn.save(picture, "PNG")
    screen = DemoScreen(Context(Settings(), json=False, quiet=False))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert not screen.draw(picture.getvalue(), "no terminal")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert screen.draw(picture.getvalue(), "Red\x1b[2J above blue.")
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[0].count("▀")) == (8, 16)
    assert "38;2;255;0;0;48;2;255;0;0m" in lines[0] and "38;2;0;0;255;48;2;0;0;255m" in lines[-1]
    assert "Red\\x1b[2J above blue." in lines[0]
    monkeypatch.delenv("COLORTERM")
    assert not screen.draw(picture.getvalue(), "sixteen colours")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not screen.draw(picture.getvalue(), "no colours")
