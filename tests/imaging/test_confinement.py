"""What a decoder process has of the world outside: nothing secret, nothing open, no core dump, bounded time."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from etl.imaging.pool import CPU_RESERVE_S, DecoderPool
from etl.processes import ChildProcess

SECRETS = {
    "HF_TOKEN": "hf_secret", "ETL_CONTACT": "me", "HTTP_PROXY": "http://me:pw@proxy:1", "AWS_SECRET_ACCESS_KEY": "k",
    "OPENAI_API_KEY": "sk", "PYTHONSTARTUP": "/evil.py",
}  # fmt: skip


def make_pool(folder: Path, **options: Any) -> DecoderPool:
    """Return a pool of one process."""
    settings: dict[str, Any] = {"processes": 1, "memory_bytes": 2**30, "longest_edge": 64, "max_pixels": 10**6}
    return DecoderPool(folder / "images", **(settings | options))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Return a small picture."""
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_decoder_knows_no_secret_and_holds_nothing_open(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment has no token, key or proxy, its descriptors no database; it may not dump core or gain rights."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "state.db").open("w") as secret, make_pool(tmp_path) as pool:
        os.set_inheritable(secret.fileno(), True)
        asyncio.run(pool.decode(picture))
        (decoder,) = pool._all
        proc = Path(f"/proc/{decoder.pid}")
        environment = (proc / "environ").read_bytes().decode()
        assert "PATH=" in environment
        assert not [name for name in SECRETS if f"{name}=" in environment]
        opened = [str(one.readlink()) for one in (proc / "fd").iterdir()]
        assert not [name for name in opened if "state.db" in name]
        limits = {line[:26].strip(): line[26:].split() for line in (proc / "limits").read_text().splitlines()}
        assert limits["Max core file size"][:2] == ["0", "0"]
        assert 120 < int(limits["Max cpu time"][0]) <= 120 + CPU_RESERVE_S + 60
        assert "NoNewPrivs:\t1" in (proc / "status").read_text()
        assert (proc / "fd" / "2").readlink() == Path(os.devnull)


def test_a_decoder_that_never_ends_is_ended_by_the_kernel() -> None:
    """When nobody is left to end it, its processor time runs out."""
    child = ChildProcess("support.children:spins_confined", {}, confined=True)
    try:
        assert child.recv() == b"begun"
        assert child.poll(60)
        assert child.how_it_ended() == "killed by SIGXCPU"
    finally:
        child.discard()


def test_no_library_prints_a_picture_s_words(capfd: pytest.CaptureFixture[str]) -> None:
    """What C libraries write to stderr is dropped; a traceback stays readable and harmless."""
    child = ChildProcess("support.children:shouts", {}, confined=True)
    try:
        assert child.recv() == b"done"
        assert child.how_it_ended() == "exit code 1"
    finally:
        child.discard()
    printed = capfd.readouterr().err
    assert "from C" not in printed
    assert r"from Python \x1b]0;x\x07" in printed
    assert "\x1b" not in printed
