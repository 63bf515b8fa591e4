"""An event loop whose time jumps: a scenario of hours ends at once, and always the same way."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any


def run_in_virtual_time(scenario: Callable[[], Awaitable[None]], limit_s: float = 1e6) -> None:
    """Run ``scenario``, which must wait for nothing but other tasks and the loop's clock, within so many seconds."""

    async def bounded() -> None:
        async with asyncio.timeout(limit_s):
            await scenario()

    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        runner.run(bounded())


class _VirtualLoop(asyncio.SelectorEventLoop):
    """Where a real loop would sleep until its next timer, this one sets its clock forward."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: _VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is left to wait for: the scenario hangs")
        self._loop.jump(max(0.0, timeout))
        return super().select(0)
