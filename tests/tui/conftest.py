"""Real state directories, made through the product's own writer."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.states import failed, fetched, put_records
from support.workbench import encoded

from etl.clock import now_ms
from etl.demo.scenes import random_scene
from etl.domain.items import CaptionResult, FetchedImage, SourceItem, WorkingCopy
from etl.domain.statuses import FinishReason, Stage
from etl.images.cache import ImageCache
from etl.settings import Settings
from etl.state.log import RunLog
from etl.state.store import Store

HOSTILE = (
    "\x1b]0;owned\x07\x1b[31m[/red][@click=app.quit]x\u202egnp.exe\u200b\r\nline two \U0001f3da\ufe0f\u4e2d\u6587 "
)
"""Escapes, markup, a link that would quit, bidirectional and invisible characters, wide ones and a line end."""


class State:
    """A state directory that is being written, as a run would.

    Attributes:
        path: the directory.
        store: its writer, which holds the lock until `close`.
        run: the id of the run in progress.
    """

    def __init__(self, path: Path, records: int | Sequence[dict[str, Any]], *, pictures: bool, price: float) -> None:
        self.path = path / "state"
        self.store = Store.open(Settings(state=self.path, gpu_price=price))
        self._pictures = pictures
        self._rng = random.Random(1)
        if isinstance(records, int):
            records = [{"id": f"r{n:03}", "url": f"http://archive.example/{n}.jpg"} for n in range(records)]
        put_records(self.store, records)
        self._log = RunLog(self.path)
        self._log.__enter__()
        self.run = self.store.begin_run([Stage.FETCH, Stage.CAPTION])
        self.recipe = self.store.use_recipe(sha256="ab" * 32, model="demo", revision="1", spec="{}")

    def fetched(self, source: SourceItem) -> FetchedImage:
        """Return a fetched picture with content of its own, which lies in the cache where pictures were asked for."""
        copy = WorkingCopy(f"{source.id:064x}", 5000, 640, 480, 1024)
        if self._pictures:
            data = encoded(random_scene(self._rng).draw(64, 48))
            copy = WorkingCopy(ImageCache.of_state(self.path).put_working(data), len(data), 64, 48, 1024)
        return fetched(source, copy=copy, size=9000, pixels=(1280, 960))

    def fetch(self, done: int = 0, dead: int = 0, retry: int = 0, message: str = "the host said 404") -> None:
        """Claim sources and end them in these ways; dead ones first."""
        queue = self.store.sources(self.run)
        items = [item for host in queue.ready_hosts() for item in queue.claim(host, done + dead + retry)]
        failures = [
            failed(item.id, "http_404" if n < dead else "timeout", retryable=n >= dead, message=message)
            for n, item in enumerate(items[: dead + retry])
        ]
        queue.fail(failures)
        wanted = items[dead + retry : dead + retry + done]
        queue.commit([self.fetched(item) for item in wanted], self.recipe)
        queue.release(item.id for item in items[dead + retry + done :])

    def caption(
        self, *texts: str, flags: tuple[str, ...] = (), thinking: str = "", dead: int = 0, message: str = "no words"
    ) -> None:
        """Claim captions and commit these texts, one transaction and at least a millisecond after the other."""
        queue = self.store.captions(self.run, self.recipe)
        items = queue.claim(len(texts) + dead)
        for item, text in zip(items, texts, strict=False):
            queue.commit([CaptionResult(item.id, text, 4, FinishReason.STOP, flags, thinking)], now_ms())
        late = items[len(texts) :]
        queue.fail([failed(item.id, "generation", retryable=False, message=message) for item in late])

    def close(self) -> None:
        """Let go of the state, as a process does that ends in any way."""
        self._log.__exit__(None, None, None)
        self.store.close()


MakeState = Callable[..., State]


@pytest.fixture
def make_state(tmp_path: Path) -> Iterator[MakeState]:
    """Make states with so many records, or with these; all are closed at the end."""
    made: list[State] = []

    def make(records: int | Sequence[dict[str, Any]] = 20, *, pictures: bool = False, price: float = 0.0) -> State:
        made.append(State(tmp_path, records, pictures=pictures, price=price))
        return made[-1]

    yield make
    for state in made:
        state.close()


@pytest.fixture
def hostile(make_state: MakeState) -> State:
    """A state in which every text that comes from outside is hostile and 10,000 characters long."""
    long = HOSTILE + "A" * 10_000
    records = [
        {"id": f"{n}{HOSTILE}", "url": f"http://archive.example/[/b]{n}{'x' * 2000}.jpg", "name": long, "date": long}
        for n in range(8)
    ]
    state = make_state(records, pictures=True)
    state.fetch(done=5, dead=2, retry=1, message=long)
    state.caption(long, HOSTILE, long, flags=("repetition",), dead=1, message=long)
    return state
