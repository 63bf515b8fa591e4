"""The dashboard over a real SSH login into tmux, beside a live run: what it shows, and what a cut connection does.

An sshd of the test's own, with keys made for it, on a port of the loopback address.  About a minute.
"""

import contextlib
import getpass
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.etl_process import EtlProcess, Program
from support.terminal import Terminal
from support.watching import wait_for

from etl.demo.archive import build_archive, write_manifest
from etl.demo.server import DemoServer

pytestmark = pytest.mark.soak

PICTURES = 150

NEEDED = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "tmux": "tmux"}


def program(name: str) -> str:
    """Return a program's path; without it the test is skipped with its reason."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed here (package {NEEDED[name]})")
    return found


class Login:
    """An SSH server for the user who runs the test, and connections to it with terminals of given sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tmux = f"{program('tmux')} -S {folder / 'tmux'} -f /dev/null"
        for name in ("host", "user"):
            subprocess.run(
                [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
            )
        shutil.copy(folder / "user.pub", folder / "authorized")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = {
            "ListenAddress": "127.0.0.1", "Port": self.port, "HostKey": folder / "host", "StrictModes": "no",
            "AuthorizedKeysFile": folder / "authorized", "PidFile": "none", "UsePAM": "no", "LogLevel": "ERROR",
            "PermitRootLogin": "prohibit-password", "PasswordAuthentication": "no",
        }  # fmt: skip
        (folder / "sshd").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.log = (folder / "sshd.log").open("w")
        command = [program("sshd"), "-D", "-e", "-f", str(folder / "sshd")]
        self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def close(self) -> None:
        """End the tmux server and the SSH server."""
        subprocess.run([*shlex.split(self.tmux), "kill-server"], check=False, capture_output=True)
        self.server.terminate()
        self.server.wait()
        self.log.close()

    def command(self, remote: str) -> list[str]:
        """Return the command line of a login that runs ``remote`` in a terminal."""
        quiet = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={self.folder / 'known'}", "LogLevel=ERROR")
        options = [word for each in quiet for word in ("-o", each)]
        where = f"{getpass.getuser()}@127.0.0.1"
        return [program("ssh"), "-tt", "-i", str(self.folder / "user"), "-p", str(self.port), *options, where, remote]

    @contextlib.contextmanager
    def connected(self, remote: str, columns: int, lines: int) -> Iterator[Terminal]:
        """Log in from a terminal of this size."""
        connection = Terminal(self.command(remote), columns, lines)
        try:
            yield connection
        finally:
            connection.cut()

    def screen(self) -> str:
        """Return what the pane of tmux shows."""
        return self._tmux("capture-pane", "-p")

    def size(self) -> str:
        """Return the size of the pane."""
        return self._tmux("display-message", "-p", "#{pane_width}x#{pane_height}").strip()

    def _tmux(self, *words: str) -> str:
        command = [*shlex.split(self.tmux), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def login() -> Iterator[Login]:
    """An SSH server that is ended with the test."""
    for name in NEEDED:
        program(name)
    # A socket's path must be short, and a test's directory is not.
    folder = Path("/tmp") / f"ssh-{os.getpid()}"
    folder.mkdir(mode=0o700)
    server = Login(folder)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[Program, EtlProcess]]:
    """A run over drawn pictures that takes most of a minute, from a server of the loopback address."""
    etl = Program(tmp_path, max_new_tokens=24, batch_size=4, host_rate=5)
    with DemoServer() as server:
        write_manifest(build_archive(server, PICTURES), tmp_path / "manifest.jsonl")
        with etl.start("run", "--input", "manifest.jsonl", "--output", "out.jsonl", "-q") as process:
            wait_for(lambda: etl.count("captions", "done") > 3, 60)
            yield etl, process


def dashboard(etl: Program) -> str:
    """Return the command that a person would type."""
    root = Path(__file__).parents[2]
    return f"cd {shlex.quote(str(root))} && exec {sys.executable} -m tui --state {shlex.quote(str(etl.state))}"


def captioned(screen: str) -> int:
    """Return the number of captioned records that a screen shows; -1 for none."""
    found = re.search(r"([\d,]+) captioned", screen)
    return int(found[1].replace(",", "")) if found else -1


def test_over_ssh_in_tmux(login: Login, run: tuple[Program, EtlProcess]) -> None:
    """The numbers move at 80x24; a cut connection and a killed dashboard cost the run nothing; the next login at
    160x48 shows the truth at once, and in the end what `etl status --json` says.
    """
    etl, process = run
    attach = f"{login.tmux} new-session -A -s watch {shlex.quote(dashboard(etl))}"
    with login.connected(attach, 80, 24) as connection:
        wait_for(lambda: "▶ running" in login.screen(), 20)
        first = captioned(login.screen())
        wait_for(lambda: captioned(login.screen()) > first >= 0, 20)
        assert login.size() == "80x23", "tmux keeps a line for itself"
        assert "captioned" in re.sub(rb"\x1b[^a-zA-Z]*[a-zA-Z]", b"", connection.seen).decode("utf-8", "replace")
        connection.cut()
    at_cut = etl.count("captions", "done")
    wait_for(lambda: etl.count("captions", "done") > at_cut, 20)
    assert process.process.poll() is None, "the run goes on without anybody watching"
    wait_for(lambda: captioned(login.screen()) > first, 20)

    with login.connected(attach, 160, 48):
        wait_for(lambda: login.size() == "160x47", 10)
        wait_for(lambda: "▶ running" in login.screen() and captioned(login.screen()) >= at_cut, 5)
        watching = [each for each in etl.processes() if each.cmdline()[1:3] == ["-m", "tui"]]
        assert len(watching) == 1
        watching[0].kill()
        at_kill = etl.count("captions", "done")
        wait_for(lambda: etl.count("captions", "done") > at_kill, 20)
        assert process.process.poll() is None

    with login.connected(attach, 160, 48):
        wait_for(lambda: captioned(login.screen()) >= at_kill, 10)
        assert process.wait(120).code == 3, "some of the demo's pictures are missing on purpose"
        wait_for(lambda: "▲ partial" in login.screen(), 10)
        status, screen = etl.status(), login.screen()
        assert captioned(screen) == status["records"]["captioned"]
        assert f"{status['records']['failed']} failed" in screen
        assert f"{status['sources']['done']}/{sum(status['sources'].values())}" in screen
        assert f"{status['captions']['done']}/{status['captions']['done']}" in screen
        assert status["run"]["uid"][:8] in screen
        assert json.dumps(status["sources"]["dead"]) in screen


def test_a_cut_connection_ends_a_dashboard_without_tmux(login: Login, run: tuple[Program, EtlProcess]) -> None:
    """Without tmux the dashboard ends with its terminal, whole, and leaves the run alone."""
    etl, process = run

    def watching() -> int:
        return sum(each.cmdline()[1:3] == ["-m", "tui"] for each in etl.processes())

    with login.connected(dashboard(etl), 80, 24) as connection:
        wait_for(lambda: b"captioned" in connection.seen, 20)
        assert watching() == 1
        connection.cut()
    wait_for(lambda: watching() == 0, 15)
    before = etl.count("captions", "done")
    wait_for(lambda: etl.count("captions", "done") > before, 20)
    assert process.process.poll() is None
