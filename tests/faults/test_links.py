"""A state that a stranger prepared: links, FIFOs and directories in the place of what a state directory holds.

Whatever command meets them changes and reads nothing outside of the state, and ends soon with one line that names it.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.etl_process import Ended, Program
from support.fault_server import FaultServer
from support.workbench import PlainCaptioner, Workbench, scenes
from support.zygote import Zygote

from etl.images.cache import ImageCache
from etl.net import resume
from tui import picture

PICTURES = 3

COMMANDS: dict[str, tuple[object, ...]] = {
    "fetch": ("fetch",),
    "caption": ("caption",),
    "run": ("run", "--output", "out.jsonl"),
    "verify": ("verify",),
    "verify --deep": ("verify", "--deep"),
    "verify --delete-orphans": ("verify", "--delete-orphans"),
    "gc": ("gc",),
    "gc of all": ("gc", "--captioned", "--originals"),
    "fetch below a limit": ("fetch", "--max-cache-size", "20000"),
    "export": ("export", "out.jsonl"),
    "export as CSV": ("export", "out.csv"),
    "export as Parquet": ("export", "out.parquet"),
    "export as folder": ("export", "folder", "--format", "imagefolder", "--originals"),
    "export as WebDataset": ("export", "tars", "--format", "webdataset"),
    "report": ("report", "--output", "report.html"),
    "split": ("split", "2", "parts"),
    "merge": ("merge",),
    "status": ("status",),
    "failures": ("failures",),
    "why": ("why", "r0"),
    "runs": ("runs",),
    "retry-failed": ("retry-failed",),
}

NEEDS_TORCH = frozenset({"caption", "run"})

ENTRIES = (
    "images", "images/parts", "images/working", "images/original", "shard of working copies", "shard of originals",
    "working copy", "original", "part", "note", "state.db", "state.db-wal", "lock", "logs", "logs/etl.log",
)  # fmt: skip

KINDS = ("link", "FIFO", "directory")


class Attacked(NamedTuple):
    """A prepared copy: the program on it, the entry that is not what it was, and what lies outside."""

    program: Program
    zygote: Zygote
    entry: Path
    outside: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state in the middle of its work: fetched with originals, partly captioned, with a part that can be resumed."""
    directory = tmp_path_factory.mktemp("made")
    bench = Workbench(directory, longest_edge=224, keep_originals=True, batch_size=1)
    with FaultServer() as server:
        bench.ingest(*(server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(PICTURES))))
        bench.fetch()
    bench.caption(PlainCaptioner())
    bench.execute("UPDATE captions SET status = 'ready', text = NULL WHERE id = (SELECT max(id) FROM captions)")
    part = ImageCache.of_state(bench.state).part_of("http://a.example/1.jpg")
    part.write_bytes(b"begun")
    resume.take_note(part, {"etag": '"1"', "content-length": "100000", "accept-ranges": "bytes"})
    (bench.state / "state.db-wal").touch()
    (bench.state / "logs").mkdir(exist_ok=True)
    (bench.state / "logs" / "etl.log").write_text("2026-11-24T06:44:32Z INFO stages.fetch: words\n")
    return directory


def entry_of(state: Path, name: str) -> Path:
    """Return the path that one of `ENTRIES` stands for."""
    found = {
        "working copy": lambda: next((state / "images" / "working").rglob("*.jpg")),
        "original": lambda: next(path for path in (state / "images" / "original").rglob("*") if path.is_file()),
        "part": lambda: next((state / "images" / "parts").glob("*.part")),
        "note": lambda: next((state / "images" / "parts").glob("*.note")),
        "shard of working copies": lambda: next((state / "images" / "working").rglob("*.jpg")).parent,
        "shard of originals": lambda: next(p for p in (state / "images" / "original").rglob("*") if p.is_file()).parent,
    }
    return found[name]() if name in found else state / name


def attacked(made: Path, directory: Path, zygote: Zygote, name: str, kind: str) -> Attacked:
    """Return a copy of the state in which one entry was moved out of it, and something else lies in its place."""
    shutil.copytree(made, directory)
    outside = directory / "home"
    outside.mkdir()
    state = directory / "state"
    entry = entry_of(state, name)
    kept = outside / entry.name
    entry.rename(kept)
    if kept.is_dir():
        for folder in (kept, *(path for path in kept.rglob("*") if path.is_dir())):
            (folder / "letter.txt").write_text("dear reader")
    if kind == "link":
        entry.symlink_to(kept)
    elif kind == "FIFO":
        os.mkfifo(entry)
    else:
        entry.mkdir()
        (entry / "letter.txt").write_text("dear reader")
    for path in (outside, *outside.rglob("*")):
        os.utime(path, ns=(0, path.stat().st_mtime_ns))
    return Attacked(Program(directory, zygote=zygote, keep_originals="yes"), zygote, entry, outside)


