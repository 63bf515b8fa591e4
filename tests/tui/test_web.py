"""The dashboard in a browser: served to this machine's own pages alone."""

import asyncio
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tui.web import allowed


@pytest.mark.parametrize(
    ("host", "origin", "yes"),
    [
        ("127.0.0.1:8000", None, True),
        ("localhost:8000", "http://localhost:8000", True),
        ("127.0.0.1:8000", "http://localhost:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("localhost:8000", "http://localhost:9000", False),
        ("localhost:8000", "https://localhost:8000", False),
        ("localhost:8000", "http://evil.example:8000", False),
        ("localhost:8000", "null", False),
        ("evil.example:8000", None, False),
        ("localhost.evil.example", "http://localhost.evil.example", False),
        (None, None, False),
        ("[broken", None, False),
        ("localhost:x", "http://localhost:y", False),
    ],
)
def test_only_own_pages_are_answered(host: str | None, origin: str | None, yes: bool) -> None:
    """A request is answered when it names this machine, and no page of another site has sent it."""
    assert allowed(host, origin) is yes


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def visit(port: int) -> tuple[int, int, str]:
    """Return the status for a stranger's page and for our own, and the first text of the dashboard."""
    import aiohttp

    base = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        for _ in range(100):
            try:
                async with session.get(base, headers={"Origin": "http://evil.example"}) as answer:
                    stranger = answer.status
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        async with session.get(base, headers={"Origin": base}) as answer:
            own = answer.status
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"{base}/ws", origin="http://evil.example")
        seen = ""
        async with session.ws_connect(f"{base}/ws?width=80&height=24", origin=base) as terminal:
            deadline = time.monotonic() + 15
            while "3 total" not in seen and time.monotonic() < deadline:
                message = await terminal.receive(timeout=15)
                if isinstance(message.data, bytes):
                    seen = re.sub(r"\x1b\[[0-9;]*m", "", seen + message.data.decode("utf-8", "replace"))
        return stranger, own, seen


def test_a_browser_sees_the_dashboard(make_state: Any, tmp_path: Path) -> None:
    """Over a web socket comes the dashboard itself; a page of another site gets nothing."""
    pytest.importorskip("textual_serve", reason="the extra `web` is not installed")
    state = make_state(3)
    port = free_port()
    command = [sys.executable, "-m", "tui", "--state", str(state.path), "--readonly", "--web", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        stranger, own, seen = asyncio.run(visit(port))
    finally:
        process.terminate()
        printed, _ = process.communicate(timeout=10)
    assert (stranger, own) == (403, 200)
    assert "3 total" in seen
    assert f"http://127.0.0.1:{port}" in printed


def test_a_taken_port_is_told(make_state: Any, tmp_path: Path) -> None:
    """A port that is taken ends with one line."""
    pytest.importorskip("textual_serve", reason="the extra `web` is not installed")
    state = make_state(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "tui", "--state", str(state.path), "--web", "--port"]
        done = subprocess.run(
            [*command, str(taken.getsockname()[1])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "cannot listen on port" in done.stderr
