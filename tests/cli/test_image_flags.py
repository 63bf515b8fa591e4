"""Suspicious pictures from their files to every place that tells of them, and what is skipped for them."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from support.etl_process import Program
from support.workbench import PlainCaptioner, Workbench, encoded, scenes

COPIES = 5


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """A state with a good picture, a blank one, a tiny one, and one that stands in for five; two are skipped."""
    files = {"good": scenes(1)[0][1], "blank": encoded(Image.new("RGB", (200, 200), "white"))}
    files["tiny"] = encoded(Image.linear_gradient("L").resize((8, 8)))
    files |= {f"gone{n}": scenes(2)[1][1] for n in range(COPIES)}
    for name, body in files.items():
        (tmp_path / f"{name}.jpg").write_bytes(body)
    bench = Workbench(tmp_path, skip_flag=("blank", "placeholder"))
    bench.ingest(*({"id": name, "path": f"{name}.jpg"} for name in files))
    bench.fetch()
    bench.caption(PlainCaptioner())
    return bench


@pytest.mark.usefixtures("bench")
def test_every_place_that_tells_of_pictures_tells_their_flags(tmp_path: Path) -> None:
    """Status, why, report, CSV and provenance name them; a skipped record is neither failed nor to be done."""
    program = Program(tmp_path)
    status = json.loads(program.here("status", "--json").stdout)
    assert status["image_flags"] == {"placeholder": COPIES, "blank": 1, "tiny": 1}
    records = status["records"]
    assert (records["captioned"], records["skipped"], records["pending"], records["failed"]) == (2, COPIES + 1, 0, 0)
    shown = program.here("status").stdout
    assert re.search(r"^pictures +5 placeholder, 1 blank, 1 tiny$", shown, re.MULTILINE)
    assert "6 skipped for a flag of their picture" in shown
    told = program.here("why", "blank").stdout
    assert "flags: blank" in told and "not needed, skipped: the picture is blank" in told
    assert re.search("`etl run[^`]*` without --skip-flag blank captions it", told)

    assert program.here("export", "out.csv").code == program.here("export", "out.jsonl", "--provenance").code == 0
    rows = {row["vlm_key"]: row for row in csv.DictReader((tmp_path / "out.csv").read_text().splitlines())}
    assert {key: (row["vlm_outcome"], row["vlm_image_flags"]) for key, row in rows.items() if "gone" not in key} == {
        "good": ("captioned", ""), "blank": ("skipped", "blank"), "tiny": ("captioned", "tiny"),
    }  # fmt: skip
    assert (rows["gone0"]["vlm_outcome"], rows["gone0"]["vlm_image_flags"]) == ("skipped", "placeholder")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {line["id"]: line["vlm_provenance"]["image_flags"] for line in lines if "vlm_caption" in line} == {
        "good": [], "tiny": ["tiny"],
    }  # fmt: skip
    assert lines[1] == {"id": "blank", "path": "blank.jpg"}, "what is skipped comes out as it went in"

    assert program.here("report", "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count('"picture placeholder"') == COPIES and page.count('"picture blank"') == 1
    assert "<b>6</b><span>skipped</span>" in page


def test_no_model_is_loaded_for_what_is_skipped(bench: Workbench, tmp_path: Path) -> None:
    """Where all that is there has such a flag, it is skipped at once; an unknown flag is refused with the nearest."""
    bench.ingest(*({"id": name, "path": f"{name}.jpg"} for name in ("blank", "tiny")))
    bench.execute("DELETE FROM captions WHERE text IS NOT NULL")
    program = Program(tmp_path)
    refused = program.here("caption", "--skip-flag", "blanc")
    assert refused.code == 2 and "did you mean blank?" in refused.stderr
    done = program.here("caption", "--model", "demo", "--skip-flag", "blank,tiny", "--skip-flag", "placeholder")
    assert (done.code, "2 skipped for a flag of their picture" in done.stderr) == (0, True), done.stderr
    assert bench.rows("SELECT count(*) FROM recipes") == [(1,)]


def test_a_first_run_that_skips_all_leaves_nothing_to_be_done(tmp_path: Path) -> None:
    """In a state that has seen no model yet, pictures are skipped, too; a run without the flag takes them up."""
    bench = Workbench(tmp_path, skip_flag=("blank",))
    (tmp_path / "blank.jpg").write_bytes(encoded(Image.new("RGB", (99, 99), "white")))
    bench.ingest({"id": "blank", "path": "blank.jpg"})
    bench.fetch()
    done = Program(tmp_path).here("caption", "--model", "demo", "--skip-flag", "blank")
    assert (done.code, "1 skipped for a flag of their picture" in done.stderr) == (0, True), done.stderr
    assert "all is skipped" in Program(tmp_path).here("status").stdout
    bench = Workbench(tmp_path)
    bench.caption(PlainCaptioner())
    assert bench.rows("SELECT outcome FROM records") == [("captioned",)]
