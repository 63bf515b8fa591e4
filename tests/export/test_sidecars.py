"""A text file for each record, beside the pictures or in a directory of its own."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from support.made_state import MadeState
from support.run_here import run_here

from etl.domain.views import ExportSummary
from etl.errors import ConfigError, EtlError
from etl.export.lines import ExportOptions
from etl.export.names import LONGEST
from etl.export.stage import check_target
from etl.run.pipeline import export_manifest


def made_of(directory: Path, pictures: dict[str, str], captions: dict[str, str] | None = None) -> MadeState:
    """Return a state with a captioned record for each key and picture."""
    made = MadeState(directory)
    rows = [{"id": key, "url": url} for key, url in pictures.items()]
    made.ingest(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    made.finish(captions or {key: f"Caption of {key}." for key in pictures})
    return made


def export(made: MadeState, folder: Path, **options: object) -> ExportSummary:
    """Export as text files, with options of the format."""
    return export_manifest(made.settings, str(folder), ExportOptions(format="txt", format_options=options))  # type: ignore[arg-type]


def texts(folder: Path) -> dict[str, str]:
    """Return every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def told_apart(name: str, key: str, number: int = 1) -> str:
    """Return the name of a record whose own one is taken."""
    return f"{name}-{hashlib.sha256(f'{number} {key}'.encode()).hexdigest()[:8]}"