def seen(outside: Path) -> dict[str, tuple[object, ...]]:
    """Return all that reading or writing would change: names, contents' times, and when each was last read."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (outside, *sorted(outside.rglob("*"))):
        status = path.lstat()
        found[str(path.relative_to(outside))] = (
            status.st_mode, status.st_size, status.st_nlink, status.st_mtime_ns, status.st_ino,
            # Reading a directory or file after its time was set back brings that forward, also with `relatime`.
            status.st_atime_ns,
        )  # fmt: skip
    return found


def run(attack: Attacked, command: str) -> Ended:
    """Run one command to its end; a merge brings the state into another one."""
    program, arguments = attack.program, COMMANDS[command]
    if command == "merge":
        arguments = ("merge", program.state)
        program = Program(program.directory, zygote=attack.zygote, state=program.directory / "other")
        assert program.run("ingest", "manifest.jsonl").code == 0
    return program.run(*arguments, timeout_s=30.0)


def check(attack: Attacked, command: str) -> None:
    """Run a command: nothing outside is touched, and if it fails, one line says of which entry."""
    before = seen(attack.outside)
    ended = run(attack, command)
    assert seen(attack.outside) == before, f"{command} touched what lies outside"
    assert "Traceback" not in ended.stderr, ended.stderr
    if ended.code not in (0, 3):
        said = [line for line in ended.stderr.splitlines() if line.strip()]
        assert any(attack.entry.name in line for line in said), (command, ended.code, ended.stderr)
        assert len(said) <= 3, said


@pytest.fixture
def reads_are_seen(tmp_path: Path) -> None:
    """Skip where the file system keeps no times of access, by which the test sees what was read."""
    probe = tmp_path / "probe"
    probe.write_text("x")
    os.utime(probe, ns=(0, probe.stat().st_mtime_ns))
    probe.read_text()
    if probe.stat().st_atime_ns == 0:
        pytest.skip("this file system notes no times of access")


QUICK: dict[tuple[str, str], tuple[str, ...]] = {
    ("images", "link"): ("fetch", "gc", "verify --delete-orphans", "export as folder"),
    ("images/parts", "link"): ("fetch", "gc"),
    ("images/working", "link"): ("verify --delete-orphans", "gc of all", "report"),
    ("shard of working copies", "link"): ("gc of all", "export as WebDataset", "merge"),
    ("working copy", "link"): ("export as folder", "merge", "report", "verify"),
    ("working copy", "FIFO"): ("export as WebDataset", "merge", "verify --deep", "report"),
    ("part", "FIFO"): ("fetch",),
    ("note", "FIFO"): ("fetch", "gc"),
    ("state.db-wal", "link"): ("status", "export"),
    ("state.db", "FIFO"): ("status", "fetch"),
    ("lock", "FIFO"): ("fetch", "status"),
    ("logs/etl.log", "FIFO"): ("fetch",),
    ("logs", "link"): ("fetch",),
}


@pytest.mark.usefixtures("reads_are_seen")
@pytest.mark.parametrize(("name", "kind"), list(QUICK), ids=lambda value: value.replace(" ", "-"))
def test_nothing_outside_is_reached(made: Path, tmp_path: Path, plain_zygote: Zygote, name: str, kind: str) -> None:
    """The commands that would do most harm, on the entries that led there: nothing outside is read or changed."""
    for command in QUICK[name, kind]:
        check(attacked(made, tmp_path / command, plain_zygote, name, kind), command)


@pytest.mark.soak
@pytest.mark.usefixtures("reads_are_seen")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENTRIES, ids=lambda value: value.replace(" ", "-"))
def test_no_command_reaches_anything_outside(
    made: Path, tmp_path: Path, plain_zygote: Zygote, zygote: Zygote, name: str, kind: str
) -> None:
    """Every command on every entry, with a link, a FIFO and a directory in its place."""
    for command in COMMANDS:
        with_torch = zygote if command in NEEDS_TORCH else plain_zygote
        check(attacked(made, tmp_path / command, with_torch, name, kind), command)


def test_the_attack_is_real(made: Path, tmp_path: Path, plain_zygote: Zygote) -> None:
    """What the others look for is seen: a file that is read, and one that is removed, outside."""
    attack = attacked(made, tmp_path / "copy", plain_zygote, "working copy", "link")
    before = seen(attack.outside)
    attack.entry.read_bytes()
    assert seen(attack.outside) != before


def test_a_state_behind_a_link_is_the_user_s_choice(made: Path, tmp_path: Path, plain_zygote: Zygote) -> None:
    """The state directory as a whole may lie on another disk; what is in it is then its own."""
    shutil.copytree(made, tmp_path / "far")
    (tmp_path / "near").symlink_to(tmp_path / "far" / "state")
    program = Program(tmp_path, zygote=plain_zygote, state=tmp_path / "near", keep_originals="yes")
    for command in ("fetch", "verify"):
        ended = program.run(command)
        assert (ended.code, "is a link" in ended.stderr) == (0, False), ended.stderr


def test_the_dashboard_shows_no_picture_of_another_place(made: Path, tmp_path: Path) -> None:
    """A working copy that is a link or a FIFO is no picture, and reading it waits for nobody."""
    shutil.copytree(made / "state", tmp_path / "state")
    entry = next((tmp_path / "state" / "images" / "working").rglob("*.jpg"))
    assert picture.read(entry, 8, 4) is not None
    entry.rename(tmp_path / "private.jpg")
    entry.symlink_to(tmp_path / "private.jpg")
    assert picture.read(entry, 8, 4) is None
    entry.unlink()
    os.mkfifo(entry)
    assert picture.read(entry, 8, 4) is None


@pytest.fixture(autouse=True)
def _few_files(tmp_path: Path) -> Iterator[None]:
    """Leave no copies behind: there are hundreds, each of hundreds of directories."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
