"""`etl gc` and the options of `etl verify`, through the program."""

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from etl.cli.maintenance import _collected
from etl.maintenance.gc import GcSummary, Removed

Etl = Callable[..., Any]


def working(folder: Path) -> set[Path]:
    return set((folder / "state" / "images" / "working").rglob("*.jpg"))


def test_gc_tells_what_it_removed(etl: Etl, finished: Any) -> None:
    """A dry run removes nothing; then what has its caption goes, verify misses nothing, and a new model fetches it."""
    before = working(finished.folder)
    told = etl("gc", "--captioned", "--originals", "--dry-run", "--json").json()
    assert told["captioned"]["files"] == len(before) == 5
    assert (told["orphans"], told["dry_run"]) == ({"files": 0, "bytes": 0}, True)
    assert working(finished.folder) == before
    done = etl("gc", "--captioned")
    assert (done.code, done.out) == (0, "")
    assert "5 working copies whose captions are done" in done.err
    assert working(finished.folder) == set()
    assert etl("verify", "--json", "--quick").json()["missing"] == 0
    assert "5 evicted" in etl("verify").err
    status = etl("status", "--json").json()
    assert (status["records"]["captioned"], status["sources"]["ready"]) == (5, 0)


@pytest.mark.usefixtures("finished")
def test_gc_keeps_a_limit(etl: Etl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit comes as a flag or from the settings, and is told."""
    whole = etl("gc", "--json").json()
    assert (whole["captioned"], whole["limit"]) == ({"files": 0, "bytes": 0}, 0)
    size = whole["cache_bytes"]
    some = etl("gc", "--json", "--max-cache-size", str(size - 1)).json()
    assert 0 < some["cache_bytes"] <= 0.9 * size
    monkeypatch.setenv("ETL_MAX_CACHE_SIZE", "1")
    none = etl("gc")
    assert "0 B of 1 B allowed" in none.err


@pytest.mark.usefixtures("finished")
def test_gc_stays_away_from_a_run(etl: Etl, tmp_path: Path) -> None:
    """While another process holds the state it exits 4; without a state it exits 2."""
    code = (
        "import pathlib\nfrom etl.state.lock import StateLock\n"
        f"with StateLock(pathlib.Path({str(tmp_path / 'state')!r})): print('held', flush=True); input()"
    )
    with Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        refused = etl("gc", "--dry-run")
        assert (refused.code, refused.out) == (4, "")
        holder.communicate("\n")
    assert etl("gc", "--dry-run").code == 0
    assert etl("gc", "--state", "elsewhere").code == 2


def test_gc_counts_one_file_as_one() -> None:
    """What is one is told in the singular, a working copy too."""
    one, none = Removed(1, 10), Removed()
    summary = GcSummary(
        orphans=one, parts=one, unneeded=one, originals=one, captioned=one, archives=none, pictures=one,
        cache_bytes=0, limit=0, dry_run=False,
    )  # fmt: skip
    assert [line.split(",")[0] for line in _collected(summary)][:6] == [
        "orphans   1 file that no image owns", "parts     1 unfinished file",
        "unneeded  1 working copy that no record needs", "originals 1 original",
        "captioned 1 working copy whose captions are done", "pictures  1 picture that stood in records which are gone",
    ]  # fmt: skip
