"""Resolving names: one look-up for all who ask, bounded waits, and nobody held up by names that stay silent."""

import asyncio
import ipaddress
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from etl.errors import DnsError, InvalidUrlError
from etl.net import names as module
from etl.net.names import Names

ADDRESS = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]


class NameServer:
    """Stands in for `getaddrinfo`: silent for names that begin with "silent" until `release`, else it answers at once.

    Attributes:
        asked: every name that was looked up.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.outcome: Exception | None = None
        self._released = threading.Event()

    def __call__(self, host: str, *_: Any, **__: Any) -> Any:
        self.asked.append(host)
        if host.startswith("silent"):
            assert self._released.wait(30)
        if self.outcome is not None:
            raise self.outcome
        return ADDRESS

    def release(self) -> None:
        """Let all silent names be answered."""
        self._released.set()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    yield server
    server.release()


class Clock:
    """What `time.monotonic` is to the module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        """Return what the test says."""
        return self.now


def run(work: Callable[[Names], Coroutine[Any, Any, None]], patience_s: float = 15.0) -> None:
    async def go() -> None:
        async with asyncio.timeout(10):
            await work(Names(patience_s))

    asyncio.run(go())


async def answered(names: Names, host: str) -> None:
    """Return when a look-up that is under way has ended."""
    while host in names._under_way:
        await asyncio.sleep(0)


def test_all_who_ask_share_one_look_up(server: NameServer) -> None:
    """It is asked for once, also when one of them goes away, and answered from what is known for a while."""

    async def work(names: Names) -> None:
        askers = [asyncio.ensure_future(names.addresses("silent.example")) for _ in range(20)]
        await asyncio.sleep(0)
        askers[0].cancel()
        server.release()
        found = await asyncio.gather(*askers[1:])
        assert found == [[ipaddress.ip_address("192.0.2.1")]] * 19
        assert names.is_known("silent.example") and await names.addresses("silent.example")

    run(work)
    assert server.asked == ["silent.example"]


def test_an_answer_is_kept_for_a_while(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is asked for anew after half a minute, one that does not resolve after a second."""
    clock = Clock(monkeypatch)

    async def work(names: Names) -> None:
        for kept_s, outcome in ((module.KEPT_S, None), (module.FAILED_S, OSError("no such name"))):
            server.outcome = outcome
            for wait, asked in ((0.0, 1), (kept_s - 0.1, 0), (0.2, 1)):
                clock.now += wait
                server.asked.clear()
                if outcome is None:
                    await names.addresses("a.example")
                else:
                    with pytest.raises(DnsError, match=r"a\.example cannot be resolved \(no such name\)"):
                        await names.addresses("a.example")
                assert len(server.asked) == asked, (outcome, wait)
            clock.now += 60

    run(work)


def test_a_silent_name_is_waited_for_once(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks later fails at once, nobody asks again while it is silent; a late answer counts."""
    clock = Clock(monkeypatch)

    async def work(names: Names) -> None:
        assert not names.is_known("silent.example")
        clock.now += 14
        assert not names.is_known("silent.example")
        clock.now += 1
        assert names.is_known("silent.example"), "to be asked for, so that it fails"
        for _ in range(3):
            with pytest.raises(DnsError, match="not resolved within 15 s"):
                await names.addresses("silent.example", 15)
        assert server.asked == ["silent.example"]
        server.release()
        await answered(names, "silent.example")
        assert await names.addresses("silent.example")

    run(work)


def test_a_silent_name_that_fails_at_last_rests(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not asked for again for as long as a name that fails at once, but longer."""
    clock = Clock(monkeypatch)
    server.outcome = OSError("no answer")

    async def work(names: Names) -> None:
        names.is_known("silent.example")
        clock.now += 30
        server.release()
        await answered(names, "silent.example")
        clock.now += module.SILENT_S - 0.1
        assert names.is_known("silent.example")
        clock.now += 0.2
        assert not names.is_known("silent.example")
        await answered(names, "silent.example")

    run(work)
    assert len(server.asked) == 2


def test_silent_names_hold_up_nobody(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many are begun at once; a fifth of a second later the next; and the event loop's own threads stay free."""
    clock = Clock(monkeypatch)

    async def work(names: Names) -> None:
        hosts = [f"silent-{n}.example" for n in range(400)] + ["good.example"]
        for _ in range(7):
            assert not any(names.is_known(host) for host in hosts[:400])
            names.is_known("good.example")
            clock.now += module.AT_ONCE_S + 0.01
        await answered(names, "good.example")
        assert names.is_known("good.example")
        assert await asyncio.to_thread(lambda: "free") == "free"

    run(work, patience_s=60)
    assert sorted(server.asked) == sorted([f"silent-{n}.example" for n in range(400)] + ["good.example"])


def test_threads_are_bounded(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names beyond the limit wait for their turn; whoever holds a slot already does not."""
    monkeypatch.setattr(module, "THREADS", 5)

    async def work(names: Names) -> None:
        assert not any(names.is_known(f"silent-{n}.example") for n in range(9))
        assert (await names.addresses("held.example")) != []
        assert len(names._under_way) == 5

    run(work)
    assert len(server.asked) == 6


def test_what_is_known_does_not_grow(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are too old to be used are forgotten."""
    clock = Clock(monkeypatch)

    async def work(names: Names) -> None:
        for n in range(200):
            await names.addresses(f"{n}.example")
            clock.now += 1
        assert len(names._answers) < 40
        assert names.is_known("") and names.is_known("192.0.2.1") and names.is_known("2001:db8::1")
        with pytest.raises(InvalidUrlError, match="not a valid host name"):
            server.outcome = UnicodeError()
            await names.addresses("\udcff.example")

    run(work)


def test_no_thread_is_no_address(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives no more threads, the name fails, and the run goes on."""
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))

    async def work(names: Names) -> None:
        with pytest.raises(DnsError, match="can't start"):
            await names.addresses("a.example")

    run(work)
    assert server.asked == []


def test_a_silent_name_does_not_keep_the_process() -> None:
    """The program ends although look-ups are under way."""
    code = (
        "import asyncio, socket, threading\n"
        "from etl.net.names import Names\n"
        "socket.getaddrinfo = lambda *_, **__: threading.Event().wait()\n"
        "async def go(): Names().is_known('silent.example')\n"
        "asyncio.run(go())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
