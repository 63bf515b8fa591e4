"""The caption stage: the demo model where words matter, a plain captioner where only the scheduling does."""

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.fault_server import Exchange, FaultServer, ok
from support.watching import wait_for
from support.workbench import PlainCaptioner, Turnstile, Workbench, scenes

from etl.caption.backends import open_captioner
from etl.caption.captioner import Captioner
from etl.caption.gpus.plan import WorkerPlan
from etl.caption.gpus.pool import GpuPool
from etl.caption.stage import caption
from etl.demo.scenes import Scene
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import RunState, Stage
from etl.domain.views import StageSummary
from etl.errors import ModelError
from etl.export.stage import ExportOptions, export
from etl.fetch.stage import fetch
from etl.images.cache import ImageCache
from etl.ingest.options import IngestOptions
from etl.ingest.prompts import PromptTemplate
from etl.maintenance.verify import verify
from etl.run.supervisor import run_stages
from etl.run_control import RunControl
from etl.state.captions import CaptionQueue
from etl.state.read.reader import Reader
from etl.state.store import Store


def add_pictures(bench: Workbench, count: int, *, fetched: bool = True) -> list[tuple[Path, Scene]]:
    """Ingest so many records ``r0``, ``r1``, ... of local files, one scene each, and fetch them."""
    pictures = []
    for number, (scene, body) in enumerate(scenes(count)):
        path = bench.state.parent / f"{number}.jpg"
        path.write_bytes(body)
        pictures.append((path, scene))
    bench.ingest(*(str(path) for path, _ in pictures))
    if fetched:
        assert bench.fetch().done == count
    return pictures


def working_path(bench: Workbench, picture: Path) -> Path:
    """Return where the working copy of a source lies."""
    [(sha256,)] = bench.rows(
        "SELECT i.working_sha256 FROM images i JOIN sources s ON s.image = i.id WHERE s.url = ?", str(picture)
    )
    return ImageCache.of_state(bench.state).working_path(sha256)


def texts(bench: Workbench) -> dict[str, str]:
    """Return the exported captions by record key."""
    target = bench.state.parent / "out.jsonl"
    with Reader(bench.state) as reader:
        export(reader, str(target), ExportOptions(only_captioned=True))
    lines = target.read_text(encoding="utf-8").splitlines()
    return {record["id"]: record["vlm_caption"] for record in map(json.loads, lines)}


@pytest.fixture
def demo(bench: Workbench) -> Iterator[Captioner]:
    """Return the demo model over the bench's cache, on the CPU."""
    captioner = open_captioner(bench.settings, ImageCache.of_state(bench.state), bench.settings.longest_edge)
    yield captioner
    captioner.close()


def test_pictures_get_their_captions_without_a_gpu(bench: Workbench, demo: Captioner) -> None:
    """The demo model on the CPU describes the drawn scenes, each under its own record."""
    pictures = add_pictures(bench, 6)
    assert bench.caption(demo) == StageSummary(done=6)
    right = {f"r{number}": scene.caption for number, (_, scene) in enumerate(pictures)}
    found = texts(bench)
    assert found.keys() == right.keys()
    # The model is tiny: it may take a colour for another once, but not a record for another.
    assert sum(found[key] == right[key] for key in right) >= 4
    rows = bench.rows("SELECT DISTINCT status, finish_reason, attempts, lease_run, run IS NULL FROM captions")
    assert rows == [("done", "stop", 1, None, 0)]
    assert bench.caption(demo) == StageSummary()


def test_lost_pictures_are_fetched_again_and_charged_to_nobody(bench: Workbench, demo: Captioner) -> None:
    """Captions of missing and damaged working copies wait, alone of a full batch; fetch and caption heal them."""
    pictures = add_pictures(bench, 4)
    working_path(bench, pictures[1][0]).unlink()
    working_path(bench, pictures[2][0]).write_bytes(b"\xff\xd8\xff but no picture")
    assert bench.caption(demo) == StageSummary(done=2, lost=2)
    waiting = bench.rows("SELECT status, attempts, crashes, lease_run FROM captions WHERE status <> 'done'")
    assert waiting == [("cancelled", 0, 0, None)] * 2
    assert texts(bench).keys() == {"r0", "r3"}
    with Store.open(bench.settings) as store:
        found = verify(store)
    assert (found.images, found.missing, found.damaged, found.requeued, found.problems) == (2, 0, 0, 0, ())
    assert bench.caption(demo) == StageSummary(), "the pictures have not come back yet"
    assert bench.fetch().done == 2
    assert bench.caption(demo) == StageSummary(done=2)
    assert texts(bench).keys() == {"r0", "r1", "r2", "r3"}
    assert bench.rows("SELECT count(*) FROM captions") == [(4,)]


