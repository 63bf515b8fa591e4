"""The log of a state: ``logs/etl.log``, written by its runs and read by whoever watches them.

    2026-11-24T06:44:32Z INFO stages.fetch: words

One line for each event, at most `MAX_LINE` characters, in which nothing acts on a terminal.  Four files of `MAX_BYTES`
at most, readable by their owner alone: messages hold URLs and server errors.
"""

import contextlib
import io
import logging
import logging.handlers
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from etl import files
from etl.errors import NotPlainError
from etl.text import clean

DIRECTORY, NAME = "logs", "etl.log"

MAX_BYTES = 1024 * 1024
KEPT = 3
"""Full files that are kept beside the one that is written: ``etl.log.1`` is the latest of them."""

MAX_LINE = 1000

TAIL_BYTES = 64 * 1024
"""As much of the end is read to show the latest lines."""

_PROGRAM = "etl"

log = logging.getLogger(__name__)

journal = logging.getLogger("etl.run")
"""For what happens to a run: only the log of the state hears it, because the command says it in its own way."""
journal.addHandler(logging.NullHandler())
journal.setLevel(logging.INFO)
journal.propagate = False


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line: when it was written (ISO 8601, UTC), its level, the part of the program, and its words."""

    at: str
    level: str
    origin: str
    words: str


class _OneLine(logging.Formatter):
    """Makes one harmless line of a record; of a traceback the last line, which names the error."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        words = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            words += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        origin = record.name.removeprefix(f"{_PROGRAM}.")
        return clean(f"{at} {record.levelname} {origin}: {words}", MAX_LINE)


class PrivateFile(logging.handlers.RotatingFileHandler):
    """A bounded log file that is private from its first byte, and whose failures cost its lines alone.

    Whatever goes wrong is said once on stderr: a disk that is full is told by the commit that fails on it.
    """

    _told = False

    def _open(self) -> io.TextIOWrapper:
        path = Path(self.baseFilename)
        files.make_directory(path.parent, 0o700)
        raw = io.FileIO(files.open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a")
        # Unbuffered: what a full disk had no room for must not be tried again when the file is closed.
        return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 -- logging calls it with that
        """Lose the line."""
        error, told, self._told = sys.exc_info()[1], self._told, True
        if not told:
            why = error.strerror if isinstance(error, OSError) else error
            log.warning("the run goes on without its log, %s: %s", self.baseFilename, why)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class RunLog:
    """Writes what the program logs, from `logging.INFO` on, while it is entered.

    What goes to stderr is up to the handlers there: their own levels decide, not the program's.
    """

    def __init__(self, state: Path) -> None:
        self._directory = state.resolve() / DIRECTORY
        self._logger = logging.getLogger(_PROGRAM)
        self._before = logging.NOTSET
        self._handler: PrivateFile | None = None

    def __enter__(self) -> "RunLog":
        self._handler = PrivateFile(self._directory / NAME, maxBytes=MAX_BYTES, backupCount=KEPT, delay=True)
        self._handler.setFormatter(_OneLine())
        self._handler.setLevel(logging.INFO)
        self._before = self._logger.level
        self._logger.addHandler(self._handler)
        journal.addHandler(self._handler)
        self._logger.setLevel(min(logging.INFO, self._logger.getEffectiveLevel()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handler is not None:
            self._logger.setLevel(self._before)
            self._logger.removeHandler(self._handler)
            journal.removeHandler(self._handler)
            self._handler.close()


def stamp(state: Path) -> tuple[int, int] | None:
    """Return what changes with every line that is written; ``None`` where there is no log."""
    try:
        found = files.look_at(state.resolve() / DIRECTORY / NAME)
    except (NotPlainError, OSError):
        return None
    return (found.size, found.written_ns) if found else None


def tail(state: Path, limit: int) -> tuple[LogLine, ...]:
    """Return the latest lines, oldest first; those of the file before too where the present one has just begun."""
    lines: list[str] = []
    for name in (NAME, f"{NAME}.1"):
        if len(lines) < limit:
            lines = _end_of(state.resolve() / DIRECTORY / name) + lines
    return tuple(_parsed(line) for line in lines[-limit:])


def _end_of(path: Path) -> list[str]:
    try:
        with files.reading(path) as file:
            size = file.seek(0, os.SEEK_END)
            begin = file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except (NotPlainError, OSError):
        # Not there yet, or not ours to read: the state itself can be shown all the same.
        return []
    # The last line may still be written, the first may have been cut.
    lines = data.decode("utf-8", "replace").split("\n")[:-1]
    return lines[1:] if begin else lines


def _parsed(line: str) -> LogLine:
    # The file may have been written by anybody: a copied state is no less a stranger's than its manifest.
    at, _, rest = clean(line, MAX_LINE).partition(" ")
    level, _, rest = rest.partition(" ")
    origin, separator, words = rest.partition(": ")
    return LogLine(at, level, origin, words) if separator else LogLine("", "", "", clean(line, MAX_LINE))
