"""What an actor does with what it is given, without Ray around it; and who is let near a cluster at all."""

import dataclasses
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.workbench import encoded

from etl import __version__
from etl.caption.local import open_local
from etl.caption.ray.worker import RayWorker
from etl.demo.scenes import random_scene
from etl.domain.items import CaptionItem, CaptionResult
from etl.errors import ConfigError
from etl.ray_cluster.connection import check
from etl.ray_cluster.directory import PREFIX, own_directory
from etl.settings import Settings

SETTINGS = Settings(model="demo", device="cpu", max_new_tokens=48, feeders=1, slots=4)


def pictures(count: int) -> dict[str, bytes]:
    """Return working copies by their hash."""
    rng, found = random.Random(4), {}
    for _ in range(count):
        jpeg = encoded(random_scene(rng).draw(224, 224), quality=92)
        found[hashlib.sha256(jpeg).hexdigest()] = jpeg
    return found


def config(version: str = __version__, **changes: Any) -> dict[str, Any]:
    """Return what a driver tells an actor."""
    settings = dataclasses.replace(SETTINGS, **changes)
    return {"version": version, "settings": settings.to_json(), "longest_edge": 1024}


@pytest.fixture(scope="module")
def worker() -> RayWorker:
    made = RayWorker(config())
    assert made.ready()["error"] is None
    return made


def take_all(worker: RayWorker, count: int) -> dict[int, tuple[str, dict[str, Any]]]:
    """Take so many outcomes; return them by item."""
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found |= {fields["id"]: (kind, fields) for kind, fields in worker.take(1.0)["outcomes"]}
    return found


def kept(worker: RayWorker) -> list[Path]:
    """Return the pictures that an actor keeps."""
    return [path for path in worker._cache.root.rglob("*.jpg")]


def test_it_says_what_the_local_backend_says(worker: RayWorker, tmp_path: Path) -> None:
    """The same recipe and words; a picture that two items share is kept until both are done, and then removed."""
    from etl.images.cache import ImageCache

    given = pictures(6)
    names = [*given, next(iter(given))]
    items = [CaptionItem(n, name, "Describe the picture.") for n, name in enumerate(names)]
    worker.give([(dataclasses.asdict(item), given[item.working_sha256]) for item in items])
    found = take_all(worker, len(items))
    cache = ImageCache(tmp_path)
    for data in given.values():
        cache.put_working(data)
    local = open_local(SETTINGS, cache.working_path, 1024)
    try:
        assert worker.ready()["recipe"] == local.recipe.to_json()
        expected = {o.id: o.text for o in local.caption(iter(items)) if isinstance(o, CaptionResult)}
    finally:
        local.close()
    assert {n: fields["text"] for n, (_, fields) in found.items()} == expected
    assert kept(worker) == []


def test_a_picture_that_was_damaged_on_its_way_fails_alone(worker: RayWorker) -> None:
    """Its bytes are not those of its name; the neighbour is captioned."""
    (name, data), (other, good) = pictures(2).items()
    worker.give([({"id": 1, "working_sha256": name, "prompt": "x"}, data[:-1]),
                 ({"id": 2, "working_sha256": other, "prompt": "x"}, good)])  # fmt: skip
    found = take_all(worker, 2)
    assert (found[1][0], found[1][1]["slug"]) == ("failure", "working_copy")
    assert found[2][0] == "result"
    assert kept(worker) == []


def test_what_is_abandoned_is_neither_told_nor_kept(worker: RayWorker) -> None:
    """After that it works on as if nothing had been."""
    given = pictures(5)
    fields = [{"id": n, "working_sha256": name, "prompt": "x"} for n, name in enumerate(given)]
    worker.give(list(zip(fields, given.values(), strict=True)))
    worker.abandon()
    deadline = time.monotonic() + 30
    while kept(worker) and time.monotonic() < deadline:
        assert worker.take(0.1)["outcomes"] == []
    assert kept(worker) == []
    name, data = next(iter(given.items()))
    worker.give([({"id": 9, "working_sha256": name, "prompt": "x"}, data)])
    assert list(take_all(worker, 1)) == [9]


@pytest.mark.parametrize(
    ("changed", "why"),
    [(config("0.0.0"), "this node has caption-etl"), (config(model="/nowhere/at-all"), "/nowhere/at-all")],
    ids=["version", "model"],
)
def test_a_node_that_cannot_take_part_says_why(changed: dict[str, Any], why: str) -> None:
    """Another version of the program, or a model that is not there."""
    made = RayWorker(changed)
    assert why in made.ready()["error"]
    assert why in made.take(0)["error"]


def test_pictures_of_dead_workers_are_removed() -> None:
    """A killed process cannot clean up; the next on its node does, and leaves the living alone."""
    mine = own_directory(in_memory=True)
    dead = mine.with_name(f"{PREFIX}999999999-x")
    dead.mkdir()
    other = own_directory(in_memory=True)
    try:
        assert mine.is_dir()
        assert not dead.exists()
        assert other.stat().st_mode & 0o077 == 0
    finally:
        mine.rmdir()
        other.rmdir()


@pytest.mark.parametrize(
    ("settings", "mode", "why"),
    [
        ({}, "token", "--ray-address"),
        ({"ray_address": "auto"}, "", "RAY_AUTH_MODE=token"),
        ({"ray_address": "auto"}, "disabled", "RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_that_takes_anybody_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], mode: str, why: str
) -> None:
    """Before anything is begun, with one line that says what to do; --insecure lets it pass."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConfigError, match=why):
        check(settings.get("ray_address", ""), "--backend ray", insecure=False)
    if settings:
        check(settings["ray_address"], "--backend ray", insecure=True)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        check(settings.get("ray_address", ""), "--backend ray", insecure=False)


def test_ray_s_own_client_is_refused() -> None:
    """A ray:// address needs packages that the extra does not bring; one line says where to run instead."""
    with pytest.raises(ConfigError, match="on a node of the cluster"):
        check("ray://10.0.0.1:10001", "--backend ray", insecure=True)


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is wanted only by those who ask for it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install 'ray<"):
        check("auto", "--backend ray", insecure=False)


def test_an_actor_sets_the_allocator_before_torch_is_loaded() -> None:
    """What Ray imports for an actor knows no torch: some builds of it read the variable when they are imported."""
    program = "import sys, etl.caption.ray.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
