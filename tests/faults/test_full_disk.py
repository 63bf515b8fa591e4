"""A full disk: exit code 5 in every stage, nothing lost, and the same command finishes once there is room.

The disk is a file system of a few MB, which only root may mount.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.common_check import check_state
from support.etl_process import Ended, Program
from support.fault_server import FaultServer
from support.workbench import PlainCaptioner, Workbench, write_manifest
from support.zygote import Zygote

from etl.domain.items import CaptionItem
from etl.errors import DiskFullError

DISK_KIB = 12288


class SmallDisk:
    """A file system of its own, of `DISK_KIB`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self, leave_kib: int) -> None:
        """Take all room but so much."""
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        self._filler.open("r+b").close()
        os.truncate(self._filler, self._filler.stat().st_size - leave_kib * 1024)

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(root)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", str(root)], check=True)


def manifest(records: int, **fields: str) -> list[dict[str, str]]:
    """Return records, the picture of each under its number."""
    return [{"id": f"k{n}", "path": f"{n}.jpg"} | fields for n in range(records)]


def assert_full(ended: Ended, *said: str) -> None:
    """The answer is exit code 5 and a line or two that say so and what to do."""
    assert (ended.code, ended.stdout) == (5, ""), ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") <= 2, ended.stderr
    assert all(words in ended.stderr for words in said), ended.stderr


@pytest.fixture
def program(tmp_path: Path, plain_zygote: Zygote) -> Program:
    return Program(tmp_path, zygote=plain_zygote)


@pytest.mark.parametrize("leave_kib", [0, 300])
def test_ingest(program: Program, plain_zygote: Zygote, disk: SmallDisk, tmp_path: Path, leave_kib: int) -> None:
    """Ingest, into a new state and into an old one, stops with what was committed and goes on later."""
    write_manifest(tmp_path / "small.jsonl", manifest(3))
    write_manifest(tmp_path / "big.jsonl", manifest(2000, title="x" * 1000))
    states = {name: ("--state", disk.root / name) for name in ("old", "new")}
    assert program.run("ingest", "small.jsonl", *states["old"]).code == 0
    disk.fill(leave_kib)
    for state in states.values():
        assert_full(program.run("ingest", "big.jsonl", *state), "is full", "free some space")
    disk.free()
    # The small manifest's keys were taken over by the big one.
    for name, state in states.items():
        assert json.loads(program.run("ingest", "big.jsonl", *state, "--json").stdout)["records"] == 2000
        check_state(disk.root / name, program=Program(tmp_path, zygote=plain_zygote, state=disk.root / name))


@pytest.mark.parametrize(("origin", "reserve"), [("disk", 0), ("network", 0), ("network", 10**9)])
def test_fetch(plain_zygote: Zygote, disk: SmallDisk, tmp_path: Path, origin: str, reserve: int) -> None:
    """Fetch stops at a full disk, and before it where ``min_free`` is not left; no attempt is charged."""
    program = Program(tmp_path, zygote=plain_zygote, state=disk.root / "state", longest_edge=1024)
    rng = random.Random(3)
    for number in range(8):
        picture = Image.frombytes("RGB", (512, 384), rng.randbytes(512 * 384 * 3))
        picture.save(tmp_path / f"{number}.jpg", quality=92)
    with FaultServer() as server:
        records = manifest(8)
        if origin == "network":
            for record in records:
                server.add("/" + record["path"], (tmp_path / record["path"]).read_bytes())
                record["url"] = server.url("/" + record["path"])
                del record["path"]
        write_manifest(tmp_path / "m.jsonl", records)
        assert program.run("ingest", "m.jsonl").code == 0
        disk.fill(leave_kib=600)
        assert_full(program.run("fetch", "--json", "--min-free", reserve), "free some space", "run")
        sources = program.status()["sources"]
        assert (sources["retry"], sources["dead"], sources["running"]) == (0, 0, 0)
        assert sources["ready"] + sources["done"] == 8
        assert sources["done"] < 8
        disk.free()
        assert json.loads(program.run("fetch", "--json").stdout)["stages"]["fetch"]["done"] == 8 - sources["done"]
    check_state(program.state, program=program)


