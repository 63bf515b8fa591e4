"""The captioning benchmark, with the model that ships."""

import dataclasses
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.caption.candidates import CANDIDATES, Absent, Candidate
from benchmarks.caption.checks import compare
from benchmarks.caption.engine import main, parse
from benchmarks.caption.inputs import Workload, draw_lengths
from benchmarks.caption.lease import LEASE_S, SLOTS, Lease
from benchmarks.caption.rows import measure
from benchmarks.caption.ways import WAYS, DrawnGenerate, Way
from etl.caption.model.loading import load
from etl.caption.slots.candidates import NAMES, Candidates
from etl.caption.slots.timing import Timings
from etl.domain.items import CaptionResult
from etl.images.cache import ImageCache
from etl.settings import Settings

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


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler of torch uses what torch has deprecated
def test_a_lease_runs_everything_in_its_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks, rows and candidates leave figures or why there is none; the table has predictions beside them."""
    file = tmp_path / "figures.json"
    small = "--lease --tiny --seconds 0.1 --pictures 4 --max-new-tokens 8 --compare 4 --slots 4"
    assert main([*small.split(), "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert list(figures["checks"]) == ["device", "kernel cases", "tokens", "tokens, penalised"]
    assert {one["name"] for one in figures["checks"]["device"]["found"]} >= {"slots", "slots, penalised"}
    assert figures["checks"]["tokens, penalised"]["slots"]["equal"] == 2
    rows = {row["name"]: row for row in figures["rows"]}
    assert list(rows) == ["one", "generate-32", "generate-128", *SLOTS]
    assert {name: row["fault"] for name, row in rows.items() if row["fault"]} == {
        "liger": "not measured: needs a GPU", "buckets": "not built", "graphs": "not built",
    }  # fmt: skip
    for name in ("compiled", "priorities", "tight", "by-length"):
        both = rows["slots"]["words"].keys() & rows[name]["words"].keys()
        assert both and all(rows["slots"]["words"][n] == rows[name]["words"][n] for n in both)
    assert "| slot engine with liger-kernel's fused modules | not measured: needs a GPU | | | 44 | |" in (
        capsys.readouterr().out
    )


def test_a_candidate_reaches_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the engine has built in is on in its row and in no other; each of them has its row."""
    seen = []

    def look(*_: Any, candidates: Candidates, **__: Any) -> Any:
        seen.append(candidates)
        raise RuntimeError("seen")

    monkeypatch.setattr("benchmarks.caption.rows.SlotCaptioner", look)
    loaded = load(SETTINGS)
    workload = Workload(["0" * 64], ["Describe it."], [4], tmp_path.joinpath)
    lease = object.__new__(Lease)
    lease._arguments, lease._loaded, lease._settings, lease._workload = parse(["--tiny"]), loaded, SETTINGS, workload
    measure(WAYS["slots"], loaded, SETTINGS, workload, 0.1)
    for one in CANDIDATES:
        if one.built_in:
            lease._switched(one, Way(one.name, one.shown, 0))
    assert seen == [Candidates(), *(Candidates.of([name]) for name in NAMES)]


def test_what_cannot_be_tried_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that wants a GPU, is not built, or for which no time is left, is a row with its reason."""
    loaded = load(SETTINGS)
    for one in CANDIDATES:
        if one.name == "liger":
            assert one.switch is not None
            with pytest.raises(Absent, match="needs a GPU"), one.switch(loaded):
                pass
    lease = object.__new__(Lease)
    lease._arguments, lease._rows, lease.result = parse(["--tiny", "--lease"]), [], {}
    monkeypatch.setattr(lease, "_note", lease._rows.append)
    way = Way("graphs", "slot engine", 0)
    assert lease._switched(Candidate("graphs", "x"), way).fault == "not built"
    lease._began = time.monotonic() - LEASE_S
    assert not lease._has_time(way)
    assert lease._rows[0].fault == "not measured: no time was left"
    lease._began = time.monotonic()
    assert lease._has_time(way)


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
    captioner = DrawnGenerate(loaded, SETTINGS, workload, Timings(loaded.device))
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
