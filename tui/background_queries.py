"""Questions of a screen to the state, answered from a thread of their own.

Snapshots are taken every second whoever looks (`tui.poller`); a page of failures, a record's story, a search or a
picture is read only when somebody asks for it.
"""

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from etl.errors import EtlError
from etl.state.read.reader import Reader
from tui.messages import ReadingBroke

Question = Callable[[Reader], Any]


class Answered(Message):
    """A question was answered.

    Attributes:
        slot: what the asker called the question.
        ticket: its number; an asker that has asked anew meanwhile ignores an older one.
        value: the answer.
        problem: the error, where it could not be answered because of the state.
    """

    def __init__(self, slot: str, ticket: int, value: Any = None, problem: Exception | None = None) -> None:
        super().__init__()
        self.slot = slot
        self.ticket = ticket
        self.value = value
        self.problem = problem


@dataclass(frozen=True)
class _Job:
    to: MessagePump
    slot: str
    ticket: int
    question: Question


class BackgroundQueries:
    """Answers one question after the other.  One asked again in the same slot replaces the one that still waits."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._jobs: dict[tuple[int, str], _Job] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._ticket = 0
        # A daemon: SQLite may wait ten seconds for a locked database, and quitting must not.
        self._thread = threading.Thread(target=self._work, name="queries", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def ask(self, to: MessagePump, slot: str, question: Question) -> int:
        """Ask; the answer comes as `Answered` to the asker, with the ticket that this returns."""
        with self._changed:
            self._ticket += 1
            self._jobs[id(to), slot] = _Job(to, slot, self._ticket, question)
            self._changed.notify()
            return self._ticket

    def stop(self) -> None:
        """End the thread after the question at hand; does not wait for it."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                job = self._jobs.pop(next(iter(self._jobs)))
            answer = self._answer(job)
            if not self._stopped:
                job.to.post_message(answer)

    def _answer(self, job: _Job) -> Message:
        try:
            with Reader(self._state) as reader:
                return Answered(job.slot, job.ticket, job.question(reader))
        except (EtlError, sqlite3.Error, OSError) as error:
            return Answered(job.slot, job.ticket, problem=error)
        except Exception as error:
            return ReadingBroke(error)
