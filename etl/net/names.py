"""Host names become addresses, in threads of their own.

``getaddrinfo`` cannot be cut short, and a name server that never answers keeps it for half a minute.  In the event
loop's few threads, a handful of such names would hold up every other name, and all else that these threads do.
"""

import asyncio
import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from etl.errors import DnsError, FetchError, InvalidUrlError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

KEPT_S = 30.0
"""Seconds for which an answer is used; each address is checked again whenever it is dialled."""

FAILED_S = 1.0
"""Seconds for which a name that does not resolve is not asked for again."""

SILENT_S = 10.0
"""The same for a name whose look-up took longer than anybody waited, from the end of that look-up."""

AT_ONCE = 64
"""Look-ups begun in `AT_ONCE_S` seconds at most, those that ended not counted: what a home's name server bears."""

AT_ONCE_S = 0.2

THREADS = 512
"""Look-ups under way at most, each of which has a thread, before names wait for their turn (`Names.is_known`).

Far more than names that stay silent for half a minute at `AT_ONCE` can fill by accident, at some 20 kB each.
"""


@dataclass(slots=True)
class _LookUp:
    begun: float
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Answer:
    until: float
    addresses: tuple[Address, ...] = ()
    failure: tuple[type[FetchError], str] | None = None


class Names:
    """Resolves names for one event loop: one look-up at a time for each, which all who ask share.

    Threads are daemons, so a silent name never keeps the process from ending.

    Args:
        patience_s: seconds for which a name is waited for; one that takes longer fails at once for everybody who asks
            until it has answered.

    Attributes:
        on_answer: called whenever a look-up has ended.
    """

    def __init__(self, patience_s: float = 15.0) -> None:
        self.on_answer: Callable[[], None] = lambda: None
        self._patience_s = patience_s
        self._answers: dict[str, _Answer] = {}
        self._under_way: dict[str, _LookUp] = {}
        self._latest: deque[_LookUp] = deque()

    def is_known(self, host: str) -> bool:
        """Return whether `addresses` would answer or fail at once; begin the look-up where it would not."""
        if not host or _literal(host) is not None or self._answer(host) is not None:
            return True
        found = self._under_way.get(host)
        if found is not None:
            return time.monotonic() >= found.begun + self._patience_s
        if self._may_begin():
            self._begin(host)
        return False

    async def addresses(self, host: str, seconds: float | None = None) -> list[Address]:
        """Return the addresses of a name, waiting ``seconds`` at most.

        Raises `DnsError` when it has none or does not answer in time, `InvalidUrlError` when it is no name.
        """
        if (literal := _literal(host)) is not None:
            return [literal]
        answer = self._answer(host)
        if answer is None:
            # Whoever waits here holds one of few slots: no need for a limit.
            found = self._under_way.get(host) or self._begin(host)
            patience = self._patience_s if seconds is None else min(seconds, self._patience_s)
            left = found.begun + patience - time.monotonic()
            # Not `wait_for`, which would cancel the future of everybody.
            await asyncio.wait([found.ended], timeout=max(0.0, left))
            answer = self._answer(host)
        if answer is None:
            raise DnsError(f"the name {host} was not resolved within {patience:g} s")
        if answer.failure is not None:
            kind, message = answer.failure
            raise kind(message)
        return list(answer.addresses)

    def _answer(self, host: str) -> _Answer | None:
        answer = self._answers.get(host)
        return answer if answer is not None and time.monotonic() < answer.until else None

    def _may_begin(self) -> bool:
        before = time.monotonic() - AT_ONCE_S
        while self._latest and (self._latest[0].ended.done() or self._latest[0].begun < before):
            self._latest.popleft()
        return len(self._latest) < AT_ONCE and len(self._under_way) < THREADS

    def _begin(self, host: str) -> _LookUp:
        found = self._under_way[host] = _LookUp(time.monotonic())
        self._latest.append(found)
        loop = asyncio.get_running_loop()

        def work() -> None:
            outcome = _looked_up(host)
            # The loop may have ended meanwhile, and with it the interest.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end, host, found, outcome)

        try:
            threading.Thread(target=work, name=f"name look-up {host[:80]}", daemon=True).start()
        except RuntimeError as error:
            self._end(host, found, DnsError(f"the name {host} cannot be resolved ({error})"))
        return found

    def _end(self, host: str, found: _LookUp, outcome: tuple[Address, ...] | FetchError) -> None:
        now = time.monotonic()
        del self._under_way[host]
        # The oldest lie first; what is forgotten is asked for again.
        for name in [name for name, _ in zip(self._answers, range(2), strict=False)]:
            if self._answers[name].until < now:
                del self._answers[name]
        self._answers.pop(host, None)
        if isinstance(outcome, FetchError):
            kept_s = SILENT_S if now >= found.begun + self._patience_s else FAILED_S
            self._answers[host] = _Answer(now + kept_s, failure=(type(outcome), str(outcome)))
        else:
            self._answers[host] = _Answer(now + KEPT_S, outcome)
        found.ended.set_result(None)
        self.on_answer()


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _looked_up(host: str) -> tuple[Address, ...] | FetchError:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        return tuple(dict.fromkeys(ipaddress.ip_address(info[4][0]) for info in found))
    except UnicodeError:
        return InvalidUrlError(f"{host!r} is not a valid host name")
    except OSError as error:
        why = "no such name" if error.errno == socket.EAI_NONAME else error.strerror or error
        return DnsError(f"the name {host} cannot be resolved ({why})")
