"""What `etl run` and `etl ingest` are given: sources, by place or by option, and what the model is asked."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Etl = Callable[..., Any]


def manifest(name: str, *keys: str) -> str:
    """Write a manifest with these records into the working directory; return its name."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps({"id": key, "path": f"{key}.jpg"}) + "\n" for key in keys))
    return name


def prompts() -> set[str]:
    """Return what the model is asked, over the whole state."""
    with sqlite3.connect("state/state.db") as connection:
        return {text for (text,) in connection.execute("SELECT text FROM prompts")}


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ("b.jsonl a.jsonl", "b1 a1 a2"),
        ("b.jsonl -i a.jsonl", "b1 a1 a2"),
        ("--input a.jsonl --input b.jsonl", "a1 a2 b1"),
        ("a.jsonl ./a.jsonl", "a1 a2"),
    ],
)
def test_several_sources_are_all_read_and_exported_in_order(etl: Etl, given: str, order: str) -> None:
    """Sources may be given by place and by option, several of them; the export has them in that order, each once."""
    manifest("a.jsonl", "a1", "a2")
    manifest("b.jsonl", "b1")
    # None of the pictures is there, so no model is needed.
    answer = etl("run", *given.split(), "-o", "out.jsonl", "--model", "demo", "--json")
    assert answer.code == 3, answer.err
    assert [json.loads(line)["id"] for line in Path("out.jsonl").read_text().splitlines()] == order.split()
    assert len(answer.json()["ingested"]) == len(
        dict.fromkeys(name.strip("./") for name in given.split() if "." in name)
    )


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (("--prompt", "  What is seen? "), "What is seen?"),
        (("--prompt", "Describe {{ record.id }}."), "Describe a1."),
        (("--prompt-template", "ask.j2"), "Ask a1."),
    ],
)
def test_what_the_model_is_asked(etl: Etl, options: tuple[str, ...], asked: str) -> None:
    """A prompt is given in words, which may name fields, or in a file."""
    Path("ask.j2").write_text("Ask {{ record.id }}.\n")
    assert etl("ingest", manifest("a.jsonl", "a1"), *options).code == 0
    assert prompts() == {asked}
