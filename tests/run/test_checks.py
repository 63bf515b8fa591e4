"""What doctor finds about a state at hand: room, hosts, hours and money; and that a run asks, too."""

import itertools
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from support.fault_server import FaultServer
from support.states import captioned, fetched, put_sources, query, settings_for, use_recipe
from support.watching import wait_for

from etl.caption.model.checkpoint import DEMO_CHECKPOINT, Checkpoint
from etl.caption.model.hub_weights import weights_of
from etl.cli.run_report import report_lines
from etl.domain.statuses import Stage
from etl.domain.views import HostInfo
from etl.errors import BlockedAddressError, ConnectError, DiskFullError, DnsError, FetchError, ModelError
from etl.run.checks.check import Check
from etl.run.checks.forecast import work
from etl.run.checks.network import network, silent_hosts
from etl.run.checks.room import disk, require_room
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan
from etl.settings import Settings
from etl.state import commands
from etl.state.store import Store

MAKE = Callable[[int], Settings]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MAKE:
    """Return a maker of a state of 100 pictures of 10 MB: so many have come, half a second each, and forty of them have
    captions, one a second.
    """
    seconds = itertools.count(1_000_000, 1000)
    monkeypatch.setattr("etl.state.captions.now_ms", lambda: next(seconds))

    def begin(come: int) -> Settings:
        settings = settings_for(tmp_path / "state", min_free=0)
        with Store.open(settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
            put_sources(store, *(f"http://archive.test/{number}.jpg" for number in range(100)))
            recipe = use_recipe(store)
            queue = store.sources(run)
            queue.commit([fetched(item) for host in queue.ready_hosts() for item in queue.claim(host, come)])
            captions = store.captions(run, recipe)
            captions.enqueue_possible()
            for item in captions.claim(40):
                captions.commit([captioned(item)], 0)
            store.hosts(run).record([HostInfo(host="archive.test", done=come, busy_ms=500 * come)])
        with sqlite3.connect(settings.state / "state.db") as db:
            db.execute("UPDATE images SET working_bytes = 10000000")
        return settings

    return begin


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what makes every disk have so many bytes free."""
    return lambda left: monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=left))


def test_a_disk_without_room_for_what_is_to_come_ends_a_run(make: MAKE, free: Callable[[int], None]) -> None:
    """By the size of the pictures that are here, once they are enough; a bound for the cache is the way out."""
    settings = make(60)
    free(300_000_000)
    found = disk(settings)
    assert (found.verdict, "about 381 MiB of pictures to come: NOT ENOUGH" in found.detail) == ("fail", True)
    with pytest.raises(DiskFullError, match="NOT ENOUGH") as caught:
        run_pipeline(settings, Plan(fetch=True), lambda _: None)
    assert "--max-cache-size 270MB" in caught.value.cure
    with sqlite3.connect(settings.state / "state.db") as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert disk(Settings(state=settings.state, min_free=0, max_cache_size=200_000_000)).verdict == "ok"
    free(500_000_000)
    assert disk(settings).verdict == "ok"
    free(0)
    assert "are to stay so" in disk(settings).detail


def test_few_pictures_refuse_nothing(make: MAKE, free: Callable[[int], None]) -> None:
    """What is known from a handful of pictures, or guessed, is only a note: the others may be smaller."""
    settings = make(40)
    free(300_000_000)
    assert disk(settings).verdict == "note"


def test_hours_and_money_come_from_earlier_runs(make: MAKE) -> None:
    """The slower of the two stages counts, at the rates seen; without a price or a rate it is said what is missing."""
    settings = make(60)
    found = work(settings)
    assert "40 pictures to fetch, about 60 captions to make; about 1m 00s at the rates" in found.detail
    assert "(1 captions/s as run " in found.detail and "20s of fetching)" in found.detail
    assert (found.verdict, found.cure) == ("ok", "`--gpu-price` says what that costs")
    assert work(settings_for(settings.state, gpu_price=60.0)).detail.endswith("; 1.00 at 60.00 an hour")
    with sqlite3.connect(settings.state / "state.db") as db:
        db.execute("UPDATE captions SET run = NULL")
    found = work(settings)
    assert (found.verdict, "how long captioning takes is not known yet" in found.detail) == ("note", True)
    assert "etl run --limit" in found.cure


def test_hosts_are_asked_once_each(server: FaultServer, tmp_path: Path) -> None:
    """Each host of the state gets one request; a run would fail only where none of them answers."""
    settings = settings_for(tmp_path / "state", allow_host=("127.0.0.1",))
    good = [server.add(f"/{number}.jpg", b"x") for number in range(3)]
    with Store.open(settings) as store, store.run((Stage.INGEST,)):
        put_sources(store, *good, "http://127.0.0.2:9/a.jpg")
    found = {one.detail.split()[0].rstrip(":"): one.verdict for one in network(settings)}
    assert found == {"127.0.0.1": "ok", "127.0.0.2": "note"}
    assert len(server.log) == 1
    (alone,) = network(settings_for(tmp_path / "nowhere"))
    assert "no host to ask" in alone.detail
    with sqlite3.connect(settings.state / "state.db") as db:
        db.execute("UPDATE sources SET status = 'dead' WHERE host = '127.0.0.1'")
    assert {one.verdict for one in network(settings_for(tmp_path / "state"))} == {"fail"}


def test_silent_hosts_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with its reason and what waits for it; many by the first three; and where none answers, another cure."""
    settings = settings_for(tmp_path / "state")
    with Store.open(settings) as store, store.run((Stage.INGEST,)):
        put_sources(store, *(f"http://{host}.example/{n}" for host, many in zip("abcde", range(9, 0, -2), strict=True)
                             for n in range(many)))  # fmt: skip
    whys: dict[str, FetchError] = {"e.example": DnsError("the name e.example cannot be resolved (no such name)")}
    monkeypatch.setattr("etl.run.checks.network.unreachable", lambda *_: whys)
    told = silent_hosts(settings)
    assert told and told.detail == "e.example does not answer (no such name): 1 picture waits for it"
    assert "meanwhile the others are fetched" in told.cure
    whys |= {f"{host}.example": ConnectError("no connection: refused") for host in "abcd"}
    told = silent_hosts(settings)
    assert told and told.detail == (
        "e.example (no such name), a.example (no connection), b.example (no connection) and 2 more hosts do not "
        "answer: 25 pictures wait for them"
    )
    assert told.cure.startswith("no host answers: check this machine's network")
    whys.clear()
    whys["a.example"] = BlockedAddressError("a.example is 10.0.0.1, which is not a public address")
    assert silent_hosts(settings) is None


def test_a_run_names_a_silent_host_while_it_goes_on_and_at_its_end(tmp_path: Path) -> None:
    """The host is told while the run still waits for it, and a run that is stopped then names it, with what waits."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings = settings_for(tmp_path / "state", allow_host=("127.0.0.1",), backoff=600.0, backoff_cap=600.0)
        with Store.open(settings) as store, store.run((Stage.INGEST,)):
            put_sources(store, *(f"http://127.0.0.1:{taken.getsockname()[1]}/{n}.jpg" for n in range(20)))
        told: list[str] = []

        def end(found: Check) -> None:
            told.append(found.detail)
            wait_for(lambda: query(settings.state, "SELECT 1 FROM sources WHERE status = 'retry'"))
            assert commands.send(settings.state, commands.STOP)

        report = run_pipeline(settings, Plan(fetch=True), lambda _: None, on_silence=end)
    assert told == ["127.0.0.1 does not answer (no connection): 20 pictures wait for it"]
    assert report.unreachable == (("127.0.0.1", "connect", 20),)
    (line,) = (line for line in report_lines(report, None) if line.startswith("not reachable"))
    assert line == "not reachable  127.0.0.1 (connect, 20 pictures): check the name and the network"


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    """Let the hub answer, or fail, and return which models it is asked for."""
    asked: list[str] = []

    def model_info(_self: Any, name: str, **_: Any) -> Any:
        asked.append(name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return asked


def test_weights_to_come_are_known_before_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: Callable[[int], None]
) -> None:
    """The hub is asked only where some are missing; what is missing must fit on the disk."""
    files = [SimpleNamespace(rfilename=f"model-{n}.safetensors", size=7_000_000_000) for n in (1, 2)]
    files.append(SimpleNamespace(rfilename="original/model.safetensors", size=14_000_000_000))
    info = SimpleNamespace(siblings=files, safetensors=SimpleNamespace(total=7_000_000_000))
    asked = hub(monkeypatch, info)
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    shutil.copy(DEMO_CHECKPOINT / "model.safetensors", tmp_path / "model-1.safetensors")
    found = weights_of(Checkpoint("some/llava", tmp_path, "0123"))
    assert (found.missing, found.in_memory("auto"), asked) == (7_000_000_000, 14_000_000_000, ["some/llava"])
    free(6_000_000_000)
    with pytest.raises(DiskFullError, match=r"take 6\.5 GiB more, and .* has 5\.6 GiB left") as caught:
        found.require_room()
    assert "HF_HOME" in caught.value.cure
    shutil.copy(DEMO_CHECKPOINT / "model.safetensors", tmp_path / "model-2.safetensors")
    here = weights_of(Checkpoint("some/llava", tmp_path, "0123"))
    here.require_room()
    assert (here.missing, len(asked)) == (0, 1)


def test_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub does not answer for what is missing, that is said with the way out."""
    hub(monkeypatch, OSError("no route\nto host"))
    with pytest.raises(ModelError, match=r"not \(wholly\) in the local cache, .* answer: no route\n") as caught:
        weights_of(Checkpoint("some/llava", tmp_path, "0123"))
    assert "give its directory" in caught.value.cure


def test_nothing_to_fetch_needs_no_room(make: MAKE, free: Callable[[int], None]) -> None:
    """A run that only has captions to make begins on a full disk, too; a first run does not."""
    settings = make(100)
    free(0)
    require_room(settings)
    with pytest.raises(DiskFullError, match="are to stay so"):
        require_room(settings_for(settings.state.parent / "new"))
