"""Captioning in processes of their own: the same words, and a process that dies costs nothing but its time."""

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from caption.conftest import Scenes
from support.zygote import Zygote

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.gpus.plan import WorkerPlan
from etl.caption.gpus.pool import GpuPool
from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.caption.model.loading import LoadedModel
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.errors import ModelError
from etl.images.cache import ImageCache
from etl.processes import ChildProcess
from etl.settings import Settings

SETTINGS = Settings(model="demo", device="cpu", dtype="float32", max_new_tokens=40, slots=4)
TWO = (WorkerPlan("cpu"), WorkerPlan("cpu"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, scenes: Scenes) -> Path:
    """Return the root of an image cache with the scenes' working copies."""
    cache = ImageCache(tmp_path_factory.mktemp("cache"))
    for item in scenes.items:
        path = cache.working_path(item.working_sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes.locate(item.working_sha256), path)
    return cache.root


@pytest.fixture(autouse=True, scope="module")
def one_thread_each() -> Iterator[None]:
    """Let each worker compute in one thread; more are slower for a model this small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def right(loaded: LoadedModel, scenes: Scenes) -> dict[int, str]:
    """Return the captions that one process gives."""
    return {o.id: o.text for o in GenerateCaptioner(loaded, SETTINGS, scenes.locate).caption(scenes.items)}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def make_pool(cache: Path) -> Iterator[Callable[[], GpuPool]]:
    """Return a maker of a pool of two workers, the same one while both can work; at the end no process is left."""
    made: list[GpuPool] = []
    children: dict[int, psutil.Process] = {}

    def usable() -> GpuPool:
        if not made or any(worker.given_up for worker in made[-1]._workers):
            made.append(GpuPool(SETTINGS, TWO, cache, 1024))
        return made[-1]

    yield usable
    for pool in made:
        children |= {pid: psutil.Process(pid) for w in pool._workers if psutil.pid_exists(pid := w.child.pid)}
        pool.close()
    assert not psutil.wait_procs(children.values(), timeout=30)[1]


@pytest.fixture
def pool(make_pool: Callable[[], GpuPool], zygote: Zygote) -> Iterator[GpuPool]:
    """Return a pool of two workers, which other tests use too: it may have captioned, and replaced workers.

    They are forks, which have imported torch; how a worker really starts shows where a model cannot be loaded.
    """
    with zygote.children():
        yield make_pool()


def many_of(scenes: Scenes, times: int) -> list[CaptionItem]:
    """Return the scenes' items so many times, each under a number of its own."""
    return [
        dataclasses.replace(item, id=1000 * turn + item.id) for turn in range(times) for item in scenes.items
    ]  # fmt: skip


def test_a_stop_leaves_nothing_in_hand(pool: GpuPool, scenes: Scenes, right: dict[int, str]) -> None:
    """After a stop nothing more is yielded, and late words of the workers are not taken for those of the next call."""
    items = many_of(scenes, 10)
    looks = iter(range(10_000))
    before = list(pool.caption(items, should_stop=lambda: next(looks) >= 3))
    assert len(before) < len(items)
    after = list(pool.caption(iter([*scenes.items, None])))
    assert {o.id: o.text for o in after if isinstance(o, CaptionResult)} == right


def test_a_dead_worker_is_replaced_and_its_items_go_back(pool: GpuPool, scenes: Scenes, right: dict[int, str]) -> None:
    """After kill -9 of one of two workers every item has one outcome: right words, or a crash to be tried again."""
    items = many_of(scenes, 6)
    outcomes: list[CaptionResult | ItemFailure] = []
    earlier = [sample.captions for sample in pool.samples()]
    victim = pool._workers[0].child.pid
    for outcome in pool.caption(items):
        outcomes.append(outcome)
        if len(outcomes) == 15:
            os.kill(victim, signal.SIGKILL)
    crashed = [o for o in outcomes if isinstance(o, ItemFailure)]
    assert 0 < len(crashed) <= 4 + 16
    assert all(o.crashed and o.retryable and o.slug == "crashed" and "SIGKILL" in o.message for o in crashed)
    again = list(pool.caption([item for item in items if item.id in {o.id for o in crashed}]))
    assert pool._workers[0].child.pid != victim
    assert sorted(o.id for o in outcomes) == sorted(item.id for item in items)
    texts = {o.id: o.text for o in [*outcomes, *again] if isinstance(o, CaptionResult)}
    assert texts == {item.id: right[item.id % 1000] for item in items}
    samples = pool.samples()
    assert sum(sample.captions for sample in samples) == sum(earlier) + len(items)
    assert all(sample.captions > before for sample, before in zip(samples, earlier, strict=True))
    assert all(sample.in_use == sample.waiting == 0 for sample in samples)


def test_a_model_that_cannot_be_loaded(tmp_path: Path, cache: Path) -> None:
    """What a worker cannot load is the caller's one line, with no process left."""
    broken = shutil.copytree(DEMO_CHECKPOINT, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    before = psutil.Process().children()
    with pytest.raises(ModelError, match=r"weights model\.safetensors are corrupt"):
        GpuPool(dataclasses.replace(SETTINGS, model=str(broken)), TWO[:1], cache, 1024)
    assert psutil.Process().children() == before


def test_a_worker_that_dies_again_and_again_is_given_up(
    pool: GpuPool, scenes: Scenes, right: dict[int, str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A GPU whose worker finishes nothing before it dies is left alone; others go on, and without any the run ends."""
    monkeypatch.setattr("etl.caption.gpus.pool.FRUITLESS", 1)
    os.kill(pool._workers[0].child.pid, signal.SIGKILL)
    items = many_of(scenes, 5)
    outcomes = list(pool.caption(items))
    assert [worker.given_up for worker in pool._workers] == [True, False]
    assert sorted(o.id for o in outcomes) == sorted(item.id for item in items)
    texts = {o.id: o.text for o in outcomes if isinstance(o, CaptionResult)}
    assert texts == {number: right[number % 1000] for number in texts} != {}
    with pytest.raises(ModelError, match="captioning worker 1 ended: killed by SIGKILL"):
        captions = pool.caption(items)
        os.kill(pool._workers[1].child.pid, signal.SIGKILL)
        list(captions)
    assert "is given up" in caplog.records[-1].getMessage()


@pytest.mark.soak
def test_want_of_memory_is_held_against_no_picture(
    cache: Path, scenes: Scenes, right: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ends for want of memory has a successor with half the slots; its items are captioned by that."""
    monkeypatch.setattr(
        "etl.caption.gpus.pool.ChildProcess",
        lambda _, *config, **options: ChildProcess("caption.scarce_worker:main", *config, **options),
    )
    pool = GpuPool(dataclasses.replace(SETTINGS, slots=9), TWO[:1], cache, 1024)
    try:
        outcomes = list(pool.caption(scenes.items))
        assert pool.samples()[0].slots == 2
    finally:
        pool.close()
    assert {o.id: o.text for o in outcomes if isinstance(o, CaptionResult)} == right
    assert len(outcomes) == len(right)
