"""A real Ray cluster on the loopback: nodes that are started, joined and killed like machines, with tokens required."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil

_RAY = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"


class RayNodes:
    """A head node and those that join it; a context manager that leaves no process behind.

    Attributes:
        address: for ``--ray-address``.
        environment: what a driver needs to be let in.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.environment = {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        # Sockets lie in it, and their paths must be short.
        self._directory = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self._nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        port = self.address.rpartition(":")[2]
        self._start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._directory}")
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(len(self._nodes)):
            self.kill(number)
        shutil.rmtree(self._directory, ignore_errors=True)

    def join(self, cpus: int = 1) -> int:
        """Start another node; return its number (the head is 0)."""
        self._start(f"--address={self.address}", cpus=cpus)
        return len(self._nodes) - 1

    def kill(self, number: int) -> None:
        """End a node as a power cut would: SIGKILL to every process of it."""
        for process in self.processes(number):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._nodes[number].wait()

    def processes(self, number: int) -> list[psutil.Process]:
        """Return all living processes of a node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            node = psutil.Process(self._nodes[number].pid)
            return [node, *node.children(recursive=True)]
        return []

    def actors(self, number: int) -> list[psutil.Process]:
        """Return the processes of a node's actors."""
        found = []
        for process in self.processes(number):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(name in " ".join(process.cmdline()) for name in ("RayWorker", "FetchNode")):
                    found.append(process)
        return found

    def wait_for_actors(self, number: int, count: int, timeout_s: float = 120) -> int:
        """Wait until a node has so many actors; return how many there are at last."""
        deadline = time.monotonic() + timeout_s
        while len(self.actors(number)) != count and time.monotonic() < deadline:
            time.sleep(0.1)
        return len(self.actors(number))

    def _start(self, *options: str, cpus: int = 1) -> None:
        ip = f"127.0.0.{len(self._nodes) + 1}"
        command = [
            sys.executable, "-c", _RAY, "start", "--block", f"--node-ip-address={ip}", f"--num-cpus={cpus}",
            "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats", *options,
        ]  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        log = (self._directory.parent / f"{self._directory.name}-{len(self._nodes)}.log").open("wb")
        with log:
            self._nodes.append(
                subprocess.Popen(
                    command, env=kept | self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )
            )  # fmt: skip
        self._wait_for_raylet(len(self._nodes) - 1, Path(log.name))

    def _wait_for_raylet(self, number: int, log: Path) -> None:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if self._nodes[number].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a Ray node did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
        log.unlink()
