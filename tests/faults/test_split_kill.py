"""`etl split` and `etl merge` killed in their middle: run again, they come to the same end."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.parts import Work, records
from support.states import assert_sound

from etl.maintenance.verify import verify
from etl.state.store import Store

KILLER = """
import os, signal, sys
moment, number = sys.argv.pop(1).split(":")
seen = 0
def count():
    global seen
    seen += 1
    if seen == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
if moment == "file":
    sys.addaudithook(lambda event, _: count() if event in ("os.link", "os.rename", "os.mkdir") else None)
else:
    from etl.state.parts.merge_steps import Steps
    change = Steps.change
    def counted(self, *arguments):
        count()
        return change(self, *arguments)
    Steps.change = counted
from etl.cli.app import main
main()
"""
"""Kills the program with SIGKILL at its n-th change of the file system, or at the n-th statement of a merge."""


def etl(moment: str, *arguments: object, cwd: Path) -> int:
    """Run the program, to be killed at a moment; return how it ended."""
    done = subprocess.run(
        [sys.executable, "-c", KILLER, moment, *map(str, arguments)],
        cwd=cwd, env={**os.environ, "ETL_MIN_FREE": "0"}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


@pytest.fixture
def whole(tmp_path: Path) -> Work:
    """Return a state half of whose pictures are there."""
    work = Work(tmp_path / "state", keep_originals=True)
    work.ingest(records([f"{n}{kind}.jpg" for n in range(4) for kind in ("", "gone", "same", "long")]))
    work.fetch(8)
    return work


@pytest.mark.soak
def test_killed_split_and_merge_come_to_the_same_end(whole: Work, tmp_path: Path) -> None:
    """No record is lost or in two parts, no caption made twice, no file left over, whatever the moment of the kill."""
    one = Work(tmp_path / "one" / "state", keep_originals=True)
    shutil.copytree(whole.state, one.state)
    one.finish()
    # The directories of three caches are 514 each; between them lie links, renames and commits.
    kills = [etl(f"file:{n}", "split", 3, "parts", cwd=tmp_path) for n in (30, 526, 527, 1050)]
    assert kills.count(-signal.SIGKILL) >= 3
    assert etl("file:0", "split", 3, "parts", cwd=tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["part-1", "part-2", "part-3"]
    parts = [Work(path, keep_originals=True) for path in sorted((tmp_path / "parts").iterdir())]
    keys = [key for part in parts for (key,) in part.rows("SELECT key FROM records")]
    assert len(keys) == len(set(keys)) == 16
    for part in parts:
        part.finish()
    paths = [part.state for part in parts]
    moments = ("file:3", "change:9", "change:17", "change:40")
    kills = [etl(moment, "merge", *paths, cwd=tmp_path) for moment in moments]
    assert kills.count(-signal.SIGKILL) >= 3
    assert etl("file:0", "merge", "--check", *paths, cwd=tmp_path) == 0
    assert_sound(whole.state)
    assert whole.export() == one.export()
    assert whole.history() == one.history()
    with Store.open(whole.settings) as store:
        found = verify(store)
    assert (found.missing, found.damaged, found.missing_originals, found.orphans, found.parts) == (0, 0, 0, 0, 0)
