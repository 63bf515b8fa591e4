"""Real `etl` processes that start in milliseconds: forked from one that has imported everything already.

An interpreter that imports torch costs four seconds of a core, and fault tests kill hundreds of processes.  Here one
process, the zygote, imports the program once, and each command is a fork of it: a process of its own, running the
same `main` with its own arguments, environment and output, and killed by the same signals.  Its children (decoders,
feeders) start as always.  Unlike a new process it has no imports of its own ahead of it, so nothing is killed in them.

    with Zygote(torch=False) as zygote:
        program = Program(tmp_path, zygote=zygote)

Failpoints are armed in every fork from its own ``ETL_FAILPOINTS``.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

TESTS = Path(__file__).parent.parent

UNARMED = "run.begin.before_commit=sleep:0@1000000000"
"""What makes a process count its passings, and never do anything."""

BYTES = 1 << 20
"""Longest message between test and zygote."""

_TORCH_NAMES = ("torch", "transformers", "tokenizers", "safetensors.torch", "accelerate")


class Zygote:
    """The process that others are forked from; a context manager.  With ``torch`` it can fork captioning ones."""

    def __init__(self, *, torch: bool) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int] = {}
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        variables = {
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ETL_FAILPOINTS": UNARMED,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        }  # fmt: skip
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.zygote", str(theirs.fileno()), "torch" if torch else ""],
                env=kept | variables, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        assert self._received() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.wait(30)

    def start(self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> "ForkedProcess":
        """Fork a process that runs `etl` with these arguments."""
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - closed by `ForkedProcess`
        order = {"arguments": arguments, "cwd": str(directory), "env": environment}
        socket.send_fds(self._socket, [json.dumps(order).encode()], [out.fileno(), err.fileno()])
        while not isinstance(message := self._received(), int):
            self._note(message)
        return ForkedProcess(self, message, out, err)

    def code_of(self, pid: int) -> int | None:
        """Return the exit code of a fork, negative for a signal; ``None`` while it lives."""
        while select.select([self._socket], [], [], 0)[0]:
            self._note(self._received())
        return self._codes.get(pid)

    def _note(self, message: Any) -> None:
        pid, code = message
        self._codes[pid] = code

    def _received(self) -> Any:
        message = self._socket.recv(BYTES)
        assert message, "the zygote has died"
        return json.loads(message)


class ForkedProcess:
    """A fork of the zygote, with as much of `subprocess.Popen` as `EtlProcess` uses."""

    def __init__(self, zygote: Zygote, pid: int, out: IO[str], err: IO[str]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote
        self._out, self._err = out, err
        self._said = ("", "")

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while the process lives."""
        if self.returncode is None:
            self.returncode = self._zygote.code_of(self.pid)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL to a process that lives."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written."""
        deadline = time.monotonic() + (60.0 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("etl", timeout or 60.0)
            time.sleep(0.002)
        if not self._out.closed:
            self._said = (_read(self._out), _read(self._err))
        return self._said


def _read(file: IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read()


# What runs in the zygote.


def _preload(*, torch: bool) -> None:
    import etl

    for module in pkgutil.walk_packages(etl.__path__, "etl."):
        if module.name.startswith("etl.demo.tiny_llava") or "triton" in module.name or "decode_kernel" in module.name:
            continue
        if torch or not module.name.startswith("etl.caption"):
            importlib.import_module(module.name)
    if torch:
        for name in (
            "transformers.models.llava.modeling_llava", "transformers.models.llava.processing_llava",
            "transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama",
            "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto",
        ):  # fmt: skip
            importlib.import_module(name)
    found = [name for name in _TORCH_NAMES if name in sys.modules]
    assert torch or not found, f"{found} make each fork larger than it need be"


def _serve(descriptor: int) -> None:
    """Fork for every order, and report every end, until the test has gone."""
    test = socket.socket(fileno=descriptor)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    _tell(test, "ready")
    while True:
        readable, _, _ = select.select([test, wake], [], [])
        if wake in readable:
            os.read(wake, 4096)
            _reap(test)
        if test in readable:
            message, descriptors, _, _ = socket.recv_fds(test, BYTES, 2)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (descriptor, wake, woken):
                    os.close(number)
                test.detach()
                _be_etl(json.loads(message), *descriptors)
            for number in descriptors:
                os.close(number)
            _tell(test, pid)


def _tell(test: socket.socket, message: Any) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        test.sendall(json.dumps(message).encode())


def _reap(test: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(test, (ended[0], os.waitstatus_to_exitcode(ended[1])))


def _be_etl(order: dict[str, Any], out: int, err: int) -> NoReturn:
    """Be a process that runs `etl`, from its arguments to its exit code."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["etl", *order["arguments"]]
    from etl import failpoints
    from etl.cli.app import main

    code: object = 0
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        main()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # What an interpreter does at its end, but for freeing torch object by object, which takes two seconds.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _preload(torch=sys.argv[2] == "torch")
    # Pages that no collection touches stay shared by all forks.
    gc.freeze()
    _serve(int(sys.argv[1]))
    os._exit(0)