H = "http://a.example/"
NAMES = {
    "plain": (H + "x/photo.jpg", "photo"),
    "query": (H + "a.b.png?size=3#top", "a.b"),
    "same name": (H + "y/photo.png", told_apart("photo", "same name")),
    "capitals": (H + "PHOTO.jpg", told_apart("PHOTO", "capitals")),
    "spaces": (H + "two%20words%20%C3%A9.jpg", "two words é"),
    "no suffix": (H + "123", "123"),
    "up": (H + "..%2F..%2Fetc%2Fpasswd", "___.._etc_passwd"),
    "dots": (H + "..", None),
    "encoded dots": (H + "%2e%2e", None),
    "nothing": (H, None),
    "hidden": (H + ".bashrc", "_bashrc"),
    "separators": (H + "a%5Cb%2fc.jpg", "a_b_c"),
    "controls": (H + "a%00%1b%0a%7f%C2%85%E2%80%AE.jpg", "a______"),
    "long": (H + "é" * 200 + ".jpg", "é" * (LONGEST // 2)),
    "long too": (H + "é" * 201 + ".jpg", told_apart("é" * ((LONGEST - 9) // 2), "long too")),
    "no UTF-8": (H + "%ff.jpg", "\ufffd"),
    "image service": (H + "iiif/2%2Fb.jp2/full/!512,512/0/default.jpg", "2_b.jp2"),
    "its description": (H + "iiif/ab/info.json", "ab"),
    "local": ("/elsewhere/scan 1.tif", "scan 1"),
}


def test_names(tmp_path: Path) -> None:
    """Each is the picture's, cleaned and cut; one that is taken, or is none, is told apart by the record's key."""
    made = made_of(tmp_path, {key: url for key, (url, _) in NAMES.items()})
    before = {path for path in tmp_path.rglob("*") if "state" not in path.parts}
    summary = export(made, tmp_path / "out")
    found = texts(tmp_path / "out")
    names = {text.removeprefix("Caption of ").removesuffix(".\n"): name for name, text in found.items()}
    assert names.keys() == NAMES.keys() and summary.rows == summary.written == len(NAMES)
    assert {key: name for key, name in names.items() if NAMES[key][1]} == {
        key: f"{name}.txt" for key, (_, name) in NAMES.items() if name
    }
    assert all(names[key].startswith(key.replace(" ", "_")) for key, (_, name) in NAMES.items() if name is None)
    assert {p for p in tmp_path.rglob("*") if "state" not in p.parts and "out" not in p.parts} == before


def test_a_name_does_not_depend_on_what_is_done(tmp_path: Path) -> None:
    """The first record of a name keeps it although it has no caption yet, or is not chosen."""
    made = made_of(tmp_path, {"k0": H + "x/n.jpg", "k1": H + "y/n.jpg"}, {"k1": "Second."})
    second = f"{told_apart('n', 'k1')}.txt"
    summary = export(made, tmp_path / "out")
    assert (texts(tmp_path / "out"), summary.rows, summary.pending) == ({second: "Second.\n"}, 1, 1)
    export_manifest(made.settings, str(tmp_path / "early"), ExportOptions(format="txt", since="2"))
    assert texts(tmp_path / "early") == {second: "Second.\n"}
    made.finish({"k0": "First."})
    options = ExportOptions(format="txt", since="5", only_captioned=True)
    summary = export_manifest(made.settings, str(tmp_path / "since"), options)
    assert (texts(tmp_path / "since"), summary.rows, summary.format) == ({"n.txt": "First.\n"}, 1, "txt-since")
    export(made, tmp_path / "out")
    assert texts(tmp_path / "out") == {"n.txt": "First.\n", second: "Second.\n"}


HELD = [
    ("A view.", {}, "A view.\n"),
    ("\n One.\r\n\n Two.\u2028Three. \n", {}, "One. Two. Three.\n"),
    ("A view.", {"prefix": "ohwx, ", "suffix": ", photo"}, "ohwx, A view., photo\n"),
    ("A é.", {"prefix": "a\n", "suffix": "\nb"}, "a A é. b\n"),
]


def test_what_a_file_holds(tmp_path: Path) -> None:
    """The caption between prefix and suffix, in UTF-8, in one line with one end."""
    captions = {f"k{number}": caption for number, (caption, *_) in enumerate(HELD)}
    made = made_of(tmp_path, {key: f"{H}{key}.jpg" for key in captions}, captions)
    for number, (_, options, expected) in enumerate(HELD):
        export(made, tmp_path / "out", **options)
        assert (tmp_path / "out" / f"k{number}.txt").read_bytes() == expected.encode()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of pictures, as a user has it, with a caption that is there already and other files."""
    folder = tmp_path / "photos"
    for name in ("a.jpg", "sub/a.jpg", "sub/A.jpg", "sub/b c.png", "notes.md", "sub/other.txt"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(name)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "c.jpg").write_text("c")
    (folder / "away").symlink_to(tmp_path / "outside")
    return folder


BESIDE = ("a.jpg", "sub/a.jpg", "sub/A.jpg", "sub/b c.png", "away/c.jpg", "../outside/d.jpg", "sub/../../e.jpg")


def test_beside_the_pictures(tmp_path: Path, photos: Path) -> None:
    """Each lies beside its picture, others in the folder itself; nothing else changes; again it is the same."""
    made = made_of(tmp_path, {name: f"{photos}/{name}" for name in BESIDE})
    before = texts(photos)
    dead = photos / "sub" / ".caption.txt.0123456789abcdef.part"
    dead.write_text("cut short")
    summary = export(made, photos)
    added = {name: f"Caption of {key}.\n" for key, name in {
        "a.jpg": "a.txt", "sub/a.jpg": "sub/a.txt", "sub/A.jpg": "sub/A.txt", "sub/b c.png": "sub/b c.txt",
        "away/c.jpg": "c.txt", "../outside/d.jpg": "d.txt", "sub/../../e.jpg": "e.txt"}.items()}  # fmt: skip
    assert texts(photos) == before | added
    assert texts(tmp_path / "outside") == {"c.jpg": "c"}
    (photos / "a.txt").unlink()
    (photos / "sub" / "a.txt").write_text("cut")
    kept = (photos / "d.txt").stat()
    again = export(made, photos, overwrite=True)
    assert (again.written, again.sha256, texts(photos)) == (2, summary.sha256, before | added)
    assert (photos / "d.txt").stat() == kept
    (photos / "sub" / "a.txt").write_text("by hand")
    (photos / "d.txt").unlink()
    assert export(made, photos, keep_existing=True, prefix="x").written == 1
    assert texts(photos) == before | added | {"sub/a.txt": "by hand", "d.txt": "xCaption of ../outside/d.jpg.\n"}


def test_what_a_person_has_changed_is_left(tmp_path: Path, photos: Path) -> None:
    """Captions that were written before give way to others and other prefixes; whatever else is there does not.

    So do those of a picture that another one has replaced.
    """
    made = made_of(tmp_path, {name: f"{photos}/{name}" for name in ("a.jpg", "sub/a.jpg", "sub/A.jpg", "sub/b c.png")})
    (photos / "a.txt").write_text("mine")
    first = export(made, photos, prefix="old, ")
    assert (first.written, first.foreign) == (3, 1)
    edited = "old, Caption of sub/a.jpg, by hand.\n"
    (photos / "sub" / "a.txt").write_text(edited)
    made.finish(dict.fromkeys(("a.jpg", "sub/a.jpg", "sub/A.jpg"), "New."), recipe="cd" * 32)
    made.execute("UPDATE sources SET image = 1 WHERE url LIKE '%/b c.png'")
    done = run_here("export", photos, "--format", "txt", "--prefix", "new, ", "--state", made.settings.state)
    found = texts(photos)
    assert [found[name] for name in ("a.txt", "sub/a.txt", "sub/A.txt", "sub/b c.txt")] == [
        "mine", edited, "new, New.\n", "new, New.\n",
    ]  # fmt: skip
    said = "2 of them written; 2 files of other programs, or edited since, left as found (--overwrite writes"
    assert said in done[2]
    (photos / "sub" / "A.txt").write_text("Caption of a.jpg.\n")
    assert export(made, photos).foreign == 3
    assert export(made, photos, overwrite=True).written == 3
    assert (photos / "a.txt").read_text() == "New.\n"


def test_names_that_have_passed_to_other_records(tmp_path: Path) -> None:
    """Where names are not those of the pictures' own folder, a caption of any picture gives way."""
    made = made_of(tmp_path, {"k0": H + "x/n.jpg", "k1": H + "y/m.jpg"})
    export(made, tmp_path / "out")
    (tmp_path / "out" / "n.txt").write_text("Caption of k1.\n")
    assert export(made, tmp_path / "out").foreign == 0
    assert texts(tmp_path / "out") == {"n.txt": "Caption of k0.\n", "m.txt": "Caption of k1.\n"}


def test_what_lies_in_the_way(tmp_path: Path) -> None:
    """A link is not followed but gives way, or stays where files are kept; a private file stays so."""
    made = made_of(tmp_path, {"k": H + "n.jpg"})
    out, mine = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    mine.write_text("mine")
    (out / "n.txt").symlink_to(mine)
    export(made, out, keep_existing=True)
    assert (out / "n.txt").is_symlink()
    export(made, out)
    assert (out / "n.txt").read_text() == "Caption of k.\n" and not (out / "n.txt").is_symlink()
    assert mine.read_text() == "mine"
    (out / "n.txt").chmod(0o600)
    export(made, out, prefix="x")
    assert stat.S_IMODE((out / "n.txt").stat().st_mode) == 0o600
    (out / "n.txt").unlink()
    os.mkfifo(out / "n.txt")
    export(made, out)
    assert (out / "n.txt").is_file()
    (out / "n.txt").unlink()
    (out / "n.txt").mkdir()
    with pytest.raises(EtlError, match=r"cannot write .*/n\.txt: Is a directory"):
        export(made, out)
    assert [path.name for path in out.iterdir()] == ["n.txt"]


def test_others_than_txt(tmp_path: Path, photos: Path) -> None:
    """`caption` is text under another name, `json` the whole record; what another program wrote as JSON stays."""
    made = made_of(tmp_path, {name: f"{photos}/{name}" for name in ("a.jpg", "sub/a.jpg")})
    (photos / "a.json").write_text('{"of": "somebody"}')
    for kind, options in (("caption", {"prefix": "x, "}), ("json", {})):
        summary = export_manifest(made.settings, str(photos), ExportOptions(format=kind, format_options=options))
    assert (summary.written, summary.foreign) == (1, 1)
    assert (photos / "sub" / "a.caption").read_text() == "x, Caption of sub/a.jpg.\n"
    assert (photos / "a.json").read_text() == '{"of": "somebody"}'
    record = json.loads((photos / "sub" / "a.json").read_text())
    assert (record["id"], record["vlm_caption"]) == ("sub/a.jpg", "Caption of sub/a.jpg.")
    (photos / "sub" / "a.json").write_text('{"vlm_caption": "old"}')
    done = run_here("export", photos, "--format", "json", "--state", str(made.settings.state))
    assert "1 of them written; 1 file of other programs left as found" in done[2]


def test_what_it_cannot_do_is_said_before_the_work(tmp_path: Path) -> None:
    """Shards, stdout, a file in its place, and a name that ends so without the format."""
    for target, options, said in (
        ("out", ExportOptions(format="txt", shard_size=3), "leave out --shard-size"),
        ("-", ExportOptions(format="txt"), "txt cannot be written to stdout; give a name"),
        ("out.txt", ExportOptions(), "txt is a directory of such files: `etl export out --format txt`"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_target(target, options)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is a file; give the name of a directory"):
        export(made_of(tmp_path, {"k": H + "n.jpg"}), tmp_path / "file")


def test_from_the_command_line(tmp_path: Path) -> None:
    """The options reach the files; a run says at its start what cannot be, and that it needs an output."""
    made = made_of(tmp_path, {"k": H + "n.jpg"})
    common = ["--format", "txt", "--prefix", "ohwx, ", "--suffix", ".", "--state", str(made.settings.state)]
    done = run_here("export", tmp_path / "out", *common)
    assert done[0] == 0 and "a file for each row, 1 of them written" in done[2]
    assert texts(tmp_path / "out") == {"n.txt": "ohwx, Caption of k..\n"}
    for output, said in (((), "give --output, or use"), (("-o", "-"), "txt cannot be written to stdout")):
        code, _, err = run_here("run", *output, "--model", "demo", *common)
        assert (code, err.count("\n")) == (2, 1) and said in err, err
