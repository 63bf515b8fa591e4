"""Child processes: real ones, killed, stopped and orphaned."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

import pytest
from support.watching import exists, wait_for

from etl.errors import ChildEndedError, EtlError
from etl.processes import ChildProcess

Starter = Callable[..., ChildProcess]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Return a starter of children by the name of their entry in `support.children`; all are gone at the end."""
    started = []

    def starter(
        entry: str, env: dict[str, str] | None = None, stall_s: float | None = None, **config: Any
    ) -> ChildProcess:
        child = ChildProcess(f"support.children:{entry}", config, name="test process", env=env, stall_s=stall_s)
        started.append(child)
        return child

    yield starter
    for child in started:
        child.discard()
        assert not exists(child.pid)


def test_a_child_knows_its_config_and_answers(start: Starter) -> None:
    """Config and environment arrive as they were given, undecodable file names too; messages come back in order."""
    child = start("echo", {"CHILD_TEST": "here"}, path="a \udcff b", number=1.5)
    assert json.loads(child.recv()) == [{"path": "a \udcff b", "number": 1.5}, "here"]
    messages = [b"", b"x", bytes(range(256)) * 4000]
    for message in messages:
        child.send(message)
    waited: list[Any] = [child]
    assert wait(waited, 10) == waited
    assert [child.recv() for _ in messages] == messages
    assert not child.poll()


def test_neither_side_waits_for_the_other_to_read(start: Starter) -> None:
    """Far more than a socket holds can be sent to a child that is stuck sending as much."""
    child = start("echo")
    child.wait_until_ready(20)
    messages = [bytes([number]) * 300_000 for number in range(40)]
    for message in messages:
        child.send(message)
    assert [child.recv() for _ in messages] == messages


def test_a_child_sees_what_else_has_come(start: Starter) -> None:
    """Messages that came during work are seen to be pending, and no others."""
    child = start("looks")
    for number in (3, 1):
        for _ in range(number):
            child.send(b"look")
        assert child.recv() == b"%d" % (number - 1)


def test_messages_before_the_end_are_not_lost(start: Starter) -> None:
    """What a child sent before it ended comes first; then its end is an error, with its exit code for people."""
    child = start("leaves", code=7)
    assert (child.recv(), child.recv()) == (b"one", b"two")
    assert child.poll(10)
    with pytest.raises(ChildEndedError, match="test process"):
        child.recv()
    assert child.how_it_ended() == "exit code 7"


def test_a_killed_child(start: Starter) -> None:
    """Sending to and receiving from a killed child are errors, as after discarding it; the signal is named."""
    child = start("busy")
    child.wait_until_ready(20)
    child.kill()
    with pytest.raises(ChildEndedError):
        child.recv()
    with pytest.raises(ChildEndedError):
        child.send(b"more")
    assert child.how_it_ended() == "killed by SIGKILL"
    child.discard()
    for use in (child.recv, child.poll, lambda: child.send(b"more")):
        with pytest.raises(ChildEndedError):
            use()


def test_a_child_that_does_not_come_up(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a child cannot be started is said in one line: it is late, it ended, or there is no such program."""
    with pytest.raises(EtlError, match=r"a test process cannot be started: it was not ready after 0\.1 s"):
        start("late").wait_until_ready(0.1)
    with pytest.raises(EtlError, match="a test process cannot be started: exit code 1"):
        start("no_such_entry").wait_until_ready(20)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EtlError, match=r"a test process cannot be started: .*No such file"):
        start("echo")


def test_children_outlive_the_signals_of_their_group(start: Starter) -> None:
    """The Ctrl-C, TERM and HUP that a terminal sends to everybody do not end a child, from its first instant on."""
    child = start("echo")
    for _ in range(50):
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGHUP)
        time.sleep(0.002)
    child.wait_until_ready(20)
    os.kill(child.pid, signal.SIGINT)
    child.send(b"alive")
    assert child.recv() == b"alive"


_PARENT = """
from etl.processes import ChildProcess

child = ChildProcess("support.children:busy", {}, name="test process")
child.wait_until_ready(20)
print(child.pid, flush=True)
child.recv()
"""


def test_a_busy_child_ends_with_its_parent() -> None:
    """SIGKILL of the parent ends a child that never looks up from its work."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
        parent.kill()
    wait_for(lambda: not exists(pid), timeout_s=5)


def test_a_stopped_child_holds_nobody_up(start: Starter) -> None:
    """What is too long for a socket waits no longer than it may for one that is stopped, on the way there or back."""
    taker = start("echo", stall_s=0.05)
    taker.wait_until_ready(20)
    os.kill(taker.pid, signal.SIGSTOP)
    with pytest.raises(ChildEndedError) as caught:
        taker.send(bytes(10_000_000))
    assert isinstance(caught.value.__cause__, BlockingIOError)
    giver = start("echo", stall_s=0.05)
    giver.wait_until_ready(20)
    giver.send(bytes(10_000_000))
    assert giver.poll(20)
    os.kill(giver.pid, signal.SIGSTOP)
    with pytest.raises(ChildEndedError) as caught:
        giver.recv()
    assert isinstance(caught.value.__cause__, BlockingIOError)
