"""Each family through the program, from a directory of pictures and one with a checkpoint, and the words that a user
reads."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from caption.test_models import MISSING
from support.tiny_captioners import CAPTIONERS
from support.tiny_families import FAMILIES, checkpoint

from etl.demo.scenes import random_scene
from etl.extras import installer

SIZES = ((320, 240), (224, 224), (200, 280), (1000, 120))

ASKED = {
    "blip": "given to it without words", "blip2": "given to it without words", "git": "given to it without words",
    "florence2": "asked '<MORE_DETAILED_CAPTION>'", "kosmos2": "asked 'Describe this image in detail:'",
    "paligemma": "asked 'caption en'",
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of pictures of several shapes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(7)
    for number, size in enumerate(SIZES):
        random_scene(rng).draw(*size).save(folder / f"{number}.jpg", quality=90)
    return folder


def run(family: str, pictures: Path, folder: Path) -> tuple[int, str]:
    """Run everything with a small checkpoint of this family; return the exit code and what is written for people."""
    command = [
        sys.executable, "-c", "from etl.cli.app import main; main()", "run", "--state", folder / "state", "--input",
        pictures, "--output", folder / "out.jsonl", "--model", checkpoint(family, folder), "--device", "cpu",
        "--dtype", "float32", "--max-new-tokens", "8", "--batch-size", "4", "--decoders", "1",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stderr


def lines(said: str) -> Iterator[str]:
    return (line for line in said.splitlines() if "chat template" in line or "needs " in line or "slots" in line)


@pytest.mark.soak
@pytest.mark.torchvision
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_run(family: str, pictures: Path, tmp_path: Path) -> None:
    """Every picture has a caption in the export; what is missing, or asked otherwise than a chat, is said in a line."""
    code, said = run(family, pictures, tmp_path)
    print(f"{family}: exit {code}", *lines(said), sep="\n    ")
    if family in MISSING:
        assert code == 2
        assert f"{family} needs {MISSING[family]} for its pictures; type: {installer()} {MISSING[family]}" in said
        return
    assert code == 0, said
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == len(SIZES)
    assert all("vlm_caption" in record and "vlm_error" not in record for record in records)
    assert (family in CAPTIONERS) == ("has no chat template" in said)
    assert ASKED.get(family, "") in said
    assert "one by one" not in said


@pytest.mark.soak
@pytest.mark.skipif("pixtral" not in MISSING, reason="torchvision is installed")
def test_a_missing_package_is_one_line(pictures: Path, tmp_path: Path) -> None:
    """A model whose pictures need torchvision ends the run with exit code 2 and the command to install it."""
    code, said = run("pixtral", pictures, tmp_path)
    [line] = [line for line in said.splitlines() if "torchvision" in line]
    assert code == 2
    assert f"pixtral needs torchvision for its pictures; type: {installer()} torchvision torch==" in line
