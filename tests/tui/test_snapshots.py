"""A handful of whole screens, letter by letter, over one finished state.

After a change that is meant: ``WRITE_SNAPSHOTS=1 python -m pytest tests/tui/test_snapshots.py``, and look at the diff.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.driving import LARGE, SMALL, drive, text_of, until
from textual.pilot import Pilot

from etl.clock import now_ms
from etl.domain.statuses import HostState, RunState
from etl.domain.views import HostInfo

HOSTILE = "\x1b[31m[/red]\u202egnp.exe \u4e2d\u6587"

FOLDER = Path(__file__).parent / "snapshots"

SCREENS: dict[str, tuple[tuple[int, int], tuple[str, ...], str, dict[str, Any]]] = {
    "overview-80x24": (SMALL, (), "Stages", {}),
    "overview-120x40": (LARGE, (), "Stages", {}),
    "overview-160x48": ((160, 48), (), "Stages", {}),
    "overview-ascii": (SMALL, (), "Stages", {"ascii_only": True, "readonly": True}),
    "failures": (SMALL, ("f",), "http_404", {}),
    "items": (SMALL, ("f", "enter"), "key      ", {}),
    "story": (LARGE, ("w", "down", "down", "enter"), "Manifest line", {}),
    "captions": (SMALL, ("c",), "ended by", {}),
    "help": (SMALL, ("question_mark",), "Keys", {}),
}


@pytest.fixture
def finished(make_state: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state whose run ended five hours ago, with nothing on it that differs from one time to the next."""
    records = [
        {"id": f"VM97-{n:02}", "url": f"http://archive.example/{n}.jpg", "name": f"Rue Saint-Denis {n}", "date": "1931"}
        for n in range(12)
    ]
    records[1] |= {"id": f"VM97-{HOSTILE}", "name": HOSTILE}
    state = make_state(records, pictures=True, price=2.5)
    state.fetch(done=8, dead=2, retry=1, message=f"HTTP 404: {HOSTILE}")
    state.caption("A street with a tramway.", "Snow on a square.", "A crowd.", flags=("repetition",), dead=1)
    state.store.hosts(state.run).record(
        [
            HostInfo(
                host="archive.example",
                state=HostState.HEALTHY,
                reason=None,
                until=None,
                allowed=4,
                in_flight=0,
                done=8,
                failed=3,
            )
        ]
    )
    state.store.end_run(state.run, RunState.PARTIAL)
    ended = now_ms() - 5 * 3_600_000 - 5_000
    with state.store._connection.transaction() as db:
        db.conn.execute(
            "UPDATE runs SET uid = '0123456789ab', host = 'gpu-1', pid = 4242, started_at = ?, ended_at = ?, "
            "heartbeat_at = ?",
            (ended - 7_384_000, ended, ended),
        )
        db.conn.execute("UPDATE attempts SET started_at = 1764000000000, ended_at = 1764000001500")
        db.conn.execute("UPDATE sources SET done_at = ? WHERE done_at IS NOT NULL", (ended,))
        db.conn.execute("UPDATE sources SET not_before = 0")
        db.conn.execute("UPDATE captions SET done_at = ? + id WHERE done_at IS NOT NULL", (ended,))
        db.conn.execute("UPDATE manifests SET path = 'records.jsonl'")
    state.close()
    log = state.path / "logs" / "etl.log"
    log.write_text(re.sub(r"(?m)^\S+Z ", "2026-11-24T06:00:00Z ", log.read_text("utf-8")), encoding="utf-8")
    monkeypatch.chdir(state.path.parent)
    return Path("state")


@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_is_as_it_was(finished: Path, name: str) -> None:
    """The whole screen is what was looked at and found good."""
    size, keys, words, options = SCREENS[name]
    shown = ""

    async def steps(pilot: Pilot[None]) -> None:
        nonlocal shown
        await until(pilot, "partial")
        for key in keys:
            await pilot.press(key)
            await pilot.pause(0.4)
        await until(pilot, words, "q Quit")
        await pilot.pause(0.3)
        shown = "".join(f"{line.rstrip()}\n" for line in text_of(pilot.app).splitlines())

    drive(finished, steps, size, **options)
    file = FOLDER / f"{name}.txt"
    if os.environ.get("WRITE_SNAPSHOTS"):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text("utf-8")
