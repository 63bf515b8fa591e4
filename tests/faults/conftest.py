"""Fixtures of the fault tests, and the one table that the soak ends with."""

import time

import pytest
from support.tally import Tally

TALLY = Tally(time.monotonic())


@pytest.fixture(scope="session")
def tally() -> Tally:
    """Return what the long tests write into the table."""
    return TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, where there is anything in it."""
    if lines := list(TALLY.lines(time.monotonic())):
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
