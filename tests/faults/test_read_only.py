"""Directories that cannot be written: one clear line, nothing changed, and the same command goes on later.

A file system mounted read-only stops root too, whom modes do not.  The state directory: tests/cli/test_bad_input.py.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.common_check import check_state
from support.etl_process import Ended, Program
from support.workbench import PlainCaptioner, Workbench, scenes, write_manifest
from support.zygote import Zygote

PICTURES = 3


@pytest.fixture
def archive(tmp_path: Path, plain_zygote: Zygote) -> Program:
    """Local pictures and their manifest, ingested."""
    for n, (_, body) in enumerate(scenes(PICTURES)):
        (tmp_path / f"{n}.jpg").write_bytes(body)
    write_manifest(tmp_path / "manifest.jsonl", [{"id": f"r{n}", "path": f"{n}.jpg"} for n in range(PICTURES)])
    program = Program(tmp_path, zygote=plain_zygote)
    assert program.run("ingest", "manifest.jsonl").code == 0
    return program


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Let nobody write below a directory during the block."""
    with ExitStack() as stack:
        if os.geteuid() == 0:
            mount = ["mount", "--bind", str(directory), str(directory)]
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                pytest.skip("root, whom modes do not stop, may not mount here")
            stack.callback(lambda: subprocess.run(["umount", directory], check=True))
            subprocess.run(["mount", "-o", "remount,ro,bind", directory], check=True)
        else:
            inside = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
            for path in inside:
                stack.callback(path.chmod, path.stat().st_mode)
                path.chmod(0o555)
        yield


def assert_refused(ended: Ended, *said: str) -> None:
    """The answer is exit code 1 and one line that says so."""
    assert (ended.code, ended.stdout) == (1, ""), ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert all(words in ended.stderr for words in said), ended.stderr


def test_images_and_output_that_cannot_be_written(archive: Program, tmp_path: Path) -> None:
    """Fetch charges nobody, a run with such an output does not begin, an old export stays; then all of it is done."""
    images, exports = archive.state / "images", tmp_path / "exports"
    images.mkdir()
    exports.mkdir()
    output = exports / "out.jsonl"
    output.write_bytes(b"precious")
    with read_only(images):
        assert_refused(archive.run("fetch", "-q"), str(images), "cannot write")
    assert archive.rows("SELECT DISTINCT status, attempts, crashes, lease_run FROM sources") == [("ready", 0, 0, None)]
    assert not list(images.iterdir())
    runs = archive.rows("SELECT count(*) FROM runs")
    with read_only(exports):
        assert_refused(archive.run("run", "-q", "--output", output), str(output), "choose another place")
        assert archive.rows("SELECT count(*) FROM runs") == runs, "nothing was begun"
        assert_refused(archive.run("export", output), str(output), "choose another place")
        assert (output.read_bytes(), len(list(exports.iterdir()))) == (b"precious", 1)
    assert_refused(archive.run("run", "-q", "--output", tmp_path / "nowhere" / "out.jsonl"), "nowhere", "No such file")

    assert archive.run("fetch", "-q").code == 0
    Workbench(tmp_path, longest_edge=224).caption(PlainCaptioner())
    with read_only(images):
        assert archive.run("export", "-q", output).code == 0, "what only reads the pictures needs no room for them"
    exported = check_state(archive.state, output=output, keys=[f"r{n}" for n in range(PICTURES)], program=archive)
    assert exported is not None and not exported.failed
