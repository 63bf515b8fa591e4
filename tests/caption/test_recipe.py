"""Recipes: canonical, comparable, and independent of torch."""

import dataclasses
import subprocess
import sys

import pytest

from etl.caption.recipe import Recipe

RECIPE = Recipe(
    model="llava-hf/llava-1.5-7b-hf",
    revision="b234b804b114d9e37bb655e11cbbb5f5e971b7a9",
    engine="generate",
    dtype="float16",
    preprocessing={"longest_edge": 1024, "image_mean": (0.5, 0.25), "size": {"shortest_edge": 336}},
    generation={"max_new_tokens": 200, "do_sample": False},
)


def test_json_round_trip() -> None:
    """A recipe read back is equal, hashes alike, and writes the same JSON."""
    again = Recipe.from_json(RECIPE.to_json())
    assert again == RECIPE
    assert hash(again) == hash(RECIPE)
    assert again.to_json() == RECIPE.to_json()


def test_json_is_canonical() -> None:
    """Neither the order of keys nor tuple or list changes the JSON; there is no white space."""
    other = dataclasses.replace(
        RECIPE,
        preprocessing={"size": {"shortest_edge": 336}, "image_mean": [0.5, 0.25], "longest_edge": 1024},
        generation=dict(reversed(list(RECIPE.generation.items()))),
    )
    assert other.to_json() == RECIPE.to_json()
    assert other == RECIPE
    assert " " not in RECIPE.to_json()


def test_sha256_is_pinned() -> None:
    """The hash of a given recipe never changes: it identifies captions in existing states."""
    assert RECIPE.sha256 == "d3891e61e534f0a376fed8c22ddb22b03f0ad39b063aa2e9a83068b22059d63b"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "demo"},
        {"revision": "main"},
        {"engine": "slots"},
        {"dtype": "bfloat16"},
        {"preprocessing": {**RECIPE.preprocessing, "longest_edge": 512}},
        {"generation": {**RECIPE.generation, "max_new_tokens": 100}},
    ],
)
def test_every_part_counts(change: dict[str, object]) -> None:
    """Changing any part makes another recipe."""
    other = dataclasses.replace(RECIPE, **change)  # type: ignore[arg-type]
    assert other != RECIPE
    assert other.sha256 != RECIPE.sha256


def test_source() -> None:
    """The source names model and resolved revision."""
    assert RECIPE.source == "llava-hf/llava-1.5-7b-hf@b234b804b114d9e37bb655e11cbbb5f5e971b7a9"


@pytest.mark.parametrize("value", [{"mean": float("nan")}, {"device": object()}, [1, 2]])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    """A value without a JSON form is a `ValueError` at once, not when the recipe is stored."""
    with pytest.raises(ValueError):
        dataclasses.replace(RECIPE, generation=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "demo"}', '{"model":1,"sort":2}'])
def test_other_json_is_refused(text: str) -> None:
    """What is not a recipe's JSON is a `ValueError`."""
    with pytest.raises(ValueError):
        Recipe.from_json(text)


def test_words_without_torch() -> None:
    """Recipes, prompts, flags and the protocol import neither torch nor transformers, so `etl status` stays quick."""
    code = (
        "import sys, etl.caption.captioner, etl.ingest.prompts, etl.caption.quality, etl.caption.recipe\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
