"""Fixtures of the fuzz tests; the soak's table of everything that was tried."""

import os

import pytest
from support.fuzzing import HEADING, Tally

_TALLIES = pytest.StashKey[list[Tally]]()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the user's settings and the machine's proxies away."""
    for name in list(os.environ):
        if name.startswith("ETL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Return an empty tally; that of a soak is shown when all tests have ended."""
    made = Tally(request.module.__name__.rpartition("test_")[2])
    if request.node.get_closest_marker("soak"):
        request.config.stash.setdefault(_TALLIES, []).append(made)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was tried and what became of it."""
    tallies = config.stash.get(_TALLIES, [])
    if tallies:
        terminalreporter.section("bad inputs tried and handled")
        terminalreporter.write_line(HEADING)
        for tally in tallies:
            for line in tally.lines():
                terminalreporter.write_line(line)
