"""What was seen done on a state, so that whatever is done a second time is found."""

from typing import Any

from support.etl_process import Program
from support.fault_server import FaultServer


class Ledger:
    """Looks at a state after every end of a process, and remembers what it found finished.

    Attributes:
        fetched: for each path of the server, the requests that it had seen when its source was first found done.
        captioned: text and time of each caption when it was first found done.
    """

    def __init__(self, program: Program, server: FaultServer) -> None:
        self.program = program
        self.server = server
        self.fetched: dict[str, int] = {}
        self.captioned: dict[int, tuple[Any, ...]] = {}
        self._allowed: set[str] = set()

    def look(self) -> None:
        """Take in what is done now; no process may be at work on the state."""
        if not self.program.rows("SELECT 1 FROM sqlite_master WHERE name = 'captions'"):
            return
        for (url,) in self.program.rows("SELECT url FROM sources WHERE status = 'done'"):
            path = url.removeprefix(self.server.base)
            if path not in self._allowed:
                self.fetched.setdefault(path, self.server.requests[path])
        for number, *rest in self.program.rows("SELECT id, text, done_at FROM captions WHERE status = 'done'"):
            self.captioned.setdefault(number, tuple(rest))

    def allow(self, *paths: str) -> None:
        """Allow these pictures to be downloaded again from now on: somebody asked for it, or lost them."""
        self._allowed.update(paths)
        for path in paths:
            self.fetched.pop(path, None)

    def forget_captions(self, *captions: int) -> None:
        """Forget what these captions were: they are to be made again."""
        for number in captions:
            self.captioned.pop(number, None)

    def downloaded_again(self) -> int:
        """Return how many requests were for pictures that were done already."""
        return sum(self.server.requests[path] - seen for path, seen in self.fetched.items())

    def captioned_again(self) -> int:
        """Return how many finished captions were lost or made anew."""
        rows = self.program.rows("SELECT id, text, done_at FROM captions WHERE status = 'done'")
        now = {number: tuple(rest) for number, *rest in rows}
        return sum(now.get(number) != seen for number, seen in self.captioned.items())
