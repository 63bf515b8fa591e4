"""Captions that are there already, in files beside the pictures: no model is asked for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.workbench import PlainCaptioner, Workbench, scenes

from etl.domain.views import StageSummary
from etl.errors import ConfigError
from etl.export.lines import ExportOptions
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.prompts import PromptTemplate
from etl.run.pipeline import export_manifest
from etl.state.checks import problems
from etl.state.read.reader import Reader
from etl.state.record_captions import GIVEN


def export(bench: Workbench, target: Path, kind: str, **options: bool | str) -> None:
    export_manifest(bench.settings, str(target), ExportOptions(format=kind, format_options=options, provenance=True))


def test_captions_of_files_are_not_made_again(tmp_path: Path) -> None:
    """Pictures that have one cost the model nothing, exports have them as those of a file, and leave the files alone.

    Without the option, a model captions all.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (_, body) in enumerate(scenes(3)):
        (folder / f"{number}.jpg").write_bytes(body)
    # The same picture with other words; in place, what is there stays as it is, line ends included.
    (folder / "0 again.jpg").write_bytes((folder / "0.jpg").read_bytes())
    given = {"0.txt": b"Rue Saint-Denis.\r\n", "0 again.caption": b"\xef\xbb\xbfThe same \xc3\xa9.", "2.txt": b" \n"}
    for name, content in given.items():
        (folder / name).write_bytes(content)
    bench = Workbench(tmp_path)
    options = IngestOptions(sidecars=("txt", "caption"))
    bench.ingest_path(str(folder), options)
    assert bench.fetch() == StageSummary(done=4)
    captioner = PlainCaptioner()
    assert bench.caption(captioner) == StageSummary(done=2)
    assert [item.prompt[:9] for call in captioner.calls for item in call] == ["This is a"] * 2
    export(bench, tmp_path / "out.jsonl", "jsonl")
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert {key: (row["vlm_caption"], row["vlm_provenance"]["finish_reason"]) for key, row in rows.items()} == {
        "0 again.jpg": ("The same é.", "file"), "0.jpg": ("Rue Saint-Denis.", "file"),
        "1.jpg": (rows["1.jpg"]["vlm_caption"], "stop"), "2.jpg": (rows["2.jpg"]["vlm_caption"], "stop"),
    }  # fmt: skip
    assert [rows[key]["vlm_caption_source"] for key in ("0.jpg", "1.jpg")] == ["file", "plain@1"]
    export(bench, folder, "txt")
    assert (folder / "0.txt").read_bytes() == given["0.txt"]
    assert (folder / "0 again.txt").read_text() == "The same é.\n"
    assert (folder / "2.txt").read_text().startswith("This is a")
    with Reader(bench.state) as reader:
        assert list(problems(reader)) == []
    # What the model wrote is nobody's caption afterwards, unless somebody has worked on it.
    bring = "SELECT r.key FROM records r JOIN prompts p ON p.id = r.prompt WHERE p.text LIKE ? ORDER BY r.key"
    for around in ({}, {"prefix": "sks, ", "suffix": " "}):
        export(bench, folder, "txt", **around)
        bench.ingest_path(str(folder), options)
        assert bench.rows(bring, f"{GIVEN}%") == [("0 again.jpg",), ("0.jpg",)]
    (folder / "2.txt").write_text((folder / "2.txt").read_text() + "Rex, 1932.")
    bench.ingest_path(str(folder), options)
    assert bench.rows(bring, f"{GIVEN}sks, This is a%") == [("2.jpg",)]
    (folder / "2.txt").unlink()
    bench.ingest_path(str(folder))
    assert bench.caption(PlainCaptioner()) == StageSummary(done=1), "two of the three pictures have this prompt's"


FILES: dict[str, tuple[bytes, Any]] = {
    "a.json": (b'{"caption": "From JSON.", "x": 1}', GIVEN + "From JSON."),
    "b.json": (b'{"tags": ["x"], "caption": ["y"]}', None),
    "c.json": (b"{", "c.json is not JSON: Expecting property name"),
    "d.txt": (b"caf\xe9", GIVEN + "café"),
    "e.txt": (b"x" * (1 << 20) + b"y", "e.txt has more than 1048576 bytes"),
}


def test_sidecars(tmp_path: Path) -> None:
    """Text in either encoding, `caption` of JSON; what makes no sense costs its record; links lead nowhere else."""
    folder = tmp_path / "p"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".jpg").touch()
    (folder / "f.txt").symlink_to(tmp_path / "secret")
    (folder / "f.jpg").touch()
    (folder / "notes.md").touch()
    bench = Workbench(tmp_path)
    bench.ingest_path(str(folder), IngestOptions(sidecars=("txt", "json")))
    found = dict(
        bench.rows("SELECT r.key, coalesce(r.error, p.text) FROM records r LEFT JOIN prompts p ON p.id = r.prompt")
    )
    for name, (_, expected) in FILES.items():
        text = found.get(f"{name[0]}.jpg") or found[f"p:{ord(name[0]) - 96}"]
        assert text.startswith(expected or "This is a"), name
    assert found["p:6"] == "f.txt is a link out of the directory"
    manifest = Manifest(str(folder))
    list(manifest.lines(sidecars=("txt", "json")))
    assert manifest.skipped == {".md": 1}


def test_a_field_is_taken_for_a_caption_where_that_is_asked_for(tmp_path: Path) -> None:
    """Fields of a list count as files do; no record can pass a prompt off as one."""
    bench = Workbench(tmp_path)
    row = {"url": "http://a.example/1.jpg", "txt": "Given.", "forged": f"{GIVEN}Forged."}
    options = IngestOptions(sidecars=("txt",))
    bench.ingest(row, options=options)
    assert bench.rows("SELECT text FROM prompts") == [(GIVEN + "Given.",)]
    assert IngestOptions.from_spec(options.spec()).spec() == options.spec()
    forging = PromptTemplate(GIVEN + "{{ record.forged }}")
    bench.ingest(row, options=IngestOptions(template=forging))
    assert bench.rows("SELECT error FROM records")[0][0].startswith("the prompt of this record begins as captions do")
    ours = {"vlm_caption": "A model's.", "vlm_caption_source": "m@1"}
    rows = (
        {"url": f"http://a.example/{n}.jpg", "txt": "A model's.", "json": ours | own}
        for n, own in enumerate(({}, {"caption": "Mine."}))
    )
    bench.ingest(*rows, options=IngestOptions(sidecars=("txt", "json")))
    assert [text.startswith(GIVEN) for (text,) in bench.rows("SELECT text FROM prompts ORDER BY id DESC LIMIT 2")] == [
        True,
        False,
    ]
    with pytest.raises(ConfigError, match="no sidecars 'text'; did you mean txt"):
        IngestOptions(sidecars=("text",))
