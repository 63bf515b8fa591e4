"""A program that draws: in a terminal of its own, with somebody who watches and presses keys."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading


class Terminal:
    """A program in a pseudo-terminal of its own, whose output is read all the time.

    Attributes:
        process: the program.
        seen: all that it has written so far.
    """

    def __init__(self, command: list[str], columns: int, lines: int) -> None:
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("COLORTERM", "TMUX")}
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal,
            env=kept | {"TERM": "xterm-256color"}, start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        self.seen = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._controller, 65536):
                self.seen += data

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._controller, keys.encode())

    def text(self) -> str:
        """Return what was written, without the sequences that move and colour it."""
        return re.sub(rb"\x1b\[[0-9;?<>=]*[a-zA-Z]|\x1b[^a-zA-Z]*[a-zA-Z]", b"", self.seen).decode("utf-8", "replace")

    def cut(self) -> None:
        """Kill the program, as one whose network is gone: it says nothing to anybody."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._controller)
        self._thread.join(timeout=5)
