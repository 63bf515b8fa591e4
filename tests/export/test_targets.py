"""Where an export may go: what a shell has open, names that lead nowhere, and never over what the state keeps."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.made_state import MadeState
from support.run_here import run_here
from support.zygote import Zygote


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = MadeState(tmp_path)
    made.ingest(b'{"id": "a", "url": "http://a.example/1.jpg"}\n{"id": "b", "url": "http://a.example/2.jpg"}\n')
    made.finish({"a": "A street."})
    return made.settings.state


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_what_the_shell_has_open_is_written_itself(
    state: Path, tmp_path: Path, target: str, plain_zygote: Zygote
) -> None:
    """Through a pipe every line arrives; into a file they stand behind what was there."""

    def export(out: int) -> None:
        words = ["export", target, "--state", str(state), "--format", "jsonl", "-q"]
        with plain_zygote.start(words, tmp_path, os.environ, stdout=out) as process:
            assert process.wait() == 0

    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        with os.fdopen(writing, "w"):
            export(writing)
        piped = pipe.read()
    assert [json.loads(line)["id"] for line in piped.splitlines()] == ["a", "b"]
    with (tmp_path / "out").open("w+") as out:
        out.write("before\n")
        out.flush()
        export(out.fileno())
        out.seek(0)
        assert out.read() == "before\n" + piped


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "lock", "reserve", "logs/etl.log", "images/x.jsonl"])
@pytest.mark.parametrize("command", ["export", "report"])
def test_nothing_is_written_over_what_the_state_keeps(state: Path, name: str, command: str) -> None:
    """Its database, lock, log and pictures are no place for an export, also through a link."""
    option = ["-o"] if command == "report" else []
    code, _, err = run_here(command, *option, state / name, "--state", state, *(["--format", "jsonl"] * (not option)))
    assert (code, err.count("\n")) == (2, 1) and "write to another place" in err, err
    assert run_here("status", "--state", state)[0] == 0
    link = state.parent / "link"
    link.symlink_to(state / name)
    assert run_here(command, *option, link, "--state", state, *(["--format", "jsonl"] * (not option)))[0] == 2


def loop(folder: Path) -> str:
    (folder / "one").symlink_to(folder / "two")
    (folder / "two").symlink_to(folder / "one")
    return str(folder / "one")


@pytest.mark.parametrize(
    "make",
    [loop, lambda _: "n" * 250 + ".jsonl", lambda _: "d/" * 2500, lambda _: "\udcff.jsonl"],
    ids=["loop", "long", "deep", "no UTF-8"],
)
def test_names_that_lead_nowhere_are_one_line(state: Path, tmp_path: Path, make: Callable[[Path], str]) -> None:
    """A circle of links, a name that is too long or no UTF-8: exit 2, and no run is left at work."""
    target = make(tmp_path)
    for arguments in (
        ["export", target, "--format", "jsonl"],
        ["report", "-o", target],
        ["split", "2", target],
        ["merge", target],
    ):
        code, _, err = run_here(*arguments, "--state", state)
        assert code in (1, 2) and err.count("\n") == 1 and "Traceback" not in err, (arguments[0], err[-300:])
    _, out, _ = run_here("runs", "--json", "--state", state)
    assert all(json.loads(line)["state"] != "running" for line in out.splitlines())


def index(name: object) -> str:
    """Return an export's index with one shard of this name."""
    return json.dumps(
        {"format": "jsonl", "shards": [{"name": name, "rows": 1, "bytes": 1, "sha256": "", "content": ""}]}
    )


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.mkdir(),
        lambda path: path.write_text(index(5)),
        lambda path: path.write_text("[" * 200_000),
        lambda path: path.write_text(index("../x")),
    ],
    ids=["FIFO", "device", "directory", "number", "deep", "outside"],
)
def test_an_index_of_somebody_else_is_one_line(state: Path, tmp_path: Path, make: Callable[[Path], object]) -> None:
    """What lies under the name of an export's index is read only where it can be one."""
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / ".shards.json")
    code, _, err = run_here("export", tmp_path / "out", "--state", state, "--format", "jsonl", "--shard-size", "1")
    assert (code, err.count("\n")) == (2, 1) and "no index of an export" in err, err


def test_what_lies_in_the_way_of_a_split_stays(state: Path, tmp_path: Path) -> None:
    """A directory or link under the name of an unfinished part is not followed, nor removed, if no split made it."""
    parts = tmp_path / "parts"
    (parts / ".part-1.new").mkdir(parents=True)
    (parts / ".part-1.new" / "mine").write_text("mine")
    assert run_here("split", "2", parts, "--state", state)[0] == 2
    assert (parts / ".part-1.new" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("captions.jsno", "the ending .jsno; did you mean {d}/captions.jsonl?"),
        ("captions.jsno.gz", "did you mean {d}/captions.jsonl.gz?"),
        ("captions.jsonl.gzip", "did you mean {d}/captions.jsonl.gz?"),
        ("captions.tsv", "did you mean {d}/captions.csv?"),
        ("pics.bmp", "known: .jsonl, .ndjson, .csv, .parquet, with .gz or .zst behind it compressed"),
        (
            "out.tar",
            "webdataset is a directory of such files: `etl export --state {d}/state {d}/out --format webdataset`",
        ),
        ("folder/", "folder/ names a directory, and jsonl is one file: give {d}/folder/captions.jsonl"),
    ],
)
@pytest.mark.parametrize("command", [["export"], ["run", "--model", "demo", "--output"]], ids=["export", "run"])
def test_a_name_that_says_no_format_is_refused(
    state: Path, tmp_path: Path, target: str, said: str, command: list[str]
) -> None:
    """An ending of no format, or a directory for one file, makes nothing, at the end of a run or at its start."""
    there = sorted(tmp_path.iterdir())
    code, _, err = run_here(*command, f"{tmp_path}/{target}", "--state", state)
    assert (code, err.count("\n")) == (2, 1) and said.format(d=tmp_path) in err, err
    assert sorted(tmp_path.iterdir()) == there
    assert '"export"' not in run_here("runs", "--json", "--state", state)[1]


def test_names_that_say_a_format(state: Path, tmp_path: Path) -> None:
    """Capitals, no ending, a format that is named, a pipe and a directory for many files are as good as ever."""
    os.mkfifo(tmp_path / "captions.pipe")
    reader = os.open(tmp_path / "captions.pipe", os.O_RDONLY | os.O_NONBLOCK)
    for target, *options in (
        ("A.JSONL",), ("b.ndjson",), ("plain",), ("c.tar", "--format", "jsonl"), ("captions.pipe",), ("D.CSV",),
        ("many/", "--shard-size", "1"), ("D.jsonl.GZ",),
    ):  # fmt: skip
        code, _, err = run_here("export", f"{tmp_path}/{target}", *options, "--state", state)
        assert code == 0, err
    assert len(os.read(reader, 10_000).splitlines()) == 2
    os.close(reader)
    assert (tmp_path / "D.CSV").read_text().startswith("id,url,vlm_caption,")
    assert (tmp_path / "D.jsonl.GZ").read_bytes()[:2] == b"\x1f\x8b"
    assert (tmp_path / "many" / "shard-00001.jsonl").is_file()
    assert run_here("verify", "--deep", "--state", state)[2].count("export") == 1
