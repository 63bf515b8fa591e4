"""The oracle of models that see pictures in their own shape: scenes of any shape get the one caption that is right."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_qwen.train import PROMPTS, SIZES, few_shapes
from support.workbench import write_manifest
from transformers import AttentionInterface

from etl.caption.captioner import Captioner
from etl.caption.model.loading import LoadedModel, load
from etl.caption.slots import kv_cache
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.family import Family, Prefilled
from etl.demo.server import DemoServer
from etl.domain.items import CaptionItem, CaptionResult
from etl.images.decode import encode_working_copy
from etl.ingest.prompts import PromptTemplate
from etl.run.plan import Report
from etl.settings import Settings

RunPipeline = Callable[..., tuple[Report, dict[str, dict[str, Any]]]]

CHECKPOINT = Path(__file__).parents[1] / "support" / "tiny_qwen" / "checkpoint"

SEED = 27182
"""Neither the training's (0 to 2) nor its evaluation's (99)."""

WRONG = 0.02
"""Share of captions that may be wrong in any word."""

FEW = 0.08
"""The same for twenty pictures, where one more by chance is five per cent."""

LIMIT = 160
"""Tokens: right captions have 27 at most, so that most of a slot lies behind its caption."""


class Archive:
    """Working copies of unseen scenes of all shapes, and which caption is right for each.

    Attributes:
        items: in the order of their numbers.
        right: captions by number.
    """

    def __init__(self, folder: Path, count: int, *, seed: int, each: int) -> None:
        """Draw ``count`` scenes; ``each`` is asked about once or, in two ways, twice."""
        rng, self._folder = random.Random(seed), folder
        self.items: list[CaptionItem] = []
        self.right: dict[int, str] = {}
        for number in range(count):
            scene, (width, height) = few_shapes(rng), SIZES[number % len(SIZES)]
            data = encode_working_copy(scene.draw(2 * width, 2 * height, whole=True))
            sha256 = hashlib.sha256(data).hexdigest()
            self.locate(sha256).write_bytes(data)
            for prompt in rng.sample(PROMPTS, each):
                self.items.append(CaptionItem(len(self.items), sha256, prompt))
                self.right[len(self.right)] = scene.caption

    def locate(self, sha256: str) -> Path:
        """Return the file of a working copy."""
        return self._folder / sha256

    def captions(self, captioner: Captioner) -> dict[int, str]:
        """Return what a captioner writes, by number; what fails is left out."""
        outcomes = list(captioner.caption(self.items))
        captioner.close()
        return {one.id: one.text for one in outcomes if isinstance(one, CaptionResult)}

    def wrong(self, captions: dict[int, str]) -> dict[int, tuple[str | None, str]]:
        """Return the captions that are wrong or missing, each with the right one."""
        got = {number: (captions.get(number), right) for number, right in self.right.items()}
        return {number: both for number, both in got.items() if both[0] != both[1]}


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    """Return the checkpoint in float32; tests must leave it as it was."""
    return load(Settings(model=str(CHECKPOINT), device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Return twenty scenes, each asked about twice."""
    return Archive(tmp_path_factory.mktemp("scenes"), 20, seed=SEED, each=2)


def by_slots(tiny: LoadedModel, archive: Archive, slots: int) -> dict[int, str]:
    """Return the captions of the slot engine."""
    settings = Settings(device="cpu", dtype="float32", slots=slots, max_new_tokens=LIMIT)
    return archive.captions(SlotCaptioner(tiny, settings, archive.locate))


def test_scenes_of_any_shape_are_captioned_word_for_word_in_slots(tiny: LoadedModel, archive: Archive) -> None:
    """Twenty pictures from 1:2 to 2:1 get their one right caption, twice, in slots that others had before.

    Of two prompts about one picture the second goes on from the first one's keys and values.
    """
    wrong = archive.wrong(by_slots(tiny, archive, 12))
    assert len(wrong) <= FEW * len(archive.right), wrong


def without_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the tokens of pictures as positions."""
    prefill = Family.prefill
    monkeypatch.setattr(Family, "prefill", lambda *given: Prefilled(prefill(*given).logits))


def without_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step see what lies behind its caption."""
    attend = kv_cache.slot_attention

    def all_of_it(*given: Any, **more: Any) -> Any:
        if (lengths := more.get("slot_lengths")) is not None:
            more["slot_lengths"] = torch.full_like(lengths, given[2].shape[2])
        return attend(*given, **more)

    monkeypatch.setitem(AttentionInterface._global_mapping, kv_cache.ATTENTION, all_of_it)


@pytest.mark.parametrize(("leave_out", "spoilt"), [(without_shift, 0.9), (without_lengths, 0.25)])
def test_a_wrong_position_or_mask_gives_wrong_sentences(
    leave_out: Callable[[pytest.MonkeyPatch], None], spoilt: float, tiny: LoadedModel, archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without the positions that pictures take hardly a caption is right; with the room behind them in sight, many are
    wrong."""
    leave_out(monkeypatch)
    wrong = archive.wrong(by_slots(tiny, archive, 12))
    assert len(wrong) >= spoilt * len(archive.right)


@pytest.mark.soak
def test_unseen_scenes_of_any_shape_come_through_all_stages(pipeline: RunPipeline, tmp_path: Path) -> None:
    """At least 98 % of 500 scenes get their right caption over HTTP and in slots; `generate()` writes the same ones."""
    archive, manifest = Archive(tmp_path, 500, seed=SEED + 1, each=1), tmp_path / "manifest.jsonl"
    template = PromptTemplate("{{ record.question }}")
    with DemoServer() as server:
        records = []
        for item in archive.items:
            server.add(f"/{item.id}.jpg", archive.locate(item.working_sha256).read_bytes(), "image/jpeg")
            url = server.url(f"/{item.id}.jpg")
            records.append({"id": str(item.id), "question": item.prompt, "external_url": url})
        write_manifest(manifest, records)
        report, rows = pipeline(manifest, template, model=str(CHECKPOINT), engine="slots")
    assert report.failed == 0
    captions = {int(key): row["vlm_caption"] for key, row in rows.items()}
    wrong = archive.wrong(captions)
    assert len(wrong) <= WRONG * len(archive.right), list(wrong.values())[:5]
    _, rows = pipeline(manifest, template, model=str(CHECKPOINT), engine="generate")
    assert {int(key): row["vlm_caption"] for key, row in rows.items()} == captions
