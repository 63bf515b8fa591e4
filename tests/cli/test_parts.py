"""`etl split` and `etl merge` on the command line: one real run in parts, summaries, refusals, status."""

import json
import re
from pathlib import Path

import pytest
from cli.conftest import Etl
from support.fault_server import FaultServer
from support.workbench import scenes, write_manifest

SETTINGS = ("--allow-host", "127.0.0.1", "--decoders", "1", "--longest-edge", "224", "--max-attempts", "1")
MODEL = ("--model", "demo", "--device", "cpu", "--max-new-tokens", "12")


def exported(etl: Etl, state: Path) -> str:
    """Return the export of a state without its times."""
    answer = etl("export", "-", "--state", state)
    assert answer.code == 0
    return re.sub(r'"vlm_captioned_at":"[^"]*"', "", answer.out)


@pytest.mark.usefixtures("forked_children")
def test_two_machines_do_what_one_does(etl: Etl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched from a real server and captioned by the demo model in two parts: the same export, each picture once."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with FaultServer() as server:
        urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(4))]
        records = [{"id": f"k{n}", "url": url} for n, url in enumerate([*urls, urls[1], f"{server.base}/gone.jpg"])]
        manifest = write_manifest(tmp_path / "manifest.jsonl", records)
        assert etl("run", "--state", "one", "--input", manifest, *SETTINGS, *MODEL, "-q").code == 3
        assert etl("ingest", manifest, "--state", "two").code == 0
        before = server.requests.total()
        answer = etl("split", "2", "parts", "--state", "two", "--json")
        assert [part["sources"] for part in answer.json()["parts"]] == [3, 2]
        refused = etl("run", "--state", "two", *SETTINGS, *MODEL)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "is split into 2 parts" in refused.err
        assert etl("status", "--state", "two", "--json").json()["split"] == {
            "directory": str(tmp_path / "parts"), "parts": 2, "merged": 0, "finished": 0,
        }  # fmt: skip
        for number in 1, 2:
            etl("run", "--state", f"parts/part-{number}", *SETTINGS, *MODEL, "-q")
        merged = etl("merge", "parts/part-2", "parts/part-1", "--state", "two", "--json")
        assert [part["rows"]["closed"] for part in merged.json()["parts"]] == [True, True]
        assert server.requests.total() - before == len(urls) + 1
    assert exported(etl, Path("two")) == exported(etl, Path("one"))
    assert etl("status", "--state", "two", "--json").json()["split"] is None
    assert etl("verify", "--state", "two").code == 0
    again = etl("merge", "parts/part-1", "--state", "two")
    assert "nothing new, 0 records still to do" in again.err
    assert json.loads(etl("runs", "--state", "two", "--json").out.splitlines()[0])["stages"] == ["export"]
    assert etl("failures", "--state", "two", "--json").json()["error_class"] == "http_404"


def test_merge_says_what_is_wrong(etl: Etl, tmp_path: Path) -> None:
    """A directory that is no state, and a part at which a run is at work, end with one line and their exit code."""
    manifest = write_manifest(tmp_path / "manifest.jsonl", [{"id": "a", "url": "http://a.example/a.jpg"}])
    etl("ingest", manifest)
    assert etl("split", "2", "parts").code == 0
    assert "part 1" in etl("split", "2", "parts").err
    missing = etl("merge", "nowhere")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "no state database in nowhere" in missing.err
    from etl.state.lock import StateLock

    with StateLock(tmp_path / "parts" / "part-1"):
        busy = etl("merge", "parts/part-1")
    assert busy.code == 4
    assert "a run is at work on parts/part-1" in busy.err
    assert etl("merge", "--check", "--final", "parts/part-1").code == 0
