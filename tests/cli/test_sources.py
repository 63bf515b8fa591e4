"""What `etl run` and `etl ingest` are given: sources, by place or by option, and what the model is asked."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl.errors import ModelError

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


def test_sources_may_have_keys_in_common(etl: Etl) -> None:
    """Of two directories with the same names every picture is a record, now and when they are read again."""
    manifest("a/list.jsonl", "1", "2")
    manifest("b/list.jsonl", "2", "3", "2")
    manifest("c/list.jsonl", "2")
    given = ("a/list.jsonl", "b/list.jsonl", "c/list.jsonl")
    assert etl("ingest", *given).code == 3
    keys = ["1", "2", "2 (list.jsonl)", "3", "2 (list.jsonl) (line 3)", "2 (list.jsonl) (list.jsonl)"]
    for _ in range(2):
        with sqlite3.connect("state/state.db") as connection:
            order = "SELECT key FROM records WHERE state <> 'removed' ORDER BY manifest, position"
            assert [key for (key,) in connection.execute(order)] == keys
        with Path("b/list.jsonl").open("a") as file:
            file.write("\n")
        assert etl("ingest", *given).code == 3


@pytest.mark.usefixtures("finished")
def test_a_run_with_nothing_to_do_loads_no_model(etl: Etl, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all is settled for this model, none is loaded, and that is said; another recipe is work to be done."""
    loaded: list[object] = []

    def load(*arguments: object) -> None:
        loaded.append(arguments)
        raise ModelError("loaded")

    monkeypatch.setattr("etl.run.pipeline.open_captioner", load)
    options = ("--model", "demo", "--device", "cpu")
    again = etl("run", *options)
    assert (again.code, loaded) == (3, [])
    assert "nothing to do: no picture is due and no caption is missing; no model was loaded" in again.err
    assert etl("caption", *options, "--max-new-tokens", "7").code == 2
    assert len(loaded) == 1


@pytest.mark.usefixtures("finished")
def test_the_last_lines_say_what_is_left_out_and_what_comes_next(etl: Etl) -> None:
    """In ten lines: what is captioned, what is not needed and why, what failed where, how to write the output."""
    told = etl("run", "--model", "demo", "--device", "cpu", "--state", "state").err
    lines = told.splitlines()
    assert (
        lines[0] == "no output is named (-o captions.jsonl); when this is done: etl export captions.jsonl --state state"
    )
    assert "records   5 of 7 selected captioned, 0 pictures fetched, 2 failed" in lines
    assert "not needed  1 not selected: description_source is not synthetic; --all takes them" in lines
    failed = "1 line at ingest (1 invalid_json); 2 pictures at fetch (1 local_file, 1 not_an_image)"
    assert any(line.startswith(f"failed    {failed}: `etl failures`") for line in lines)
    assert lines[-1] == "no output was named; to write the captions: etl export captions.jsonl --state state"
    assert len(lines) - 1 <= 10
    report = etl("run", "--model", "demo", "--json").json()
    assert report["not_selected"] == [{"records": 1, "why": "description_source is not synthetic", "cure": "--all"}]
    assert {one["class"]: one["items"] for one in report["failures"]}["local_file"] == 1
    assert report["export_command"] == "etl export captions.jsonl --state state" and report["elapsed_s"] >= 0


URLS = '{"LIEN": "https://a.example/1.jpg", "Text": "words"}\n'


@pytest.mark.parametrize(
    ("arguments", "named", "cure"),
    [
        ("run", "no manifest was named, and there is no state", "run `etl run here.jsonl -o captions.jsonl`"),
        ("run heer.jsonl", "there is no manifest heer.jsonl", "did you mean here.jsonl?"),
        ("run here.csv", "there is no manifest here.csv", "did you mean here.jsonl?"),
        ("run xyz", "there is no manifest xyz", "what is here: here.jsonl, scans/"),
        ("run here.jsonl out.jsonl", "there is no manifest out.jsonl", "is it the output? Then give -o out.jsonl"),
        ("run here.jsonl --model dmeo", "dmeo", "did you mean demo?"),
        ("run here.jsonl --model llava-1.5-7b-hf", "llava-1.5-7b-hf", "did you mean llava-hf/llava-1.5-7b-hf?"),
        ("run here.jsonl --model ./modle", "there is no directory ./modle", "did you mean model?"),
        ("ingest here.jsonl", "no record of here.jsonl has a picture", "--image-field LIEN"),
        ("ingest here.jsonl --image-field LIEM", "there is no field LIEM", "did you mean --image-field LIEN?"),
        ("ingest here.jsonl --image-field LIEN --id-field Txt", "has a key", "did you mean --id-field Text?"),
        ("ingest here.jsonl --prompt x{{name}}", "names 'name'", "{{ record.name }}"),
        ("ingest here.jsonl --prompt here.jsonl", "is the name of a file", "--prompt-template here.jsonl"),
        ("ingest here.jsonl --prompt x --prompt-template here.jsonl", "exclude each other", "choose one"),
    ],
)
def test_mistakes_are_named_and_cured(etl: Etl, arguments: str, named: str, cure: str) -> None:
    """The first line names the thing, and it or the next the cure; nothing is stored, no traceback."""
    Path("here.jsonl").write_text(URLS)
    for folder in ("model", "scans"):
        Path(folder).mkdir()
    Path("scans/1.JPG").touch()
    Path("model/config.json").write_text("{}")
    answer = etl(*arguments.split(" "))
    assert (answer.code, answer.out) == (2, "")
    first, *others = answer.err.splitlines()
    assert first.startswith("error: ") and named in first
    assert cure in (others or [first])[0]
    assert not others or not others[0].startswith(("error", "Traceback"))
    assert not Path("state/state.db").exists() or not prompts()


def test_the_fields_that_there_are_have_examples(etl: Etl) -> None:
    """Each field is told with one value, cut, so that the right one can be named."""
    Path("here.jsonl").write_text(json.dumps({"LIEN": "https://a.example/1.jpg", "TEXT": "long " * 99}) + "\n")
    lines = etl("ingest", "here.jsonl").err.splitlines()
    assert lines[3].split() == ["LIEN", "https://a.example/1.jpg"]
    assert lines[4].startswith("  TEXT  ") and lines[4].endswith("...") and len(lines[4]) < 80


def test_no_other_attempt_is_offered_for_lines_of_a_manifest(etl: Etl) -> None:
    """Where nothing but lines failed, the end of a run says that these are to be mended; and its beginning, that a
    prompt of one's own is in vain with the demo's model.
    """
    Path("here.jsonl").write_text('{"id": 1, "url": "ftp://a.example/x.jpg"}\n')
    answer = etl("run", "here.jsonl", "--model", "demo", "-o", "out.jsonl", "--prompt", "What is seen?")
    assert answer.err.startswith("the demo's model knows its own prompt alone")
    assert answer.code == 3 and "retry-failed" not in answer.err
    assert "1 line at ingest (1 invalid_url): `etl failures` lists them, mend the manifest" in answer.err
