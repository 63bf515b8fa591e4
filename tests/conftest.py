"""What holds for every test: the collector looks only at what tests make, and what processes are forked from."""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fault_server import FaultServer
from support.once import copy_schema, make_once
from support.states import settings_for
from support.workbench import Workbench
from support.zygote import Zygote

from etl.domain.hints import DEFAULT_STATE, name_state
from etl.run_control import RunControl
from etl.state.store import Store


def pytest_configure(config: pytest.Config) -> None:
    """Give the program, in every process, user's files of its own: no settings, and a secret that ends with the run."""
    home = tempfile.TemporaryDirectory(prefix="etl-home-")
    config.add_cleanup(home.cleanup)
    os.environ |= {"XDG_CONFIG_HOME": f"{home.name}/config", "XDG_STATE_HOME": f"{home.name}/state"}
    make_once()
    copy_schema()


def pytest_collection_finish() -> None:
    """Set the imported modules aside: torch and its kin are half a million objects, a third of a second each time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take everything down as ever; what libraries see leaked at the end they complain of."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_state_named() -> Iterator[None]:
    """Let what one test ran as a program in this process give the hints of no other a state."""
    yield
    name_state(DEFAULT_STATE)


@pytest.fixture(scope="session")
def zygote(testrun_uid: str) -> Iterator[Zygote]:
    """Return what `etl` processes are forked from, torch and all."""
    with Zygote(testrun_uid, torch=True) as made:
        yield made


@pytest.fixture(scope="session")
def plain_zygote(testrun_uid: str) -> Iterator[Zygote]:
    """Return what `etl` processes that do not caption are forked from, without torch."""
    with Zygote(testrun_uid, torch=False) as made:
        yield made


@pytest.fixture
def forked_children(zygote: Zygote) -> Iterator[None]:
    """Let children that this process starts be forks, which have imported torch: seconds less for each that captions.

    How a captioning process really starts is shown by `caption.test_gpu_pool` and the demo.
    """
    with zygote.children():
        yield


@pytest.fixture
def forked_decoders(plain_zygote: Zygote) -> Iterator[None]:
    """Let decoders that this process starts be forks; in tests/images they are as they always are."""
    with plain_zygote.children():
        yield


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine's own proxies away."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the threads that earlier tests have left: for them a command of this test would end the whole process."""
    monkeypatch.setattr(RunControl, "_abandoned", [])


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A server that misbehaves as it is told."""
    with FaultServer() as running:
        yield running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that does not exist yet."""
    return tmp_path / "state"


@pytest.fixture
def store(state: Path) -> Iterator[Store]:
    """An open, empty state."""
    with Store.open(settings_for(state)) as opened:
        yield opened


@pytest.fixture
def make_bench(tmp_path: Path, plain_zygote: Zygote) -> Iterator[Callable[..., Workbench]]:
    """Return a maker of a state directory with changed settings; decoders are forks."""

    def make(**changes: Any) -> Workbench:
        return Workbench(tmp_path, **changes)

    with plain_zygote.children():
        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Workbench]) -> Workbench:
    """Return a state directory."""
    return make_bench()