def test_each_batch_is_committed_before_the_next_but_one_begins(bench: Workbench) -> None:
    """Another process sees finished captions after every batch, so a kill costs one batch at most."""
    add_pictures(bench, 12)
    seen: list[int] = []
    bench.caption(PlainCaptioner(before=lambda _: seen.append(bench.counts("captions").get("done", 0))))
    assert seen == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8]


def test_slow_captions_are_committed_after_a_second(bench: Workbench) -> None:
    """A batch that takes long is committed in parts: little is lost, and progress shows."""
    add_pictures(bench, 3)
    seen: list[int] = []

    def slow(_: CaptionItem) -> None:
        seen.append(bench.counts("captions").get("done", 0))
        time.sleep(0.6)

    bench.caption(PlainCaptioner(before=slow))
    assert seen == [0, 0, 2]


def test_a_backend_that_breaks_down_costs_nothing_finished(bench: Workbench) -> None:
    """When the backend raises, what it had yielded is committed and the rest is ready again, uncharged."""
    add_pictures(bench, 10)

    class Breaking(PlainCaptioner):
        def caption(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            yield from islice(super().caption(*arguments, **more), 6)
            raise ModelError("the GPU fell off the bus")

    with pytest.raises(ModelError, match="fell off"):
        bench.caption(Breaking())
    assert bench.counts("captions") == {"done": 6, "ready": 4}
    assert bench.rows("SELECT DISTINCT attempts, crashes, lease_run FROM captions WHERE status = 'ready'") == [
        (0, 0, None)
    ]


def test_retryable_failures_are_tried_to_the_limit(bench: Workbench) -> None:
    """A picture on which generation fails is tried three times, then dead; the others are done."""
    add_pictures(bench, 3)

    class Failing(PlainCaptioner):
        def caption(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            for result in super().caption(*arguments, **more):
                yield (
                    ItemFailure(id=result.id, slug="generation", message="nan", retryable=True, started_at=0)
                    if result.id == 2
                    else result
                )

    captioner = Failing()
    assert bench.caption(captioner) == StageSummary(done=2, retried=2, dead=1)
    assert [item.id for call in captioner.calls for item in call].count(2) == 3
    assert bench.rows("SELECT status, attempts, error_class FROM captions WHERE id = 2") == [("dead", 3, "generation")]


def test_a_caption_that_saw_three_crashes_runs_alone(bench: Workbench) -> None:
    """Captions in flight at three deaths go one by one, behind all others; after five they are dead."""
    add_pictures(bench, 6)
    captioner = PlainCaptioner()
    recipe = captioner.recipe

    def crash(claims: Callable[[CaptionQueue], int]) -> None:
        with Store.open(bench.settings) as store:
            row = store.use_recipe(sha256=recipe.sha256, model="plain", revision="1", spec=recipe.to_json())
            queue = store.captions(store.begin_run([Stage.CAPTION]), row)
            queue.enqueue_possible()
            # As a kill leaves it: claimed, and the run never ended.
            assert claims(queue)

    for _ in range(3):
        crash(lambda queue: len(queue.claim(2)))
    for _ in range(2):
        crash(lambda queue: queue.claim_suspect() is not None and len(queue.claim(4)))
    Store.open(bench.settings).close()
    assert bench.rows("SELECT crashes FROM captions ORDER BY id") == [(5,), (3,), (2,), (2,), (2,), (2,)]
    assert bench.rows("SELECT status, error_class FROM captions WHERE id = 1") == [("dead", "crashed")]
    assert bench.caption(captioner) == StageSummary(done=5)
    assert [[item.id for item in call] for call in captioner.calls] == [[3, 4, 5, 6], [2]]


def test_a_pause_ends_claiming_and_a_resume_begins_it_again(bench: Workbench) -> None:
    """What was pulled before the pause is finished and committed; nothing more is, until the run goes on."""
    add_pictures(bench, 8)
    gate = Turnstile()
    with bench.beside(lambda control: bench.caption(PlainCaptioner(before=gate), control)) as (control, running):
        gate.let(2)
        wait_for(lambda: gate.arrived == 3)
        control.pause()
        gate.let(2)
        wait_for(lambda: bench.counts("captions").get("done") == 4)
        gate.let()
        time.sleep(0.5)
        assert bench.counts("captions") == {"done": 4, "ready": 4}
        assert not running.done()
        control.resume()
        assert running.result(timeout=10) == StageSummary(done=8)


def test_a_stop_finishes_what_was_pulled_and_gives_back_the_rest(bench: Workbench) -> None:
    """After a stop the claimed batch is finished, and no lease remains."""
    add_pictures(bench, 8)
    gate = Turnstile()
    with bench.beside(lambda control: bench.caption(PlainCaptioner(before=gate), control)) as (control, running):
        gate.let(1)
        wait_for(lambda: gate.arrived == 2)
        control.stop()
        gate.let()
        assert running.result(timeout=10) == StageSummary(done=4)
    assert bench.counts("captions") == {"done": 4, "ready": 4}
    assert bench.rows("SELECT count(*) FROM captions WHERE lease_run IS NOT NULL") == [(0,)]


def test_after_the_grace_period_the_batch_is_abandoned(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model has not finished in time is given back without an attempt; what it has is kept."""
    monkeypatch.setattr("etl.run_control.GRACE_S", 0.0)
    add_pictures(bench, 4)
    gate = Turnstile()
    with bench.beside(lambda control: bench.caption(PlainCaptioner(before=gate), control)) as (control, running):
        gate.let(1)
        wait_for(lambda: gate.arrived == 2)
        control.stop()
        gate.let()
        assert running.result(timeout=10) == StageSummary(done=1, released=3)
    assert bench.rows("SELECT DISTINCT attempts, crashes FROM captions WHERE status = 'ready'") == [(0, 0)]


def test_pictures_are_captioned_while_others_are_still_fetched(server: FaultServer, bench: Workbench) -> None:
    """Fetch queues captions for the stage beside it: the first are done before the last picture is requested."""
    done_at_request: list[int] = []

    def slowly(exchange: Exchange) -> None:
        done_at_request.append(bench.counts("captions").get("done", 0))
        exchange.closing.wait(0.1)
        ok(exchange)

    urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(12))]
    for n in range(12):
        server.fail(f"/{n}.jpg", slowly)
    bench.ingest(*urls)
    settings = dataclasses.replace(bench.settings, per_host=1)
    with Store.open(settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
        result = run_stages(store, run, {
            Stage.FETCH: lambda store, run, control: fetch(store, run, settings, control),
            Stage.CAPTION: lambda store, run, control: caption(
                store, run, settings, PlainCaptioner(), control, more_coming=lambda: control.is_active(Stage.FETCH)
            ),
        })  # fmt: skip
    assert (result.state, result.summaries[Stage.FETCH].done, result.summaries[Stage.CAPTION].done) == (
        RunState.DONE, 12, 12,
    )  # fmt: skip
    assert done_at_request[-1] >= 4
    assert len(texts(bench)) == 12


def test_a_picture_that_fetch_commits_without_the_recipe_is_not_left_behind(bench: Workbench) -> None:
    """A commit that began before the recipe was known, and ended after the queue was filled, is found in the end."""
    add_pictures(bench, 3)
    [(_, body)] = scenes(1, seed=9)
    late = bench.state.parent / "late.jpg"
    late.write_bytes(body)
    pictures = [str(bench.state.parent / f"{n}.jpg") for n in range(3)]
    bench.ingest(*pictures, str(late))
    with Store.open(bench.settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
        asked = 0

        def more_coming() -> bool:
            nonlocal asked
            asked += 1
            if asked == 1:
                assert fetch(store, run, bench.settings, RunControl()).done == 1
            return False

        summary = caption(store, run, bench.settings, PlainCaptioner(), RunControl(), more_coming=more_coming)
    assert summary == StageSummary(done=4)


def test_a_new_model_makes_new_captions_beside_the_old(bench: Workbench) -> None:
    """Another recipe captions everything again; the earlier captions stay and can still be exported."""
    add_pictures(bench, 3)
    first, second = PlainCaptioner("first"), PlainCaptioner("second")
    assert bench.caption(first).done == 3
    assert bench.caption(second).done == 3
    assert bench.caption(first) == StageSummary(), "what exists is never made again"
    found = bench.rows("SELECT p.model, count(*) FROM captions c JOIN recipes p ON p.id = c.recipe GROUP BY p.model")
    assert found == [("first", 3), ("second", 3)]
    [(spec,)] = bench.rows("SELECT spec FROM recipes WHERE model = 'second'")
    assert json.loads(spec)["engine"] == "test"
    assert bench.rows("SELECT model FROM recipes WHERE current = 1") == [("first",)]


def test_a_new_prompt_makes_new_captions_beside_the_old(bench: Workbench) -> None:
    """After an ingest with another template only the new prompts are captioned; old captions are kept."""
    pictures = [str(path) for path, _ in add_pictures(bench, 3)]
    assert bench.caption(PlainCaptioner()).done == 3
    bench.ingest(*pictures, options=IngestOptions(template=PromptTemplate("What is in picture {{ record.id }}?")))
    assert bench.rows("SELECT DISTINCT outcome FROM records") == [("pending",)]
    assert bench.caption(PlainCaptioner()).done == 3
    assert bench.counts("captions") == {"done": 6}
    assert texts(bench)["r1"].startswith("What is in picture r1?")


def test_records_that_share_picture_and_prompt_share_a_caption(bench: Workbench) -> None:
    """One caption serves every record with the same picture and prompt; another title asks anew."""
    [(path, _)] = add_pictures(bench, 1)
    bench.ingest(
        {"id": "a", "url": str(path)}, {"id": "b", "url": str(path)},
        {"id": "c", "url": str(path), "name": "Rue Saint-Antoine"},
    )  # fmt: skip
    assert bench.caption(PlainCaptioner()) == StageSummary(done=2)
    found = texts(bench)
    assert found.keys() == {"a", "b", "c"}
    assert found["a"] == found["b"] != found["c"]


def test_a_late_result_of_a_lost_lease_changes_nothing(bench: Workbench) -> None:
    """A result whose lease another run has taken over is dropped, not committed twice."""
    add_pictures(bench, 1)
    captioner = PlainCaptioner()
    recipe = captioner.recipe
    with Store.open(bench.settings) as store:
        row = store.use_recipe(sha256=recipe.sha256, model="plain", revision="1", spec=recipe.to_json())
        old = store.captions(store.begin_run([Stage.CAPTION]), row)
        old.enqueue_possible()
        [item] = old.claim(1)
        [late] = captioner.caption([item])
        assert isinstance(late, CaptionResult)
        old.release_all()
        assert store.captions(store.begin_run([Stage.CAPTION]), row).claim(1) == [item]
        assert old.commit([late], 0) == 0
    assert bench.rows("SELECT text FROM captions") == [(None,)]


@pytest.mark.soak
def test_a_worker_that_is_killed_costs_nothing_but_time(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two worker processes, one of them killed in the middle, every picture has its caption, committed once."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Another in its place would be loaded by the time that all is done.
    monkeypatch.setattr("etl.caption.gpus.pool.FRUITLESS", 1)
    pictures = add_pictures(bench, 60)
    settings = dataclasses.replace(bench.settings, slots=3)
    cache = ImageCache.of_state(bench.state)
    pool = GpuPool(settings, (WorkerPlan("cpu"), WorkerPlan("cpu")), cache.root, settings.longest_edge)
    victim = pool._workers[0].child.pid

    def kill_in_the_middle() -> None:
        wait_for(lambda: bench.rows("SELECT count(*) FROM captions WHERE status = 'done'")[0][0] >= 8, 60)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    try:
        summary = bench.caption(pool)
    finally:
        killer.join()
        pool.close()
    assert (summary.done, summary.dead, summary.released) == (60, 0, 0)
    assert texts(bench) == {f"r{number}": scene.caption for number, (_, scene) in enumerate(pictures)}
    assert summary.retried == bench.rows("SELECT sum(crashes) FROM captions")[0][0] > 0
    sql = "SELECT count(*), count(DISTINCT item) FROM attempts WHERE error_class IS NULL AND stage = 'caption'"
    assert bench.rows(sql) == [(60, 60)]
    last = bench.rows("SELECT worker, captions, in_use FROM engine_samples ORDER BY id DESC LIMIT 2")
    assert {worker for worker, _, _ in last} == {0, 1}
    assert (sum(captions for _, captions, _ in last), {in_use for _, _, in_use in last}) == (60, {0})
