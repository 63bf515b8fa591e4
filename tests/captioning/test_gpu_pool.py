"""Captioning in processes of their own: the same words, and a process that dies costs nothing but its time."""

import contextlib
import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from captioning.conftest import Scenes

from etl.captioning.checkpoint import DEMO_CHECKPOINT
from etl.captioning.generate import GenerateCaptioner
from etl.captioning.gpu_pool import GpuPool
from etl.captioning.gpus import WorkerPlan
from etl.captioning.loading import LoadedModel
from etl.errors import ModelError
from etl.imaging.cache import ImageCache
from etl.models import CaptionItem, CaptionResult, ItemFailure

MakeSettings = Callable[..., Any]
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


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each worker compute in one thread; more are slower for a model this small."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def right(loaded: LoadedModel, scenes: Scenes) -> dict[int, str]:
    """Return the captions that one process gives."""
    from etl.config import Settings

    settings = Settings(model="demo", device="cpu", dtype="float32", max_new_tokens=40)
    return {o.id: o.text for o in GenerateCaptioner(loaded, settings, scenes.locate).caption(scenes.items)}  # type: ignore[union-attr]


@contextlib.contextmanager
def pool_of(settings: Any, plans: tuple[WorkerPlan, ...], cache: Path) -> Iterator[GpuPool]:
    """Yield a pool; no process is left behind it."""
    pool = GpuPool(settings, plans, cache, 1024)
    children = [psutil.Process(worker.child.pid) for worker in pool._workers]
    try:
        yield pool
    finally:
        pool.close()
    assert not psutil.wait_procs(children, timeout=5)[1]


def many_of(scenes: Scenes, times: int) -> list[CaptionItem]:
    """Return the scenes' items so many times, each under a number of its own."""
    return [
        dataclasses.replace(item, id=1000 * turn + item.id) for turn in range(times) for item in scenes.items
    ]  # fmt: skip


def test_a_dead_worker_is_replaced_and_its_items_go_back(
    scenes: Scenes, cache: Path, right: dict[int, str], settings: MakeSettings
) -> None:
    """After kill -9 of one of two workers every item has one outcome: right words, or a crash to be tried again."""
    items = many_of(scenes, 10)
    outcomes: list[CaptionResult | ItemFailure] = []
    with pool_of(settings(slots=4), TWO, cache) as pool:
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
        samples = pool.samples()
    assert sorted(o.id for o in outcomes) == sorted(item.id for item in items)
    texts = {o.id: o.text for o in [*outcomes, *again] if isinstance(o, CaptionResult)}
    assert texts == {item.id: right[item.id % 1000] for item in items}
    assert sum(sample.captions for sample in samples) == len(items)
    assert all(sample.captions > 0 and sample.in_use == sample.waiting == 0 for sample in samples)


def test_a_stop_leaves_nothing_in_hand(
    scenes: Scenes, cache: Path, right: dict[int, str], settings: MakeSettings
) -> None:
    """After a stop nothing more is yielded, and late words of the workers are not taken for those of the next call."""
    items = many_of(scenes, 5)
    with pool_of(settings(slots=2), TWO[:1], cache) as pool:
        looks = iter(range(10_000))
        before = list(pool.caption(items, should_stop=lambda: next(looks) >= 3))
        assert len(before) < len(items)
        after = list(pool.caption(iter([*scenes.items, None])))
    assert {o.id: o.text for o in after if isinstance(o, CaptionResult)} == right


def test_a_model_that_cannot_be_loaded(tmp_path: Path, cache: Path, settings: MakeSettings) -> None:
    """What a worker cannot load is the caller's one line, with no process left."""
    broken = shutil.copytree(DEMO_CHECKPOINT, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    before = psutil.Process().children()
    with pytest.raises(ModelError, match="weights of broken are corrupt"):
        GpuPool(settings(model=str(broken)), TWO[:1], cache, 1024)
    assert psutil.Process().children() == before


def test_a_worker_that_dies_again_and_again_is_given_up(
    scenes: Scenes, cache: Path, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A GPU whose worker finishes nothing before it dies is left alone, and without another the run ends."""
    monkeypatch.setattr("etl.captioning.gpu_pool.FRUITLESS", 1)
    with (
        pool_of(settings(slots=2), TWO[:1], cache) as pool,
        pytest.raises(ModelError, match="captioning worker 0 ended: killed by SIGKILL"),
    ):
        captions = pool.caption(many_of(scenes, 5))
        os.kill(pool._workers[0].child.pid, signal.SIGKILL)
        list(captions)
    assert "is given up" in caplog.records[-1].getMessage()
