"""The shipped checkpoint, and a cache of drawn scenes to caption with it."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from etl.caption.model.loading import LoadedModel, load
from etl.demo.scenes import random_record, random_scene
from etl.domain.items import CaptionItem
from etl.ingest.prompts import PromptTemplate
from etl.settings import Settings

torch.set_num_threads(1)
"""More threads are slower for a model this small, by far on a busy machine."""

SIZES = ((320, 240), (224, 224), (200, 280), (400, 250))


@dataclass
class Scenes:
    """Caption items and the files of their working copies."""

    folder: Path
    items: list[CaptionItem]

    def locate(self, sha256: str) -> Path:
        """Return the file of a working copy."""
        return self.folder / f"{sha256}.jpg"


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Return a maker of settings for the demo model on the CPU, small enough for quick tests."""

    def make(**changes: object) -> Settings:
        values: dict[str, object] = {"model": "demo", "device": "cpu", "dtype": "float32", "max_new_tokens": 40}
        return Settings(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """Return the demo model in float32; tests must leave it as it was."""
    return load(Settings(model="demo", device="cpu", dtype="float32"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Return twelve scenes of several shapes, with prompts with and without title and date."""
    rng = random.Random(7)
    template = PromptTemplate()
    found = Scenes(tmp_path_factory.mktemp("working"), [])
    for number in range(1, 13):
        file = found.folder / "part"
        random_scene(rng).draw(*SIZES[number % len(SIZES)]).save(file, "JPEG", quality=90)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(found.locate(sha256))
        found.items.append(CaptionItem(number, sha256, template.render(random_record(rng))))
    assert len({len(item.prompt) for item in found.items}) > 3
    return found
