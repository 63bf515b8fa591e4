"""Real processes that start in milliseconds: forked from one that has imported everything already.

An interpreter that imports torch costs four seconds of a core, and fault tests kill hundreds of processes.  Here one
process, the zygote, imports the program once, and each command is a fork of it: a process of its own, running the
same `main` with its own arguments, environment and output, and killed by the same signals.  Its children (decoders,
feeders) start as always.  Unlike a new process it has no imports of its own ahead of it, so nothing is killed in them.

    with Zygote(directory, torch=False) as zygote:
        program = Program(tmp_path, zygote=zygote)

All test processes that name the same directory share one zygote.  Failpoints are armed in every fork from its own
``ETL_FAILPOINTS``.
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
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

TESTS = Path(__file__).parent.parent

ETL = "etl.cli.app:main"
"""What forks call when nothing else is said."""

UNARMED = "run.begin.before_commit=sleep:0@1000000000"
"""What makes a process count its passings, and never do anything."""

BYTES = 1 << 20
"""Longest message between test and zygote."""

_TORCH_NAMES = ("torch", "transformers", "tokenizers", "safetensors.torch", "accelerate")


class Zygote:
    """The process that others are forked from; a context manager.  With ``torch`` it can fork captioning ones.

    ``name`` is that of the zygote which several test processes share: the first starts it, the last ends it.
    """

    def __init__(self, name: str, *, torch: bool) -> None:
        self._codes: dict[int, int] = {}
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        # An abstract address: it is free again, and no file is left, when nobody listens any more.
        address = f"\0etl-zygote-{name}-{torch}"
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, contextlib.suppress(OSError):
                listener.bind(address)
                listener.listen()
                self._process = _started(listener, torch=torch)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with contextlib.suppress(ConnectionError):
                self._socket.connect(address)
                if self._socket.recv(BYTES):
                    break
            # It was about to end with its last user.
            self._socket.close()
            assert self._process is None, "the zygote has died"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        if self._process:
            # Others may need it still.
            self._process.wait(600)

    def start(
        self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str], entry: str = ETL,
        stdout: int | None = None,
    ) -> "ForkedProcess":  # fmt: skip
        """Fork a process that calls ``entry`` with these arguments in `sys.argv`; its output is kept, or goes there."""
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - closed by `ForkedProcess`
        pid = self._fork(arguments, directory, environment, entry, (stdout or out.fileno(), err.fileno()))
        return ForkedProcess(self, pid, out, err)

    def run_script(self, code: str, *arguments: object) -> int:
        """Run what else `python -c` would, in a fork; return its exit code."""
        with self.start([code, *map(str, arguments)], Path.cwd(), os.environ, "support.zygote:be_script") as fork:
            return fork.wait()

    def popen(self, command: Sequence[str], *, env: Mapping[str, str], pass_fds: tuple[int], **_: Any) -> "Fork":
        """Do for `etl.processes` what `subprocess.Popen` does, but that the child has imported what it needs."""
        # Behind the interpreter, -P, -c, the boot and its `sys.path`.
        arguments = command[5:]
        with open(os.devnull) as nothing:  # noqa: PTH123
            descriptors = (nothing.fileno(), 2, *pass_fds)
            return Fork(self, self._fork(arguments, Path.cwd(), env, "support.zygote:be_child", descriptors))

    def code_of(self, pid: int) -> int | None:
        """Return the exit code of a fork, negative for a signal; ``None`` while it lives."""
        with self._lock:
            while select.select([self._socket], [], [], 0)[0]:
                self._note(self._received())
            return self._codes.get(pid)

    @contextlib.contextmanager
    def children(self) -> Iterator[None]:
        """Let the children of `etl.processes` that this process starts be forks, in the block."""
        # Here: what forks should have imported decides itself.
        import pytest

        from etl import processes

        with pytest.MonkeyPatch.context() as patch:
            forking = vars(subprocess) | {"Popen": self.popen}
            patch.setattr(processes, "subprocess", types.SimpleNamespace(**forking))
            yield

    def _fork(
        self, arguments: Sequence[str], directory: Path, env: Mapping[str, str], entry: str, descriptors: Sequence[int]
    ) -> int:
        order = {
            "arguments": arguments, "cwd": str(directory), "env": dict(env), "entry": entry, "numbers": descriptors[2:],
        }  # fmt: skip
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
            while not isinstance(message := self._received(), int):
                self._note(message)
            return message

    def _note(self, message: Any) -> None:
        pid, code = message
        self._codes[pid] = code

    def _received(self) -> Any:
        message = self._socket.recv(BYTES)
        assert message, "the zygote has died"
        return json.loads(message)


def _started(listener: socket.socket, *, torch: bool) -> "subprocess.Popen[bytes]":
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    variables = {
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ETL_FAILPOINTS": UNARMED,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "support.zygote", str(listener.fileno()), "torch" if torch else ""],
        env=kept | variables, stdin=subprocess.DEVNULL, pass_fds=(listener.fileno(),),
    )  # fmt: skip


class Fork:
    """A fork of the zygote, with as much of `subprocess.Popen` as `etl.processes` uses."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote

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

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        deadline = time.monotonic() + (60.0 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("etl", timeout or 60.0)
            time.sleep(0.002)
        return code


class ForkedProcess(Fork):
    """A fork whose output is kept, with as much of `subprocess.Popen` as `EtlProcess` uses."""

    def __init__(self, zygote: Zygote, pid: int, out: IO[str], err: IO[str]) -> None:
        super().__init__(zygote, pid)
        self._out, self._err = out, err
        self._said = ("", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.communicate()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written."""
        self.wait(timeout)
        if not self._out.closed:
            self._said = (_read(self._out), _read(self._err))
        return self._said


def _read(file: IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read()


# What runs in the zygote.


def _preload(*, torch: bool) -> None:
    import httpx2
    import typer.main
    from support.once import make_once

    import etl

    for module in pkgutil.walk_packages(etl.__path__, "etl."):
        if module.name.startswith("etl.demo.tiny_llava") or "triton" in module.name or "decode_kernel" in module.name:
            continue
        if torch or not module.name.startswith("etl.caption"):
            importlib.import_module(module.name)
    from etl.cli.app import app

    make_once()
    typer.main.get_command(app)
    httpx2.create_ssl_context()
    if torch:
        for name in (
            "transformers.models.llava.modeling_llava", "transformers.models.llava.processing_llava",
            "transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama",
            "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto",
        ):  # fmt: skip
            importlib.import_module(name)
    found = [name for name in _TORCH_NAMES if name in sys.modules]
    assert torch or not found, f"{found} make each fork larger than it need be"


def _serve(listener: socket.socket) -> None:
    """Fork for every order, and report every end to who gave it, until all tests have gone."""
    tests: set[socket.socket] = set()
    owners: dict[int, socket.socket] = {}
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    while True:
        waited: list[int | socket.socket] = [wake, listener, *tests]
        readable = select.select(waited, [], [])[0]
        if wake in readable:
            os.read(wake, 4096)
            _reap(owners)
        if listener in readable:
            test = listener.accept()[0]
            tests.add(test)
            _tell(test, "ready")
        for test in tests.intersection(readable):
            message, descriptors, _, _ = socket.recv_fds(test, BYTES, 3)
            if not message:
                tests.remove(test)
                test.close()
                if not tests:
                    return
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (wake, woken):
                    os.close(number)
                for each in (listener, *tests):
                    each.close()
                _be(json.loads(message), *descriptors)
            owners[pid] = test
            for number in descriptors:
                os.close(number)
            _tell(test, pid)


def _tell(test: socket.socket, message: Any) -> None:
    with contextlib.suppress(OSError):
        test.sendall(json.dumps(message).encode())


def _reap(owners: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(owners.pop(ended[0]), (ended[0], os.waitstatus_to_exitcode(ended[1])))


def be_child() -> None:
    """Be a child of `etl.processes`."""
    from etl.processes import run_child

    run_child(*sys.argv[1:])


def be_script() -> None:
    """Be `python -c`: run the code that is the first argument, with those behind it."""
    del sys.argv[0]
    exec(sys.argv[0], {"__name__": "__main__"})


def _be(order: dict[str, Any], *descriptors: int) -> NoReturn:
    """Be a process that calls what was ordered, from its arguments to its exit code."""
    for given, number in zip(descriptors, (1, 2, *order["numbers"]), strict=True):
        if given != number:
            os.dup2(given, number)
            os.close(given)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["etl", *order["arguments"]]
    from etl import failpoints

    code: object = 0
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        module, _, function = order["entry"].partition(":")
        code = getattr(importlib.import_module(module), function)() or 0
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
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        _preload(torch=sys.argv[2] == "torch")
        # Pages that no collection touches stay shared by all forks.
        gc.freeze()
        _serve(listener)
    os._exit(0)
