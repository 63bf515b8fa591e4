"""Real state directories, made through the product's own writer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl.clock import now_ms
from etl.config import Settings
from etl.models import (
    CaptionResult,
    DecodedImage,
    FetchedImage,
    FinishReason,
    ItemFailure,
    SourceItem,
    Stage,
    WorkingCopy,
)
from etl.stages.ingest import IngestOptions, ingest
from etl.stages.manifest import Manifest
from etl.state.store import Store

HOSTILE_KEY = "0key\x1b[31m[/red]\u202egnp.exe"


def fetched(source: SourceItem) -> FetchedImage:
    """Return a fetched picture with content of its own."""
    name = f"{source.id:064x}"
    working = WorkingCopy(name, 5000, 640, 480, 1024)
    return FetchedImage(source, name, 9000, DecodedImage("image/jpeg", 1280, 960, working), False, now_ms(), 200)


class State:
    """A state directory that is being written, as a run would.

    Attributes:
        path: the directory.
        store: its writer, which holds the lock until `close`.
        run: the id of the run in progress.
    """

    def __init__(self, path: Path, records: int, hostile: bool) -> None:
        self.path = path / "state"
        self.store = Store.open(Settings(state=self.path))
        manifest = path / "records.jsonl"
        lines = [{"id": f"r{n:03}", "url": f"http://archive.example/{n}.jpg"} for n in range(records)]
        if hostile:
            lines[0] = {"id": HOSTILE_KEY, "url": "http://archive.example/[/b].jpg"}
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        ingest(self.store, Manifest(str(manifest)), IngestOptions())
        self.run = self.store.begin_run([Stage.FETCH, Stage.CAPTION])
        self.recipe = self.store.use_recipe(sha256="ab" * 32, model="demo", revision="1", spec="{}")

    def fetch(self, done: int = 0, dead: int = 0, retry: int = 0, message: str = "the host said 404") -> None:
        """Claim sources and end them in these ways; dead ones first."""
        queue = self.store.sources(self.run)
        items = queue.claim("archive.example", done + dead + retry)
        failed = [
            ItemFailure(item.id, "http_404" if n < dead else "timeout", message, n >= dead, now_ms())
            for n, item in enumerate(items[: dead + retry])
        ]
        queue.fail(failed)
        queue.commit([fetched(item) for item in items[dead + retry :]], self.recipe)

    def caption(self, done: int) -> None:
        """Claim captions and commit them."""
        queue = self.store.captions(self.run, self.recipe)
        results = [CaptionResult(item.id, "A street.", 4, FinishReason.STOP) for item in queue.claim(done)]
        queue.commit(results, now_ms())

    def close(self) -> None:
        """Let go of the state, as a process does that ends in any way."""
        self.store.close()


@pytest.fixture
def make_state(tmp_path: Path) -> Iterator[Callable[..., State]]:
    """Make states with ``records`` records; all are closed at the end."""
    made: list[State] = []

    def make(records: int = 20, *, hostile: bool = False) -> State:
        made.append(State(tmp_path, records, hostile))
        return made[-1]

    yield make
    for state in made:
        state.close()
