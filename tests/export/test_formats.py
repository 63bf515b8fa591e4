"""Exports in other formats, read again by the libraries that they are meant for; Parquet as manifest."""

import csv
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState
from support.parts import Work, records
from support.reported import put_pictures

from etl.domain.views import ExportSummary
from etl.errors import ConfigError, ManifestError
from etl.export.names import safe_name
from etl.export.stage import ExportOptions
from etl.ingest.manifest import Manifest
from etl.run.pipeline import export_manifest, run_pipeline
from etl.run.plan import Plan
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs

parquet = pytest.importorskip("pyarrow.parquet")

NAMES = [f"{n}{kind}.jpg" for n in range(8) for kind in ("", "gone", "long")]
ODD_KEYS = ("../../etc/passwd", "été/\u202e.tar", "a.b.c", "plain-key_1", "x" * 300, "=cmd()", "nul-0123456789abcdef")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Return a finished state: a third captioned, the rest failed, one record not done, some with odd keys."""
    made = Work(tmp_path / "state")
    rows = records(NAMES)
    for row, key in zip(rows[::3], ODD_KEYS, strict=False):
        row["id"] = key
    made.ingest(rows)
    made.finish()
    made.ingest([*rows, {"id": "later", "url": "http://a.example/later.jpg", "title": "T"}])
    return made


def export(work: Work, target: str, **options: Any) -> tuple[Path, ExportSummary]:
    """Export beside the state; return the file or directory and the summary."""
    path = work.state.parent / target
    return path, export_manifest(work.settings, str(path), ExportOptions(**options))


def lines(work: Work, **options: Any) -> list[dict[str, Any]]:
    """Return the objects of the export as JSON Lines."""
    path, _ = export(work, "expected.jsonl", **options)
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_csv_and_parquet_say_what_json_lines_say(work: Work) -> None:
    """Both have one typed or spelled row for each record, in order, with its fields and what became of it."""
    expected = lines(work)
    path, summary = export(work, "out.csv", format_options={"escape_formulae": False})
    assert (summary.format, summary.rows, summary.captioned, summary.pending) == ("csv", 25, 8, 1)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    path, summary = export(work, "out.parquet")
    table = parquet.read_table(path)
    assert str(table.schema.field("vlm_captioned_at").type) == "timestamp[ms, tz=UTC]"
    typed = table.to_pylist()
    for one, spelled, line in zip(typed, rows, expected, strict=True):
        assert one["vlm_key"] == spelled["vlm_key"] == line["id"]
        for name in (*expected[-1], "vlm_caption", "vlm_caption_source", "vlm_error"):
            assert one[name] == line.get(name) == (spelled[name] or None)
        when = one["vlm_captioned_at"]
        shown = when and when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z"
        assert shown == line.get("vlm_captioned_at") == (spelled["vlm_captioned_at"] or None)
    assert {one["vlm_outcome"] for one in typed} == {"captioned", "failed", "pending"}
    recorded = work.rows("SELECT format FROM exports ORDER BY id")
    assert recorded == [("jsonl",), ("csv",), ("parquet",)]


def test_the_ecosystem_reads_it(work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets` loads the image folder and the Parquet shards, `webdataset` the tar files, each record once."""
    for name, value in (
        ("HF_HOME", str(tmp_path / "hf")),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_DATASETS_OFFLINE", "1"),
        ("USE_TORCH", "0"),
    ):
        monkeypatch.setenv(name, value)
    put_pictures(work.state, 4)
    expected = {line["id"]: line["vlm_caption"] for line in lines(work, only_captioned=True)}
    folder, summary = export(work, "folder", format="imagefolder", shard_size=3)
    assert (summary.shards, summary.rows) == (3, 8)
    shards, _ = export(work, "shards", format="parquet", shard_size=10)
    tars, _ = export(work, "tars", format="webdataset", shard_size=5)
    code = f"""
import json, sys, warnings
warnings.simplefilter("ignore")
# Both do without torch, which takes longest to load.
class WithoutTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, WithoutTorch())
import datasets, webdataset
datasets.disable_progress_bars()
folder = datasets.load_dataset("imagefolder", data_dir={str(folder)!r}, split="train")
rows = datasets.load_dataset("parquet", data_dir={str(shards)!r}, split="train")
tars = webdataset.WebDataset({str(tars)!r} + "/shard-{{00000..00001}}.tar", shardshuffle=False).decode("pil")
samples = [dict(sample) for sample in tars]
print(json.dumps({{
    "folder": {{row["vlm_key"]: row["vlm_caption"] for row in folder}},
    "sizes": [row["image"].size for row in folder],
    "rows": len(rows),
    "captioned": {{row["vlm_key"]: row["vlm_caption"] for row in rows if row["vlm_caption"]}},
    "tars": {{sample["json"]["id"]: sample["txt"] for sample in samples}},
    "shapes": [sample["jpg"].size for sample in samples],
}}))
"""
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
                          env=dict(os.environ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["folder"] == found["captioned"] == found["tars"] == expected
    assert found["rows"] == 25
    assert found["sizes"] == found["shapes"] == [[4, 2]] * 8


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "webdataset", "imagefolder"])
def test_only_what_is_missing_or_has_changed_is_written(work: Work, kind: str) -> None:
    """Shards that are right stay as they are; a lost, damaged or changed one is written anew; surplus ones go."""
    path, first = export(work, "out", format=kind, shard_size=2)
    assert first.written == first.shards > 2
    names = [shard["name"] for shard in json.loads((path / ".shards.json").read_bytes())["shards"]]
    whole = contents(path)
    _, again = export(work, "out", format=kind, shard_size=2)
    assert (again.written, again.rows, again.sha256) == (0, first.rows, first.sha256)
    remove(path / names[0])
    victim = path / names[1]
    victim = next(victim.glob("*.jpg")) if victim.is_dir() else victim
    victim.write_bytes(victim.read_bytes()[:-1])
    _, repaired = export(work, "out", format=kind, shard_size=2)
    assert repaired.written == 2
    assert contents(path) == whole
    work.execute("UPDATE captions SET text = 'Other words.' WHERE id = (SELECT min(id) FROM captions "
                 "WHERE status = 'done')")  # fmt: skip
    assert export(work, "out", format=kind, shard_size=2)[1].written == 1
    _, fewer = export(work, "out", format=kind, shard_size=5)
    assert fewer.shards < first.shards
    assert {entry.name for entry in path.iterdir()} == {
        ".shards.json", *(shard["name"] for shard in json.loads((path / ".shards.json").read_bytes())["shards"])
    }  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    """Return every file below a directory."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def remove(path: Path) -> None:
    """Remove a file or directory."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_a_killed_export_goes_on(work: Work, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short in the middle of a shard, it leaves whole shards alone, which the next one does not write again."""
    whole, summary = export(work, "whole", format=kind, shard_size=2)
    renames = 0

    def dying(rename: Callable[..., Any]) -> Callable[..., Any]:
        def method(path: Path, target: Path) -> Any:
            nonlocal renames
            renames += str(target).find("shard-") >= 0
            if renames == 3:
                raise KeyboardInterrupt
            return rename(path, target)

        return method

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying(Path.replace))
        patched.setattr(Path, "rename", dying(Path.rename))
        with pytest.raises(KeyboardInterrupt):
            export(work, "out", format=kind, shard_size=2)
    path, rest = export(work, "out", format=kind, shard_size=2)
    assert rest.written == summary.shards - 2
    assert contents(path) == contents(whole)


