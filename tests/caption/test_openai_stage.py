"""The caption stage over endpoints: committed as it comes, given back when it cannot go on, done once under kill -9."""

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import ChatServer, hang, status
from support.etl_process import Program
from support.watching import wait_for
from support.workbench import Workbench, scenes
from support.zygote import Zygote

from etl.caption.backends import open_captioner
from etl.domain.views import StageSummary
from etl.errors import ModelError, UsageError
from etl.export.stage import ExportOptions, export
from etl.images.cache import ImageCache
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan
from etl.state.read.progress import engines
from etl.state.read.reader import Reader

pytestmark = pytest.mark.usefixtures("forked_decoders")

KEY = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a key, which must be found nowhere afterwards."""
    monkeypatch.setenv("ETL_API_KEY", KEY)


def prepared(directory: Path, count: int) -> Workbench:
    """Return a state with so many fetched pictures."""
    bench = Workbench(directory)
    for number, (_, body) in enumerate(scenes(count)):
        (directory / f"{number}.jpg").write_bytes(body)
    bench.ingest(*(str(directory / f"{number}.jpg") for number in range(count)))
    assert bench.fetch().done == count
    return bench


def caption(bench: Workbench, *servers: ChatServer, **changes: Any) -> StageSummary:
    """Caption over these endpoints."""
    settings = dataclasses.replace(
        bench.settings, backend="openai", model="tiny", endpoint=tuple(one.url for one in servers), **changes
    )
    captioner = open_captioner(settings, ImageCache.of_state(bench.state), 256)
    try:
        return bench.caption(captioner)
    finally:
        captioner.close()


def right_words(bench: Workbench) -> dict[int, str]:
    """Return what the plain server says of each caption's picture."""
    sql = (
        "SELECT c.id, p.text, i.working_sha256 FROM captions c JOIN images i ON i.id = c.image "
        "JOIN prompts p ON p.id = c.prompt"
    )
    return {number: f"{prompt} {sha256[:8]}" for number, prompt, sha256 in bench.rows(sql)}