def test_caption(plain_zygote: Zygote, disk: SmallDisk, tmp_path: Path) -> None:
    """When the disk fills up under the captions, what was committed stays, the rest is made later, each once."""
    write_manifest(tmp_path / "m.jsonl", manifest(40))
    for number in range(40):
        Image.new("RGB", (20, 20), (6 * number, 0, 0)).save(tmp_path / f"{number}.jpg")
    bench = Workbench(tmp_path, state=disk.root / "state", batch_size=2)
    program = Program(tmp_path, zygote=plain_zygote, state=bench.state)
    assert program.run("ingest", "m.jsonl").code == 0
    bench.fetch()

    def fill(_: CaptionItem) -> None:
        if first.captions == 6:
            disk.fill(leave_kib=0)

    first, second = PlainCaptioner(before=fill), PlainCaptioner()
    with pytest.raises(DiskFullError, match="is full"):
        bench.caption(first)
    done = {item for (item,) in bench.rows("SELECT id FROM captions WHERE status = 'done'")}
    assert 4 <= len(done) < 40
    disk.free()
    assert bench.caption(second).done == 40 - len(done)
    pulled = Counter(item.id for call in second.calls for item in call)
    assert not done & set(pulled), "a caption was made twice"
    assert bench.rows("SELECT DISTINCT attempts FROM captions") == [(1,)]
    output = tmp_path / "out.jsonl"
    assert program.run("export", output).code == 0
    check_state(bench.state, output=output, keys=[f"k{n}" for n in range(40)], program=program)


def test_export(program: Program, disk: SmallDisk, tmp_path: Path) -> None:
    """Export to a full disk leaves the old file as it was and nothing beside it; later it replaces it."""
    path = write_manifest(tmp_path / "m.jsonl", manifest(1000, title="x" * 1000))
    assert program.run("ingest", path).code == 0
    target = disk.root / "out.jsonl"
    target.write_bytes(b"precious")
    disk.fill(leave_kib=300)
    assert_full(program.run("export", target), "no space left", "out.jsonl", "untouched")
    assert target.read_bytes() == b"precious"
    assert {path.name for path in disk.root.iterdir()} == {"out.jsonl", "filler"}
    disk.free()
    assert program.run("export", target).code == 0
    assert target.read_bytes() == path.read_bytes()
    check_state(program.state, program=program)


def test_what_is_full_can_be_looked_at(plain_zygote: Zygote, disk: SmallDisk, tmp_path: Path) -> None:
    """With no room for the log that SQLite wants for reading, too, a state that nobody works on is shown as ever."""
    program = Program(disk.root, zygote=plain_zygote)
    assert program.run("ingest", write_manifest(tmp_path / "m.jsonl", manifest(3))).code == 0
    shown = program.run("status").stdout
    disk.fill(leave_kib=0)
    for _ in range(2):
        ended = program.run("status")
        assert (ended.code, ended.stdout) == (0, shown), ended.stderr
    assert_full(program.run("fetch"), "the disk of")


@pytest.mark.parametrize(("asked", "words"), [("export -", "while writing stdout"), ("runs", "for standard output")])
def test_a_full_stdout(program: Program, tmp_path: Path, asked: str, words: str) -> None:
    """A full disk behind stdout is exit code 5 too, without a traceback."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    assert program.run("ingest", write_manifest(tmp_path / "m.jsonl", manifest(3))).code == 0
    command = f"{sys.executable} -m etl.cli.app {asked} > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith(f"error: no space left {words}")
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr


@pytest.mark.parametrize("leave_kib", [0, 40])
def test_gc_makes_room(plain_zygote: Zygote, disk: SmallDisk, tmp_path: Path, leave_kib: int) -> None:
    """Where no byte is left, also none for SQLite's own files, gc still removes what has its captions."""
    write_manifest(tmp_path / "m.jsonl", manifest(40))
    rng = random.Random(5)
    for number in range(40):
        picture = Image.frombytes("RGB", (40, 30), rng.randbytes(3600))
        picture.save(tmp_path / f"{number}.jpg", quality=92)
    bench = Workbench(tmp_path, state=disk.root / "state")
    program = Program(tmp_path, zygote=plain_zygote, state=bench.state)
    assert program.run("ingest", "m.jsonl").code == 0
    bench.fetch()
    bench.caption(PlainCaptioner())
    disk.fill(leave_kib)
    counted = json.loads(program.run("gc", "--captioned", "--dry-run", "--json").stdout)
    assert counted["captioned"]["files"] == 40
    done = program.run("gc", "--captioned", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["captioned"]["files"] == 40
    assert not list((bench.state / "images" / "working").rglob("*.jpg"))
    assert (bench.state / "reserve").stat().st_blocks, "the next full disk finds nothing to give back"
    output = tmp_path / "out.jsonl"
    assert program.run("export", output).code == 0
    check_state(bench.state, output=output, keys=[f"k{n}" for n in range(40)], program=program)