def test_webdataset_members_are_safe_and_bytes_stable(work: Work) -> None:
    """Whatever a key is, members are plain names in one directory, each key its own; twice gives the same bytes."""
    one, _ = export(work, "one", format="webdataset")
    two, _ = export(work, "two", format="webdataset")
    assert (one / "shard-00000.tar").read_bytes() == (two / "shard-00000.tar").read_bytes()
    with tarfile.open(one / "shard-00000.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names)) == 24
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,99}\.(jpg|json|txt)", name) for name in names)
    assert safe_name("a-0123456789abcdef") != "a-0123456789abcdef"


def test_pictures_that_left_the_cache_are_counted(work: Work) -> None:
    """A format with pictures leaves out what has none any more, and says how many those are."""
    work.execute(
        "UPDATE images SET state = 'evicted' WHERE id IN (SELECT image FROM captions WHERE status = 'done' LIMIT 3)"
    )
    _, summary = export(work, "out", format="imagefolder")
    assert (summary.rows, summary.without_picture) == (5, 3)


def test_since(work: Work) -> None:
    """Only what was captioned or failed for good after a run began, by uid or number; it is recorded as a part."""
    work.finish()
    with Reader(work.state) as reader:
        last = next(run for run in latest_runs(reader) if run.stages == ("caption",))
        first = latest_runs(reader, 50)[-1]
    assert [line["id"] for line in lines(work, since=last.uid)] == ["later"]
    assert [line["id"] for line in lines(work, since=str(last.id))] == ["later"]
    everything = lines(work, since=first.uid)
    assert len(everything) == 25
    assert sum(line["vlm_caption"] is None for line in everything) == 16
    assert work.rows("SELECT DISTINCT format FROM exports") == [("jsonl-since",)]
    with pytest.raises(ConfigError, match="no run, or more than one, has the uid or number 'nobody'"):
        lines(work, since="nobody")


