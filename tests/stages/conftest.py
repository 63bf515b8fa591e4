"""Fixtures of the stage tests: a server that misbehaves, a state directory, no proxies."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fault_server import FaultServer
from support.workbench import Workbench


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine's own proxies away."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Workbench]:
    """Return a maker of a state directory with changed settings."""

    def make(**changes: Any) -> Workbench:
        return Workbench(tmp_path, **changes)

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Workbench]) -> Workbench:
    return make_bench()
