"""`import etl`: its names, what importing it costs, and the examples of docs/api.md against drawn pictures."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import etl
from etl.demo.scenes import random_scene
from etl.errors import ConfigError, StateMissingError
from etl.state.read.reader import Reader
from etl.state.read.story import record_story

DOCS = Path(__file__).parents[1] / "docs"

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the page's examples from top to bottom; return what they leave behind.

    Beside the manifest lie two of its three pictures, and its last line is no JSON.
    """
    folder = tmp_path_factory.mktemp("notebook")
    scenes = [random_scene(random.Random(seed)) for seed in (11, 12)]
    for number, scene in enumerate(scenes):
        scene.draw().save(folder / f"{number}.png")
    records = [{"id": f"scene-{number}", "path": f"{number}.png", "name": "Rue Drolet"} for number in range(3)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + "no json\n")
    names: dict[str, Any] = {"folder": folder, "drawn": [scene.caption for scene in scenes]}
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(blocks):
            exec(compile(block, f"docs/api.md, example {number + 1}", "exec"), names)
    return names


def test_the_examples_caption_what_was_drawn(played: dict[str, Any]) -> None:
    """The page's run captions both drawings word for word, exports them and counts what failed."""
    assert (played["report"].state, played["report"].failed) == ("partial", 2)
    lines = (played["folder"] / "captions.jsonl").read_text("utf-8").splitlines()
    exported = {row["id"]: row["vlm_caption"] for row in map(json.loads, lines)}
    with Reader(played["folder"] / "other") as reader:
        assert (record_story(reader, "scene-1") or {})["record"][
            "prompt"
        ] == "Which shapes are in the picture Rue Drolet?"
    assert exported == {"scene-0": played["drawn"][0], "scene-1": played["drawn"][1], "scene-2": None}


def test_a_state_is_read_as_plain_values(played: dict[str, Any]) -> None:
    """Records come in their order with what became of them, captions with their maker, failures with their class."""
    state, drawn = etl.State(played["folder"] / "state"), played["drawn"]
    found = [(record.key, record.outcome, record.caption, record.error_class) for record in state.records()]
    assert found[:3] == [
        ("scene-0", "captioned", drawn[0], None),
        ("scene-1", "captioned", drawn[1], None),
        ("scene-2", "failed", None, "local_file"),
    ]
    assert [(outcome, slug) for _, outcome, _, slug in found[3:]] == [("invalid", "invalid_json")]
    first = next(state.records())
    assert first.fields == {"id": "scene-0", "path": "0.png", "name": "Rue Drolet"}
    assert [(caption.key, caption.text, caption.finish_reason) for caption in state.captions()] == [
        ("scene-0", drawn[0], "stop"),
        ("scene-1", drawn[1], "stop"),
    ]
    assert sorted((failure.stage, failure.error_class) for failure in state.failures()) == [
        ("fetch", "local_file"),
        ("ingest", "invalid_json"),
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.key = "another"  # type: ignore[misc]


def test_a_state_becomes_a_table(played: dict[str, Any]) -> None:
    """The data frame has one row for each record, and the columns are those of `Record`."""
    frame = etl.State(played["folder"] / "state").to_pandas()
    assert list(frame.columns) == [field.name for field in dataclasses.fields(etl.Record)]
    assert list(frame["outcome"]) == ["captioned", "captioned", "failed", "invalid"]


def test_pandas_is_asked_for_by_name_where_it_is_missing(
    played: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pandas the error says what to install."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        etl.State(played["folder"] / "state").to_pandas()


def test_a_state_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    """A directory without a state is refused before anything is asked of it."""
    with pytest.raises(StateMissingError):
        etl.State(tmp_path)


def test_all_public_names_are_there_and_told() -> None:
    """Each name of `__all__` can be had and is listed by `dir`, and functions are told by docs/api.md; others fail."""
    page = (DOCS / "api.md").read_text("utf-8")
    assert sorted(etl.__all__) == list(etl.__all__)
    for name in etl.__all__:
        assert getattr(etl, name).__doc__
        assert name in dir(etl)
        assert name[0].isupper() or name == "__version__" or f"etl.{name}" in page
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        etl.nothing  # noqa: B018


LOOK = "import sys, etl; before = set(sys.modules); {}; print(*sorted({{n.split('.')[0] for n in sys.modules}}))"


@pytest.mark.parametrize("use", ["pass", "etl.Settings, etl.errors, etl.run", "etl.State, etl.Failure, etl.Caption"])
def test_importing_costs_no_library(use: str) -> None:
    """Importing the package, and asking for its values, loads neither the model's libraries nor the network's."""
    done = subprocess.run([sys.executable, "-c", LOOK.format(use)], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "etl" in loaded
    assert not loaded & {"torch", "transformers", "httpx2", "numpy", "pandas", "PIL", "textual", "sqlite_utils"}


def test_the_name_of_the_folder_stays_callable() -> None:
    """`etl.run` can be called and its modules imported, in whichever order: folder and function share one name."""
    script = "import etl.run.pipeline as p; import etl; assert callable(etl.run); assert etl.run.pipeline is p"
    subprocess.run([sys.executable, "-c", script], check=True)
    script = "import etl; assert callable(etl.run); import etl.run.pipeline as p; assert callable(etl.run)"
    subprocess.run([sys.executable, "-c", script], check=True)
