"""Child processes that are cheap to start, easy to kill and never outlive their parent.

Decoders, image loaders and GPU workers are such children.  Each has a socket of its own, so one that dies takes nothing
with it but what it was given.  (`concurrent.futures` and pebble lose their whole pool with one idle process;
`multiprocessing` runs the parent's main module again in every child.)

The parent holds a `ChildProcess`.  The child runs its entry, ``main(config, parent)``, with a `Parent`.  Messages
are bytes, some megabytes at most.  A parent unpickles nothing.
"""

import contextlib
import importlib
import json
import os
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from etl.errors import ChildEndedError, EtlError

_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from etl.processes import run_child
run_child(*sys.argv[2:])
"""

_HARMLESS = re.compile(r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|PYTHON(?!STARTUP)\w+|COVERAGE\w*|MALLOC_\w+")
"""Variables that a confined child gets; everything else may be a secret."""

_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Signals that a whole group is sent: the parent finishes what is in flight, and must find its children alive."""

_living: "weakref.WeakSet[ChildProcess]" = weakref.WeakSet()

_GONE = (EOFError, OSError)
"""What a socket raises when nobody is at its other end, or when this end was closed."""


class ChildProcess:
    """A child and the parent's end of its socket.

    Not thread-safe, except that any thread may `kill`; one that waits for the child then gets `ChildEndedError`.

    Args:
        entry: what the child runs, as ``package.module:function``, called with the config and a `Parent`.
        config: what the child is told at its start; must be JSON.
        name: of the child, for people: "decoder process".
        env: environment variables beside those of this process.
        confined: whether it works on what strangers sent: of this process's environment it gets only what an
            interpreter needs, so no token and no key, and it gives up the rights that `etl.confinement` names.
        stall_s: seconds after which one that takes in nothing of a message, or goes on with none that it began, counts
            as ended (`ChildEndedError`, caused by `BlockingIOError`); for ever by default.

    Raises:
        EtlError: no process can be started.
    """

    def __init__(
        self,
        entry: str,
        config: Mapping[str, Any],
        *,
        name: str = "child process",
        env: Mapping[str, str] | None = None,
        confined: bool = False,
        stall_s: float | None = None,
    ) -> None:
        self.name = name
        inherited = {k: v for k, v in os.environ.items() if not confined or _HARMLESS.fullmatch(k)}
        try:
            self._connection, theirs = Pipe()
        except OSError as error:
            raise EtlError(f"a {name} cannot be started: {error}") from error
        with theirs:
            arguments = [json.dumps(sys.path), entry, str(theirs.fileno()), json.dumps(config), str(int(confined))]
            # -P: a json.py in the working directory is a stranger's.
            # Until the child ignores them, it inherits this mask: a Ctrl-C must not print tracebacks of its start.
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BOOT, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=inherited | dict(env or {}),
                )
            except OSError as error:
                self._connection.close()
                raise EtlError(f"a {name} cannot be started: {error}") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        if stall_s is not None:
            _limit_waits(self._connection, stall_s)
        _living.add(self)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the socket's descriptor, for `multiprocessing.connection.wait` and selectors.

        It is readable when a message has come and when the child is gone.
        """
        return self._connection.fileno()

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once the child has sent its first message, which is dropped.

        Raises, for people, `ChildEndedError` when the child ends before and `EtlError` when it takes longer.
        """
        try:
            if self.poll(timeout_s):
                self.recv()
                return
        except ChildEndedError:
            raise ChildEndedError(f"a {self.name} cannot be started: {self.how_it_ended()}") from None
        raise EtlError(f"a {self.name} cannot be started: it was not ready after {timeout_s:g} s")

    def send(self, message: bytes) -> None:
        """Give the child a message; it is kept there until the child asks for it.

        Raises `ChildEndedError` when the child is gone.  One that was given a message may still die before it looks.
        """
        try:
            self._connection.send_bytes(message)
        except _GONE as error:
            raise self._ended() from error

    def poll(self, timeout_s: float = 0) -> bool:
        """Wait at most so long, and return whether `recv` has something to say: a message, or that the child is gone.

        Raises `ChildEndedError` when the child was discarded meanwhile.
        """
        try:
            # `Connection.poll` makes a selector each time.
            poll = select.poll()
            poll.register(self._connection.fileno(), select.POLLIN)
            return bool(poll.poll(1000 * timeout_s))
        except _GONE as error:
            raise self._ended() from error

    def recv(self) -> bytes:
        """Wait for the child's next message and return it; those sent before it died come first.

        Raises `ChildEndedError` when the child is gone.
        """
        try:
            return self._connection.recv_bytes()
        except _GONE as error:
            raise self._ended() from error

    def kill(self) -> None:
        """End the child at once, wherever it is; does not wait."""
        self._process.kill()

    def discard(self) -> None:
        """End the child, if it still lives, and free what it held.  May be called twice."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def how_it_ended(self) -> str:
        """Return the signal or exit code of a child that is gone, for people."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def _ended(self) -> ChildEndedError:
        return ChildEndedError(f"a {self.name} has ended")


def _limit_waits(connection: "Connection[bytes, bytes]", seconds: float) -> None:
    # A stopped process keeps its socket, which takes no more than some 200 kB.
    wait = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)


def kill_all() -> None:
    """End every child of this process at once, for a process that is about to end itself; does not wait.

    They would end by themselves once their sockets close, but not while they are inside a call that holds them up.
    """
    for child in list(_living):
        child.kill()


class Parent:
    """The child's end of the socket: what came from the parent, and the way back.

    A thread takes in messages at once, so that the parent never waits for a busy child, and ends this process as
    soon as the parent is gone, even in the middle of work.  One thread at a time may send.
    """

    def __init__(self, connection: "Connection[bytes, bytes]") -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._receive, name="parent", daemon=True).start()

    def recv(self) -> bytes:
        """Return the parent's next message, once there is one."""
        return self._inbox.get()

    def pending(self) -> bool:
        """Return whether `recv` would not wait."""
        return not self._inbox.empty()

    def send(self, message: bytes) -> None:
        """Send a message; waits while the parent does not read.  A parent that is gone ends this process."""
        try:
            self._connection.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)

    def _receive(self) -> None:
        with contextlib.suppress(*_GONE):
            while True:
                self._inbox.put(self._connection.recv_bytes())
        os._exit(0)


def run_child(entry: str, descriptor: str, config: str, confined: str) -> None:
    """Be the child: what the boot of a new interpreter calls, with what `ChildProcess` gave it."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    if confined == "1":
        _confine()
    parent = Parent(Connection(int(descriptor)))
    module, _, function = entry.partition(":")
    getattr(importlib.import_module(module), function)(json.loads(config), parent)


def _confine() -> None:
    """Give up what works on strangers' data do not need, for good."""
    # Here, because only children need it.
    from etl import confinement

    confinement.give_up_rights()
