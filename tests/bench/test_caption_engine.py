"""The captioning benchmark, with the model that ships."""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path

import pytest
import torch

from benchmarks.caption_checks import compare
from benchmarks.caption_engine import main, parse
from benchmarks.caption_inputs import Workload, draw_lengths
from benchmarks.caption_rows import measure
from benchmarks.caption_ways import WAYS, DrawnGenerate
from etl.captioning.loading import load
from etl.captioning.phases import PhaseClock
from etl.config import Settings
from etl.imaging.cache import ImageCache
from etl.models import CaptionResult

SETTINGS = Settings(model="demo", device="cpu", dtype="float32", max_new_tokens=8)


@pytest.mark.soak
def test_one_command_measures_rows_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a table and the checks, and writes every figure as JSON."""
    file = tmp_path / "figures.json"
    small = "--tiny --seconds 0.1 --pictures 4 --max-new-tokens 6 --soak 24 --compare 4 --slots 4"
    assert main([*small.split(), "--json", str(file), "--rows", "one", "generate-32", "slots"]) == 0
    figures = json.loads(file.read_text())
    assert [row["name"] for row in figures["rows"]] == ["one", "generate-32", "slots"]
    for row in figures["rows"]:
        assert row["fault"] is None
        assert row["captions"] > 0 and row["seconds"] > 0 and row["images_per_s"] > 0
        # Every caption has the length that was drawn for it: from 1 to 6 tokens.
        assert row["captions"] < row["tokens"] < 6 * row["captions"]
        assert {"vision", "prefill", "decode"} <= row["phases"].keys()
        assert sum(row["phases"].values()) < row["seconds"] * 1.05
    assert figures["rows"][2]["at_once"] == figures["bounds"]["slots"] == 4
    assert 0 < figures["bounds"]["serial"] <= figures["bounds"]["overlap"]
    checks = figures["checks"]
    assert checks["tokens"]["slots"]["equal"] == checks["tokens"]["generate in a batch"]["equal"] == 4
    assert (checks["soak"]["captions"], checks["soak"]["failures"], len(checks["soak"]["marks"])) == (24, 0, 6)
    printed = capsys.readouterr().out
    assert "| slot engine | 4 |" in printed
    assert "4 of 4 equal to generate() one by one" in printed


@pytest.mark.parametrize("way", ["one", "generate-32", "slots"])
def test_a_row_that_fails_says_why(way: str, tmp_path: Path) -> None:
    """A way that breaks gives a row with the reason in place of figures."""
    missing = Workload(["0" * 64], ["Describe it."], [4], lambda sha256: tmp_path / sha256)
    torch.set_num_threads(1)
    row = measure(WAYS[way], load(SETTINGS), SETTINGS, missing, 0.1)
    assert row.fault is not None and "0" * 64 in row.fault
    assert row.images_per_s == 0.0


def test_a_batch_runs_until_its_longest_caption(tmp_path: Path) -> None:
    """`generate()` takes as many steps as the longest length drawn for the batch, not as many as the limit allows."""
    loaded = load(SETTINGS)
    loaded = dataclasses.replace(loaded, eos=(loaded.processor.image_token_id,))
    workload = Workload.make(ImageCache(tmp_path), 2, ["Describe it."], 8)
    workload = dataclasses.replace(workload, lengths=[2, 3])
    steps = []
    loaded.model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    captioner = DrawnGenerate(loaded, SETTINGS, workload, PhaseClock(loaded.device))
    outcomes = list(captioner.caption(itertools.islice(workload.items(), 2)))
    assert [outcome.tokens for outcome in outcomes if isinstance(outcome, CaptionResult)] == [2, 3]
    assert len(steps) == 3


def test_tokens_may_differ_only_after_a_near_tie() -> None:
    """A difference where the two likeliest logits are within four units of rounding is excused, any other is not."""
    same, other = [5, 6, 7], [5, 9, 9]
    near, far = [100.0, 3.9, 100.0], [0.0, 4.1, 0.0]
    assert compare([same, other], [(same, far), (same, near)]).holds
    found = compare([same, other], [(same, far), (same, far)])
    assert not found.holds
    assert (found.equal, found.excused, found.margins, found.tokens) == (1, 0, (4.1,), 4)


def test_lengths_are_drawn_as_published() -> None:
    """They have a mean of 100 tokens and at most 200, differ much, and are the same every time."""
    lengths = draw_lengths(10_000, 200)
    assert 97 < statistics.mean(lengths) < 103
    assert (min(lengths) > 0, max(lengths)) == (True, 200)
    assert statistics.stdev(lengths) > 35
    assert lengths == draw_lengths(10_000, 200)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The full size asks for a GPU, in one line that names the way out."""
    with pytest.raises(SystemExit) as ended:
        parse([])
    assert ended.value.code == 2
    assert "there is no GPU here; --tiny runs the same rows on the CPU" in capsys.readouterr().err
