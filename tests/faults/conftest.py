"""Fixtures of the fault tests, and the one table that the soak ends with."""

import time
from collections.abc import Iterator

import pytest
from support.fault_server import FaultServer
from support.tally import Tally

TALLY = Tally(time.monotonic())


@pytest.fixture(scope="session")
def tally() -> Tally:
    """Return what the long tests write into the table."""
    return TALLY


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, where there is anything in it."""
    if lines := list(TALLY.lines(time.monotonic())):
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
