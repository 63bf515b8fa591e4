"""What a decoder process has of the world outside: nothing secret, nothing open, no core dump, bounded time."""

import asyncio
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from etl.images.decoder_pool import CPU_RESERVE_S, DecoderPool
from etl.images.decoder_worker import LIFE_S
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


def test_a_decoder_knows_no_secret_and_holds_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment has no token, key or proxy, its descriptors no database."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "state.db").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        child = ChildProcess("support.children:tells", {}, confined=True)
        try:
            told = json.loads(child.recv())
        finally:
            child.discard()
        held = os.fstat(secret.fileno())
    assert "PATH" in told["names"]
    assert not SECRETS.keys() & set(told["names"])
    assert [held.st_dev, held.st_ino] not in told["opened"]
    assert len(told["opened"]) == 4


def test_what_a_decoder_has_given_up(tmp_path: Path, picture: Path) -> None:
    """It may not dump core, gain rights or use root's but to files; its limits are hard ones."""
    with make_pool(tmp_path) as pool:
        asyncio.run(pool.decode(picture))
        (decoder,) = pool._all
        proc = Path(f"/proc/{decoder.pid}")
        limits = {line[:26].strip(): line[26:].split() for line in (proc / "limits").read_text().splitlines()}
        assert limits["Max core file size"][:2] == ["0", "0"]
        assert limits["Max address space"][:2] == [str(2**30)] * 2
        soft, hard = map(int, limits["Max cpu time"][:2])
        assert 120 < soft <= 120 + CPU_RESERVE_S + 60 < hard <= LIFE_S + 60
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapPrm"], 16) & ~0b11111 == int(status["CapEff"], 16) & ~0b11111 == 0
        # So is everything below /proc of a process that leaves no core dump, wherever cores are sent.
        assert (proc / "environ").stat().st_uid == 0
        if os.geteuid() != 0:
            with pytest.raises(PermissionError):
                (proc / "environ").read_bytes()


def test_a_decoder_that_was_taken_over_cannot_raise_its_limits() -> None:
    """Neither by itself nor through a program that it executes, also where it is root."""
    child = ChildProcess("support.children:grasps", {}, confined=True)
    try:
        assert json.loads(child.recv()) == []
    finally:
        child.discard()


def test_a_decoder_that_has_lived_long_makes_room(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its hard limit of processor time cuts a picture off, it ends, and no picture notices."""
    start = ChildProcess.__init__

    def with_little_time(self: ChildProcess, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        resource.prlimit(self.pid, resource.RLIMIT_CPU, (100, 100))

    monkeypatch.setattr(ChildProcess, "__init__", with_little_time)
    seen: set[int] = set()
    with make_pool(tmp_path) as pool:
        for _ in range(3):
            assert asyncio.run(pool.decode(picture)).width == 30
            seen |= {decoder.pid for decoder in pool._all}
    assert len(seen) == 3


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