def assert_no_key(state: Path) -> None:
    """Assert that no file of the state holds the key."""
    files = [path for path in state.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_captions_over_endpoints_are_committed_and_exported(tmp_path: Path) -> None:
    """Words, tokens, source and the endpoints' load are in the state; a second run finds nothing to do."""
    bench = prepared(tmp_path, 8)
    with ChatServer() as one, ChatServer() as two:
        assert caption(bench, one, two) == StageSummary(done=8)
        assert dict(bench.rows("SELECT id, text FROM captions")) == right_words(bench)
        assert caption(bench, two, one) == StageSummary(), "other places are no other recipe"
    rows = bench.rows("SELECT DISTINCT status, tokens, finish_reason, attempts FROM captions")
    assert rows == [("done", 7, "stop", 1)]
    with Reader(bench.state) as reader:
        export(reader, str(tmp_path / "out.jsonl"), ExportOptions(provenance=True))
        [(run, at)] = bench.rows("SELECT run, max(at) FROM engine_samples WHERE captions > 0")
        assert [sample.worker for sample in engines(reader, run, at)] == [0, 1]
    record = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert record["vlm_caption_source"] == "tiny@unspecified"
    [(spec,)] = bench.rows("SELECT spec FROM recipes WHERE sha256 = ?", record["vlm_provenance"]["recipe"])
    assert json.loads(spec)["engine"] == "openai"
    copies = {sha256 for (sha256,) in bench.rows("SELECT working_sha256 FROM images")}
    assert {hashlib.sha256(asked.jpeg).hexdigest() for asked in [*one.asked, *two.asked]} == copies
    assert_no_key(bench.state)


@pytest.mark.parametrize(
    ("behaviour", "changes", "words"),
    [
        (status(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), {}, "does not accept the key"),
        (status(429, {"error": {"message": "x", "code": "insufficient_quota"}}), {}, "no quota left"),
        (status(500, f"boom {KEY}"), {"endpoint_patience": 0.5}, "no endpoint has captioned anything"),
    ],
)
def test_what_ends_the_run_gives_everything_back(
    tmp_path: Path, behaviour: Any, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No caption is charged, held or lost by the end of the run, and the next run does what is left."""
    monkeypatch.setattr("etl.caption.openai.endpoint_state.FIRST_WAIT_S", 0.1)
    # On a slow machine a picture may meet three failures before the patience is over, and is charged then.
    monkeypatch.setattr("etl.caption.openai.pool.TRIES", 1000)
    bench = prepared(tmp_path, 8)
    with ChatServer() as server:
        server.fail(behaviour, None, lambda _: len(server.asked) > 3)
        with pytest.raises(ModelError, match=words) as caught:
            caption(bench, server, **changes)
        assert KEY not in str(caught.value)
        left = bench.rows("SELECT status, count(*), max(attempts), count(lease_run) FROM captions GROUP BY status")
        counts = {state: number for state, number, *_ in left}
        assert set(counts) <= {"done", "ready"} and counts["ready"] >= 4
        assert all(held == 0 and attempts == (state == "done") for state, _, attempts, held in left)
        server.heal()
        assert caption(bench, server).done == counts["ready"]
    assert dict(bench.rows("SELECT id, text FROM captions")) == right_words(bench)
    assert_no_key(bench.state)


def test_failures_of_items_are_retried_or_final(tmp_path: Path) -> None:
    """An answer that is none costs an attempt and is asked for again; a refusal is final at once."""
    bench = prepared(tmp_path, 4)
    with ChatServer() as server:
        server.fail(status(200, "no json"), 2)
        server.fail(status(400, "cannot identify image file"), 1)
        summary = caption(bench, server)
    assert (summary.done, summary.retried, summary.dead) == (3, 2, 1)
    assert bench.rows("SELECT error_class, attempts FROM captions WHERE status = 'dead'") == [("endpoint_refused", 1)]


WATCHED = """
import sys
from etl.cli.app import main
sys.argv[0] = "etl"
try:
    main()
finally:
    print("torch" in sys.modules)
"""


def test_a_killed_driver_loses_nothing_and_repeats_only_what_was_under_way(
    tmp_path: Path, plain_zygote: Zygote
) -> None:
    """After kill -9 and another run, elsewhere, each caption is there once, and none was asked for that was done."""
    count = 24
    bench = prepared(tmp_path, count)
    with ChatServer(delay_s=0.1, slots=4) as first, ChatServer() as second:
        program = Program(tmp_path, zygote=plain_zygote, backend="openai", model="tiny", batch_size=1)
        with program.start("caption", "-q", "--endpoint", first.url) as run:
            wait_for(lambda: program.count("captions", "done") >= 6, 60)
            run.send(signal.SIGKILL)
            assert run.wait().code == 128 + signal.SIGKILL
        done = dict(program.rows("SELECT id, done_at FROM captions WHERE status = 'done'"))
        assert 6 <= len(done) < count
        ended = subprocess.run(
            [sys.executable, "-c", WATCHED, "caption", "-q", "--endpoint", second.url],
            cwd=tmp_path, env=program.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout.strip()) == (0, "False"), ended.stderr
        assert len(second.asked) == count - len(done)
    assert dict(bench.rows("SELECT id, text FROM captions WHERE status = 'done'")) == right_words(bench)
    assert all(bench.rows("SELECT done_at FROM captions WHERE id = ?", key) == [(at,)] for key, at in done.items())
    [(config,)] = bench.rows("SELECT config FROM runs ORDER BY id DESC LIMIT 1")
    assert json.loads(config)["endpoint"] == [second.url] and KEY not in config
    assert_no_key(bench.state)


def test_after_a_stop_what_hangs_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that finish within the grace period are committed; one that hangs is given back, uncharged."""
    monkeypatch.setattr("etl.run_control.GRACE_S", 0.5)
    bench = prepared(tmp_path, 6)
    with ChatServer() as server:
        server.fail(hang, 1)
        settings = dataclasses.replace(bench.settings, backend="openai", model="tiny", endpoint=(server.url,))
        captioner = open_captioner(settings, ImageCache.of_state(bench.state), 256)
        with bench.beside(lambda control: bench.caption(captioner, control)) as (control, summary):
            wait_for(lambda: server.captioned == 5, 30)
            control.stop()
            assert summary.result(30) == StageSummary(done=5, released=1)
        captioner.close()
    assert bench.rows("SELECT count(*), max(attempts) FROM captions WHERE status = 'ready'") == [(1, 0)]


def test_nothing_begins_without_an_endpoint(tmp_path: Path) -> None:
    """Without an endpoint, or with none that answers, there is one clear line and no run on record."""
    bench = prepared(tmp_path, 1)
    runs = bench.rows("SELECT count(*) FROM runs")
    for endpoint, words in {(): "needs --endpoint", ("http://127.0.0.1:9",): "no endpoint can be used"}.items():
        settings = dataclasses.replace(bench.settings, backend="openai", endpoint=endpoint)
        with pytest.raises(UsageError, match=words):
            run_pipeline(settings, Plan(caption=True), lambda _: None)
    assert bench.rows("SELECT count(*) FROM runs") == runs
