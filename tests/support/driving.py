"""The dashboard driven by its keys, without a terminal."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from tui.app import Dashboard

SMALL, LARGE = (80, 24), (120, 40)
"""Sizes of a terminal: what every terminal has, and an ordinary window."""

Steps = Callable[[Pilot[None]], Awaitable[None]]


def text_of(app: App[None]) -> str:
    """Return what the terminal would show, line by line."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


async def until(pilot: Pilot[None], *words: str, patience_s: float = 8.0) -> str:
    """Wait until all words are on the screen; return the screen."""
    for _ in range(int(patience_s / 0.05)):
        shown = text_of(pilot.app)
        if all(word in shown for word in words):
            return shown
        await pilot.pause(0.05)
    raise AssertionError(f"{words} not on the screen:\n{shown}")


async def typed(pilot: Pilot[None], words: str) -> None:
    """Type words and end them with enter."""
    await pilot.press(*("space" if letter == " " else letter for letter in words), "enter")


def drive(state: Path, steps: Steps, size: tuple[int, int] = SMALL, **options: Any) -> None:
    """Run the app on a state and do the steps."""

    async def go() -> None:
        async with Dashboard(state, **options).run_test(size=size, notifications=True) as pilot:
            await steps(pilot)

    asyncio.run(go())
