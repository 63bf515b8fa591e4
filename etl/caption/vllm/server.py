"""`vllm serve` as a child: started, waited for, watched, ended with us whatever happens.

Between it and us is `etl.caption.vllm.keeper`.  What it prints goes to a bounded log beside ours.
"""

import contextlib
import functools
import itertools
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import httpx2

from etl.caption.captioner import never
from etl.caption.openai.address import Address
from etl.errors import ModelError
from etl.state.log import MAX_BYTES, MAX_LINE, PrivateFile
from etl.text import clean

log = logging.getLogger(__name__)

KEEPER = Path(__file__).with_name("keeper.py")

START_S = 3600.0
"""Longest wait for a model to be loaded, as for a GPU's own process."""

LOOK_S = 0.2
"""Seconds between two looks whether it is ready, or has ended, or a stop was asked for."""

SAY_S = 60.0
"""Seconds between two lines that it is still loading."""

ASK_S = 5.0
"""Longest wait for its answer to one such look."""

END_S = 10.0
"""Seconds that it has to end by itself before it is killed."""

_TABLE, _LISTENS = Path("/proc/net/tcp"), "0A"
"""The kernel's table of sockets, with their owners, and what it calls one that listens."""

_MAX_READ = 64 * 1024
"""Longest line that is read, in bytes; a longer one becomes two."""

_ERROR = re.compile(r"(\b\w*(?:Error|Exception)|\berror): \S.*")
_NO_ERROR = re.compile(r"^(\(.{1,60}\) )?(DEBUG|INFO|WARNING) ")
_CONSEQUENCE = re.compile(r"root cause|EngineDeadError")
"""What the server says of an engine, which may have said itself what was wrong."""

_CURES = (
    (re.compile(r"memory|KV cache|max_model_len|max seq len", re.IGNORECASE),
     "lower --gpu-memory-fraction or --dtype, or give --vllm-arg max-model-len=4096 or tensor-parallel-size=2; "),
    (re.compile(r"unrecognized arguments|invalid choice|expected one argument"),
     "check --vllm-arg, or bring vLLM up to date in its environment; "),
    (re.compile(r"not supported|no module or parameter|does not recognize|cannot find the", re.IGNORECASE),
     "another version of vLLM may know the model, or --backend local; "),
)  # fmt: skip


class Server:
    """One `vllm serve` after another.

    Attributes:
        address: where the present one is reached, with a key that it alone knows.
    """

    def __init__(
        self, command: Sequence[str], environment: Callable[[str], dict[str, str]], log_file: Path, spare: Path
    ) -> None:
        """Start nothing yet.

        ``environment`` returns the child's variables for a key; ``spare`` is a directory that goes when we have gone.
        """
        self.address = Address("")
        self._command = command
        self._spare = spare
        self._environment = environment
        self._log_file = log_file
        self._log = PrivateFile(log_file, maxBytes=MAX_BYTES, backupCount=1, delay=True)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._error = self._last = ""

    def start(self) -> None:
        """Start it, in place of one that has ended.  Raises `ModelError` where no process can be started."""
        self._clear()
        self._error = self._last = ""
        port = _free_port()
        self.address = Address(
            f"http://127.0.0.1:{port}/v1",
            secrets.token_urlsafe(32),
            direct=True,
            is_ours=functools.partial(is_ours, port),
        )
        log.info("starting vLLM; its log is %s", self._log_file)
        # In a session of its own: a Ctrl-C is meant for us, who finish what is in flight.  Not in the working
        # directory, where its child processes would look for modules.
        keeper = [sys.executable, "-I", str(KEEPER), f"{END_S:g}", str(self._spare), *self._command]
        keeper += ["--host=127.0.0.1", f"--port={port}"]
        try:
            self._keeper = subprocess.Popen(
                keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
                env=self._environment(self.address.key), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ModelError(f"vLLM cannot be started: {error}") from error
        assert self._keeper.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._keeper.stdout,), name="vllm log", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether it has ended, or was never started."""
        return self._keeper is None or self._keeper.poll() is not None

    def ends_within(self, seconds: float) -> bool:
        """Return whether it has ended, or ends within so many seconds."""
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(seconds)
        return self.ended

    def wait_until_ready(self, should_stop: Callable[[], bool] = never) -> bool:
        """Return whether it serves; not once it has ended or ``should_stop()`` is true.

        Raises `ModelError` when that takes longer than `START_S`.
        """
        begun = said = time.monotonic()
        # Loopback never goes through a proxy.
        with httpx2.Client(trust_env=False, timeout=ASK_S) as client:
            while not (self.ended or should_stop()):
                if self.address.is_ours() and self._answers(client):
                    log.info("vLLM serves after %.0f s", time.monotonic() - begun)
                    return True
                now = time.monotonic()
                if now - begun > START_S:
                    raise ModelError(f"vLLM was not ready after {START_S:g} s").with_cure(f"see {self._log_file}")
                if now - said >= SAY_S:
                    said = now
                    log.info("vLLM is still loading after %.0f s: %s", now - begun, self._last)
                time.sleep(LOOK_S)
        return False

    def failure(self, what: str) -> ModelError:
        """Return the error for one that has ended, with its own last word and what may cure it."""
        said = self.how_it_ended()
        cure = next((words for pattern, words in _CURES if pattern.search(said)), "")
        return ModelError(f"{what}: {said}").with_cure(f"{cure}all that it said is in {self._log_file}")

    def how_it_ended(self) -> str:
        """Return the last error that one that has ended has printed, else its signal or exit code, for people."""
        if self._reader is not None:
            self._reader.join(1.0)
        code = self._keeper.wait() if self._keeper is not None else 0
        if code > 128:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(code - 128).name}"
        return self._error or f"exit code {code}" + (f", after {self._last}" if self._last else "")

    def end(self) -> None:
        """End it and all that it has started.  May be called twice."""
        self._clear()
        self._log.close()

    def _clear(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None and keeper.stdout is not None and self._reader is not None
        keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(END_S + 5)
        keeper.kill()
        keeper.wait()
        self._reader.join(1.0)
        keeper.stdout.close()

    def _answers(self, client: httpx2.Client) -> bool:
        shown = {"Authorization": f"Bearer {self.address.key}"}
        try:
            return client.get(f"{self.address.base}/models", headers=shown).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    def _read(self, stream: IO[bytes]) -> None:
        """Write down what it prints, and keep its latest error and line."""
        with contextlib.suppress(ValueError, OSError):
            while line := stream.readline(_MAX_READ):
                text = clean(line.decode("utf-8", "replace").replace(self.address.key, "[key]").rstrip(), MAX_LINE)
                if not text:
                    continue
                self._last = text[-300:]
                found = None if _NO_ERROR.search(text) else _ERROR.search(text)
                if found and not (self._error and _CONSEQUENCE.search(text)):
                    self._error = found.group()[:300]
                self._log.emit(logging.makeLogRecord({"msg": text.replace("%", "%%")}))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def is_ours(port: int) -> bool:
    """Return whether what listens at a port of this machine is a process of this user, and of no other.

    While it loads, and when it has died, anybody may take the port, to be shown the key and sent pictures.
    """
    try:
        with _TABLE.open() as table:
            # Those that listen come first, before perhaps thousands of connections.
            rows = itertools.takewhile(lambda row: row[3] == _LISTENS, map(str.split, itertools.islice(table, 1, None)))
            return {int(row[7]) for row in rows if int(row[1].rpartition(":")[2], 16) == port} == {os.getuid()}
    except FileNotFoundError:
        # Only Linux has it.
        return True
