"""The program as users run it: `etl` in a process of its own, on a state directory of the test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.run_here import run_here
from support.states import query
from support.zygote import ForkedProcess, Zygote

SETTINGS: dict[str, Any] = {
    "allow_host": "127.0.0.1", "decoders": 1, "min_free": 0, "max_attempts": 3, "backoff": 0.1, "backoff_cap": 1,
    "longest_edge": 224, "model": "demo", "device": "cpu", "max_new_tokens": 48,
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code as a shell shows it, what it wrote, and seconds since it was waited for."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class EtlProcess:
    """One running `etl` command; a context manager that leaves no process behind."""

    def __init__(self, process: "subprocess.Popen[str] | ForkedProcess") -> None:
        self.process = process

    def __enter__(self) -> "EtlProcess":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def family(self) -> list[psutil.Process]:
        """Return the living processes that it started, and that these started."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def send(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.process.pid, number)

    def wait(self, timeout_s: float = 60.0) -> Ended:
        """Wait for the end."""
        begun = time.monotonic()
        out, err = self.process.communicate(timeout=timeout_s)
        code = self.process.returncode
        assert code is not None
        return Ended(128 - code if code < 0 else code, out, err, time.monotonic() - begun)


class Program:
    """Starts `etl` commands on one state directory, with ``settings`` and other ``variables`` in their environment.

    Attributes:
        state: the state directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        zygote: Zygote | None = None,
        variables: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self._zygote = zygote
        self.state = Path(settings.pop("state", directory / "state"))
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        values = SETTINGS | settings | {"state": self.state}
        # One thread: more are slower for a model this small on a busy machine.
        self.environment = kept | {"OMP_NUM_THREADS": "1"} | {f"ETL_{n.upper()}": str(v) for n, v in values.items()}
        self.environment |= variables or {}

    def start(self, *arguments: object, failpoints: str = "") -> EtlProcess:
        """Start one command, with these orders in ``ETL_FAILPOINTS``; forked from the zygote, where there is one."""
        environment = self.environment | {"ETL_FAILPOINTS": failpoints}
        if self._zygote is not None:
            return EtlProcess(self._zygote.start([*map(str, arguments)], self.directory, environment))
        command = [sys.executable, "-m", "etl.cli.app", *map(str, arguments)]
        return EtlProcess(
            subprocess.Popen(
                command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip

    def run(self, *arguments: object, timeout_s: float = 60.0, failpoints: str = "") -> Ended:
        """Run one command to its end."""
        with self.start(*arguments, failpoints=failpoints) as process:
            return process.wait(timeout_s)

    def here(self, *arguments: object) -> Ended:
        """Run one command inside the test's process, which has imported everything already, in the same environment.

        It does what `run` does where nothing is claimed of the process itself.
        """
        begun = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(self.environment):
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.chdir(self.directory)
            code, out, err = run_here(*arguments)
        return Ended(code, out, err, time.monotonic() - begun)

    def status(self) -> dict[str, Any]:
        """Return what ``etl status --json`` says."""
        status: dict[str, Any] = json.loads(self.here("status", "--json").stdout)
        return status

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Ask the state's database; nothing where there is none yet."""
        return query(self.state, sql, *arguments) if (self.state / "state.db").exists() else []

    def count(self, table: str, status: str) -> int:
        """Return the number of items of a queue with this status; 0 before the table exists."""
        if not self.rows("SELECT 1 FROM sqlite_master WHERE name = ?", table):
            return 0
        return int(self.rows(f"SELECT count(*) FROM {table} WHERE status = ?", status)[0][0])

    def processes(self) -> list[psutil.Process]:
        """Return every living process, whoever its parent, whose arguments name the state directory."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and any(str(self.state) in argument for argument in process.cmdline()):
                    found.append(process)
        return found


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Signals that stop a run, and its exit code then."""


def wait_for_done(program: Program, run: EtlProcess, table: str, count: int, timeout_s: float = 300.0) -> None:
    """Return when so many items of a queue are done; fail when the run ends before."""
    deadline = time.monotonic() + timeout_s
    while program.count(table, "done") < count:
        assert run.process.poll() is None, run.wait().stderr
        assert time.monotonic() < deadline, f"{program.count(table, 'done')} of {table} after {timeout_s} s"
        time.sleep(0.05)