def test_what_cannot_be_written_is_said_in_one_line(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package, an unknown format, a directory of other things, another format: what is wrong, what to do."""
    with pytest.raises(ConfigError, match="unknown format 'excel'; known: jsonl, caption, csv"):
        export(work, "out.xls", format="excel")
    with pytest.raises(ConfigError, match="cannot be written to stdout"):
        export_manifest(work.settings, "-", ExportOptions(format="parquet"))
    (work.state.parent / "photos").mkdir()
    (work.state.parent / "photos" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="photos holds other files"):
        export(work, "photos", format="imagefolder")
    export(work, "tars", format="webdataset")
    with pytest.raises(ConfigError, match="holds an export as webdataset"):
        export(work, "tars", format="imagefolder")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'pyarrow<27,>=19'"):
        export(work, "out.parquet")
    assert not (work.state.parent / "out.parquet").exists()
    runs = work.rows("SELECT count(*) FROM runs")
    with pytest.raises(ConfigError, match=r"pip install 'pyarrow<27,>=19'"):
        run_pipeline(work.settings, Plan(fetch=True, output="out.parquet"), lambda _: None)
    assert work.rows("SELECT count(*) FROM runs") == runs
    with pytest.raises(ConfigError, match=r"pip install 'pyarrow<27,>=19'"):
        path = work.state.parent / "in.parquet"
        path.write_bytes(b"PAR1")
        list(Manifest(str(path)).lines())


def test_parquet_as_manifest(tmp_path: Path) -> None:
    """Each row is a record whose line is its JSON, whatever the types; again it is unchanged; damage is said."""
    import datetime
    from decimal import Decimal

    import pyarrow

    rows = [
        {"id": f"k{n}", "url": f"http://a.example/{n}.jpg", "title": "Été", "when": datetime.datetime(1950, 1, n + 1),
         "size": n, "ratio": float("nan") if n else 1.5, "tags": ["a", None], "price": Decimal("1.10")}
        for n in range(3)
    ]  # fmt: skip
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    found = [json.loads(line) for line in Manifest(str(path)).lines()]
    assert found[0] == {
        "id": "k0", "url": "http://a.example/0.jpg", "title": "Été", "when": "1950-01-01T00:00:00", "size": 0,
        "ratio": 1.5, "tags": ["a", None], "price": "1.10",
    }  # fmt: skip
    assert found[1]["ratio"] is None
    made = MadeState(tmp_path)
    assert made.ingest(path.read_bytes(), "in.parquet").selected == 3
    assert made.ingest(path.read_bytes(), "in.parquet").unchanged
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError, match="cut short, damaged or no Parquet file"):
        list(Manifest(str(path)).lines())
    parquet.write_table(pyarrow.Table.from_pylist([{"id": "k", "image": b"bytes"}]), path)
    assert [json.loads(line) for line in Manifest(str(path)).lines()] == [{"id": "k", "image": "bytes"}]


FORMULAE = (
    "=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "\uff20x", "'=1", "''@x",
    "- a list", "-5 C",
)  # fmt: skip
PLAIN = ("-5", "+3.2", "-1.5e-7", "+.5", "5-3", "it's = not", "'quoted'", "A street.", " =1")


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """Keys and captions that a spreadsheet would run get a quote, which can be taken away again; numbers stay."""
    texts = {f"k{n}": text for n, text in enumerate((*FORMULAE, *PLAIN))} | {"=key": "A.", "-7": "B.", "@key": "C."}
    made = MadeState(tmp_path)
    made.ingest(
        b"".join(b'{"=SUM(1)": 1, "id": "%s", "url": "http://a.example/%s"}\n' % ((key.encode(),) * 2) for key in texts)
    )
    made.finish(texts)
    made.export("out.csv")
    rows = read_csv(tmp_path / "out.csv")
    cells = [f"'{text}" for text in FORMULAE] + [*PLAIN, "A.", "B.", "C."]
    assert [row["vlm_caption"] for row in rows] == cells
    assert [(row["id"], row["vlm_key"]) for row in rows[-3:]] == [("'=key",) * 2, ("-7",) * 2, ("'@key",) * 2]
    assert next(iter(rows[0])) == "'=SUM(1)", "a column's name is a stranger's, too"
    made.export("raw.csv", format_options={"escape_formulae": False})
    raw = read_csv(tmp_path / "raw.csv")
    assert {row["id"]: row["vlm_caption"] for row in raw} == texts
    target = str(tmp_path / "shards")
    for escape, expected in ((True, rows), (False, raw)):
        options = ExportOptions(format="csv", shard_size=20, format_options={"escape_formulae": escape})
        summary = export_manifest(made.settings, target, options)
        assert summary.written == summary.shards == 2, "a shard that was written the other way was taken for right"
        assert read_csv(tmp_path / "shards" / "shard-00000.csv") == expected[:20]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
