"""A full disk: exit code 5 in every stage, nothing lost, and the same command finishes once there is room."""

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.fault_server import FaultServer

Etl = Callable[..., Any]

DISK_KIB = 8192


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


def write(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def assert_full(answer: Any, *said: str) -> None:
    """The answer is exit code 5 and one line that says so and what to do."""
    assert (answer.code, answer.out) == (5, ""), answer.err
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    assert all(words in answer.err for words in said), answer.err


@pytest.mark.parametrize("leave_kib", [0, 300])
def test_ingest(process: Etl, disk: SmallDisk, tmp_path: Path, leave_kib: int) -> None:
    """Ingest, into a new state and into an old one, stops with what was committed and goes on later."""
    write(tmp_path / "small.jsonl", manifest(3))
    write(tmp_path / "big.jsonl", manifest(2000, title="x" * 1000))
    assert process("ingest", "small.jsonl", "--state", disk.root / "old").code == 0
    disk.fill(leave_kib)
    for state in ("old", "new"):
        assert_full(process("ingest", "big.jsonl", "--state", disk.root / state), "is full", "free some space")
    disk.free()
    # The small manifest's keys were taken over by the big one.
    for state in ("old", "new"):
        assert process("ingest", "big.jsonl", "--state", disk.root / state, "--json").json()["records"] == 2000
        assert process("status", "--state", disk.root / state, "--json").json()["records"]["total"] == 2000


@pytest.mark.parametrize(("origin", "reserve"), [("disk", 0), ("network", 0), ("network", 10**9)])
def test_fetch(process: Etl, disk: SmallDisk, tmp_path: Path, origin: str, reserve: int) -> None:
    """Fetch stops at a full disk, and before it where ``min_free`` is not left; no attempt is charged."""
    rng = random.Random(3)
    for number in range(8):
        picture = Image.frombytes("RGB", (512, 384), rng.randbytes(512 * 384 * 3))
        picture.save(tmp_path / f"{number}.jpg", quality=92)
    state = ("--state", str(disk.root / "state"))
    with FaultServer() as server:
        records = manifest(8)
        if origin == "network":
            for record in records:
                server.add("/" + record["path"], (tmp_path / record["path"]).read_bytes())
                record["url"] = server.url("/" + record["path"])
                del record["path"]
        write(tmp_path / "m.jsonl", records)
        assert process("ingest", "m.jsonl", *state).code == 0
        disk.fill(leave_kib=600)
        fetch = ("fetch", *state, "--decoders", "1", "--allow-host", "127.0.0.1", "--json")
        assert_full(process(*fetch, "--min-free", str(reserve)), "free some space", "run")
        sources = process("status", *state, "--json").json()["sources"]
        assert (sources["retry"], sources["dead"], sources["running"]) == (0, 0, 0)
        assert sources["ready"] + sources["done"] == 8
        assert sources["done"] < 8
        disk.free()
        assert process(*fetch).json()["stages"]["fetch"]["done"] == 8 - sources["done"]
    verified = process("verify", *state, "--json").json()
    assert (verified["missing"], verified["damaged"], verified["problems"]) == (0, 0, [])


def test_export(process: Etl, disk: SmallDisk, tmp_path: Path) -> None:
    """Export to a full disk leaves the old file as it was and nothing beside it; later it replaces it."""
    write(tmp_path / "m.jsonl", manifest(1000, title="x" * 1000))
    assert process("ingest", "m.jsonl").code == 0
    target = disk.root / "out.jsonl"
    target.write_bytes(b"precious")
    disk.fill(leave_kib=300)
    assert_full(process("export", target), "no space left", "out.jsonl", "untouched")
    assert target.read_bytes() == b"precious"
    assert {path.name for path in disk.root.iterdir()} == {"out.jsonl", "filler"}
    disk.free()
    assert process("export", target).code == 0
    assert target.read_bytes() == (tmp_path / "m.jsonl").read_bytes()


def test_export_to_a_full_stdout(tmp_path: Path, process: Etl) -> None:
    """A full disk behind stdout is exit code 5 too, without a traceback."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    write(tmp_path / "m.jsonl", manifest(3))
    assert process("ingest", "m.jsonl").code == 0
    command = f"{sys.executable} -m etl.cli.app export - > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("error: no space left while writing stdout")
    assert "Traceback" not in done.stderr
