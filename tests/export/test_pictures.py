"""Pictures in exports: their own names and, where they are asked for, their own bytes."""

import hashlib
import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image
from support.made_state import MadeState
from support.reported import put_pictures
from support.run_here import run_here
from support.workbench import encoded

from etl.domain.views import ExportSummary
from etl.export.lines import ExportOptions
from etl.images.cache import ImageCache
from etl.images.formats import format_of
from etl.run.pipeline import export_manifest
from etl.state.database import DATABASE_NAME

PICTURES = {
    "old-masters/Night Watch.v2.png": "PNG",
    "new/night watch.V2.jpeg": "JPEG",
    "scan.TIF": "TIFF",
    "con.webp": "WEBP",
    "what? 1:2.gif": "GIF",
    "é" * 110 + ".jpg": "JPEG",
    "page.pdf": "PDF",
    "changed.png": "PNG",
    "gone.bmp": "BMP",
    "bare": "JPEG",
}
KEPT = "http://h.example/kept%20there.png?size=1"
NAMES = ["Night Watch.v2.png", "night watch.V2-*.jpeg", "scan.TIF", "_con.webp", "what_ 1_2.gif", "é" * 110 + ".jpg",
         "page.jpg", "changed.jpg", "gone.jpg", "bare.jpg", "kept there.png"]  # fmt: skip
"""With originals, where these are there and of a kind that is opened anywhere."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeState:
    """Return a state whose pictures lie in a folder, but for one in the cache; working copies are all smaller."""
    tmp_path = tmp_path_factory.mktemp("made")
    made = MadeState(tmp_path)
    for number, (name, kind) in enumerate(PICTURES.items()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(Image.new("RGB", (64, 40 + number), "red"), kind))
    rows = [{"id": f"k{number}", "path": name} for number, name in enumerate([*PICTURES, KEPT])]
    made.ingest("".join(json.dumps(row) + "\n" for row in rows).encode())
    made.finish({row["id"]: f"Caption of {row['id']}." for row in rows})
    put_pictures(made.settings.state, 16)
    kept, cache = encoded(Image.new("RGB", (9, 99), "blue"), "PNG"), ImageCache.of_state(made.settings.state)
    part = cache.new_part()
    part.write_bytes(kept)
    cache.keep_original(part, hashlib.sha256(kept).hexdigest())
    with closing(sqlite3.connect(made.settings.state / DATABASE_NAME)) as database, database:
        for image, url in database.execute("SELECT image, url FROM sources ORDER BY id").fetchall():
            data = kept if url == KEPT else Path(url).read_bytes()
            found = format_of(data[:1024])
            assert found is not None
            database.execute(
                "UPDATE images SET sha256 = ?, bytes = ?, mime = ?, width = 64, height = 40, working_width = 16, "
                "working_height = 8 WHERE id = ?", (hashlib.sha256(data).hexdigest(), len(data), found.mime, image),
            )  # fmt: skip
    (tmp_path / "gone.bmp").unlink()
    (tmp_path / "changed.png").write_bytes(b"another file")
    return made


def export(made: MadeState, target: str, **options: object) -> ExportSummary:
    """Export beside the state."""
    wanted = ExportOptions(**options)  # type: ignore[arg-type]
    return export_manifest(made.settings, str(made.directory / target), wanted)


def same(found: list[str], wanted: list[str]) -> bool:
    """Return whether names are those, a star being eight digits of a hash."""
    pairs = list(zip(found, wanted, strict=True))
    return all(name.startswith(want.split("*")[0]) and name.endswith(want.split("*")[-1]) for name, want in pairs)


def test_image_folder(made: MadeState) -> None:
    """Names are the pictures' own, told apart and fit for any system, ending as their bytes are; so are the bytes."""
    summary = export(made, "small", format="imagefolder")
    assert (summary.reduced, summary.without_original) == (len(NAMES), 0)
    shard = made.directory / "small" / "shard-00000"
    lines = [json.loads(line) for line in (shard / "metadata.jsonl").read_text().splitlines()]
    assert all(Path(line["file_name"]).suffix in (".jpg", ".jpeg") for line in lines)
    assert same([line["file_name"].rsplit(".", 1)[0] for line in lines], [name.rsplit(".", 1)[0] for name in NAMES])
    summary = export(made, "whole", format="imagefolder", format_options={"originals": True})
    assert (summary.reduced, summary.without_original) == (3, 3)
    shard = made.directory / "whole" / "shard-00000"
    lines = [json.loads(line) for line in (shard / "metadata.jsonl").read_text().splitlines()]
    assert same([line["file_name"] for line in lines], NAMES)
    assert {path.name for path in shard.iterdir()} == {"metadata.jsonl", *(line["file_name"] for line in lines)}
    for line in lines:
        is_own = hashlib.sha256((shard / line["file_name"]).read_bytes()).hexdigest() == line["vlm_image_sha256"]
        assert is_own == (line["vlm_key"] not in ("k6", "k7", "k8")), line["file_name"]


def test_webdataset(made: MadeState) -> None:
    """A sample's key has no dot, and no other sample of any shard has it, however they came to be written."""
    names = []
    for _ in range(2):
        summary = export(made, "tars", format="webdataset", shard_size=2, format_options={"originals": True})
        found = []
        for path in sorted((made.directory / "tars").glob("*.tar")):
            with tarfile.open(path) as tar:
                found += tar.getnames()
        names.append(found)
        with closing(sqlite3.connect(made.settings.state / DATABASE_NAME)) as database, database:
            database.execute("UPDATE captions SET text = 'Other words.' WHERE id = (SELECT min(id) FROM captions)")
    assert names[0] == names[1] and summary.written == 1
    keys = [name.split(".")[0] for name in names[0]]
    assert all(name.count(".") == 1 for name in names[0]) and len({key.casefold() for key in keys}) == len(NAMES)
    assert [name.split(".")[1] for name in names[0][::3]] == [name.rsplit(".", 1)[1].lower() for name in NAMES]


def test_what_it_says(made: MadeState) -> None:
    """Once, that working copies are smaller and what writes the others; with these, how many could not be had."""
    state = ["--state", str(made.settings.state), "--format", "imagefolder"]
    _, _, err = run_here("export", made.directory / "a", *state)
    assert err.count("11 pictures as working copies, smaller than what came; --originals writes that") == 1
    _, _, err = run_here("export", made.directory / "b", *state, "--originals")
    assert "3 pictures as working copies, for their original is not here" in err and "writes that" not in err
    _, _, err = run_here("run", "nothing.csv", "-o", made.directory / "c", *state, "--originals", "--model", "demo")
    assert err.count("add --keep-originals to have it as it came") == 1
