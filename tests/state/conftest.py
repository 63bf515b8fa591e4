"""Fixtures of the state tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.states import settings_for

from etl.state.store import Store


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that does not exist yet."""
    return tmp_path / "state"


@pytest.fixture
def store(state: Path) -> Iterator[Store]:
    """An open, empty state."""
    with Store.open(settings_for(state)) as opened:
        yield opened
