"""The image loader with real processes and files: killed, stopped, hung and closed in the middle."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from support.watching import children, exists, wait_for
from support.workbench import encoded

from etl.caption.captioner import failure
from etl.caption.pictures.loader import ImageLoader, LoadedImage
from etl.caption.pictures.loader_pool import Job, Outcome, ProcessServer
from etl.caption.pictures.loader_worker import NICENESS
from etl.caption.pictures.pixels import PixelPlan, pixels
from etl.domain.items import CaptionItem
from etl.errors import CacheUnreadableError, EtlError, ImageLoaderCrashedError, WorkingCopyError
from etl.images import decoder_worker as decoder

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")

PLAN = PixelPlan(56, 56, 56, Image.Resampling.BICUBIC, 4.0)
COPIES = 12

both = pytest.mark.parametrize("processes", [0, 2])


def endless_jpeg() -> bytes:
    """Return a small progressive JPEG with one scan repeated so often that decoding it takes minutes."""
    data = encoded(Image.new("L", (2048, 2048), 128), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 50_000 + data[-2:]


@dataclass
class Copies:
    """Working copies by name, and what is to become of them."""

    folder: Path
    pixels: dict[str, bytes]

    def locate(self, name: str) -> Path:
        return self.folder / f"{name}.jpg"

    def item(self, number: int) -> CaptionItem:
        return CaptionItem(number, str(number % COPIES), "Describe.")

    def hang(self, name: str) -> CaptionItem:
        """Return an item that takes minutes: whoever opens its file is in the middle of its work until it is killed."""
        self.locate(name).write_bytes(endless_jpeg())
        return CaptionItem(-1, name, "Describe.")

    def check(self, loaded: LoadedImage) -> None:
        assert loaded.error is None
        assert loaded.data == self.pixels[loaded.item.working_sha256]
        assert loaded.started_at > 1_600_000_000_000


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    found = Copies(tmp_path, {})
    for number in range(COPIES):
        path = found.locate(str(number))
        Image.radial_gradient("L").resize((60 + number, 90 - number)).rotate(30 * number).save(path, "JPEG")
        found.pixels[str(number)] = pixels(path, PLAN)
    return found


Maker = Callable[..., ImageLoader]


@pytest.fixture
def make(copies: Copies) -> Iterator[Maker]:
    """Return a maker of image loaders, which are closed at the end and leave no process."""
    before = children(os.getpid())
    made = []

    def maker(processes: int, plan: PixelPlan = PLAN, **settings: float) -> ImageLoader:
        made.append(ImageLoader(plan, copies.locate, processes=processes, **settings))
        return made[-1]

    yield maker
    for loader in made:
        loader.close()
    assert children(os.getpid()) == before


def take(loader: ImageLoader, count: int) -> list[LoadedImage]:
    """Return so many finished items, or what came within the time."""
    taken: list[LoadedImage] = []

    def enough() -> bool:
        if len(taken) < count:
            taken.extend(loader.take(0.2))
        return len(taken) >= count

    wait_for(enough, timeout_s=30)
    return taken


@contextlib.contextmanager
def being_read(path: Path) -> Iterator[None]:
    """Wait until a child process has opened a file."""

    def is_open() -> bool:
        opened = (link for pid in children(os.getpid()) for link in Path(f"/proc/{pid}/fd").glob("*"))
        with contextlib.suppress(OSError):
            return any(link.readlink() == path for link in opened)
        return False

    wait_for(is_open)
    yield


def started(processes: int, before: set[int]) -> set[int]:
    """Return the loader's processes, once there are so many."""
    wait_for(lambda: len(children(os.getpid()) - before) == processes)
    return children(os.getpid()) - before


@both
def test_every_item_comes_once_with_its_own_pixels(make: Maker, copies: Copies, processes: int) -> None:
    """Hundreds of items, some tens of them pending at a time, come out once each, as `pixels` makes them."""
    total = 900
    seen: Counter[int] = Counter()
    with make(processes) as loader:
        submitted = 0
        while len(seen) < total:
            while submitted < total and loader.pending < 64:
                loader.submit(copies.item(submitted))
                submitted += 1
            for loaded in loader.take(30):
                copies.check(loaded)
                seen[loaded.item.id] += 1
        assert loader.pending == 0
        assert loader.take(30) == [], "nothing is pending, so there is nothing to wait for"
    assert seen == Counter(range(total))


@both
def test_bad_working_copies_fail_alone(make: Maker, copies: Copies, processes: int) -> None:
    """A missing and a damaged file are failures that name them; their neighbours and their process go on."""
    copies.locate("damaged").write_bytes(copies.locate("1").read_bytes()[:-300])
    bad = [CaptionItem(-1, "missing", ""), CaptionItem(-2, "damaged", "")]
    loader = make(processes)
    for item in [copies.item(0), *bad, copies.item(1), *bad]:
        loader.submit(item)
    errors = []
    for loaded in take(loader, 6):
        if loaded.item in bad:
            assert loaded.data is None
            assert type(loaded.error) is WorkingCopyError
            errors.append(str(loaded.error))
        else:
            copies.check(loaded)
    assert sorted(errors)[::2] == sorted(errors)[1::2]
    assert "damaged.jpg cannot be read" in min(errors)
    assert "missing.jpg is not in the cache" in max(errors)


@both
def test_what_is_not_the_files_fault_is_told_apart(make: Maker, copies: Copies, processes: int) -> None:
    """A cache that cannot be read is told as such: the process goes on, and nobody takes the file for damaged."""
    loader = make(processes)
    loader.submit(CaptionItem(-1, "n" * 300, ""))
    loader.submit(copies.item(0))
    unreadable = next(loaded for loaded in take(loader, 2) if loaded.item.id == -1)
    assert unreadable.error is not None
    assert type(unreadable.error) is CacheUnreadableError
    assert failure(unreadable.item, unreadable.error, 0).stops


def test_a_stopped_process_holds_up_nothing_but_its_own(make: Maker, copies: Copies) -> None:
    """While one of two processes stands still, the other does all that is not in its hands; order is of no account."""
    before = children(os.getpid())
    loader = make(2)
    one, _ = started(2, before)
    server = loader._server
    assert isinstance(server, ProcessServer)
    wait_for(lambda: [worker.ready for worker in server._workers] == [True, True])
    os.kill(one, signal.SIGSTOP)
    for number in range(100):
        loader.submit(copies.item(number))
    first = take(loader, 98)
    os.kill(one, signal.SIGCONT)
    rest = take(loader, 100 - len(first))
    assert sorted(loaded.item.id for loaded in first + rest) == list(range(100))
    for loaded in first + rest:
        copies.check(loaded)


@pytest.mark.parametrize("after", [0, 50, 299])
def test_a_process_that_is_killed_costs_nothing(make: Maker, copies: Copies, after: int) -> None:
    """SIGKILL of a process, at work or idle, is made good by another one; every item comes."""
    before = children(os.getpid())
    loader = make(2)
    one, other = started(2, before)
    for number in range(300):
        loader.submit(copies.item(number))
    first = take(loader, after) if after else []
    os.kill(one, signal.SIGKILL)
    rest = take(loader, 300 - len(first))
    assert sorted(loaded.item.id for loaded in first + rest) == list(range(300))
    for loaded in first + rest:
        copies.check(loaded)
    wait_for(lambda: not exists(one))
    for pid in started(2, before):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not exists(other))
    loader.submit(copies.item(7))
    (loaded,) = take(loader, 1)
    copies.check(loaded)


def test_the_only_process_dies_before_its_answers_are_heard(copies: Copies) -> None:
    """What a process had answered before it died is not done again, and another one does what could not be sent."""
    before = children(os.getpid())
    outcomes: list[Outcome] = []
    held = threading.Event()

    def deliver(outcome: Outcome) -> None:
        outcomes.append(outcome)
        held.wait(30)

    server = ProcessServer(PLAN, 1, 60, 60, deliver)
    jobs = [Job(item=copies.item(number), path=copies.locate(str(number))) for number in range(5)]
    for job in jobs:
        server.submit(job)
    wait_for(lambda: len(outcomes) == 1)
    (worker,) = server._workers
    wait_for(worker.poll)
    os.kill(worker.pid, signal.SIGKILL)
    hangup = select.poll()
    hangup.register(worker, select.POLLHUP)
    wait_for(lambda: any(events & select.POLLHUP for _, events in hangup.poll(0)))
    held.set()
    wait_for(lambda: len(outcomes) == 5)
    server.close()
    assert [job.deaths for job in jobs] == [0] * 5
    for outcome in outcomes:
        assert isinstance(outcome, tuple)
        copies.check(outcome[1])
    assert children(os.getpid()) == before


def test_a_picture_that_kills_is_tried_twice(make: Maker, copies: Copies) -> None:
    """The picture on which two processes died fails alone; what lay beside it comes."""
    before = children(os.getpid())
    loader = make(1)
    loader.submit(copies.hang("deadly"))
    for number in range(3):
        loader.submit(copies.item(number))
    for _ in range(2):
        with being_read(copies.locate("deadly")):
            (pid,) = started(1, before)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda gone=pid: not exists(gone))  # type: ignore[misc]
    outcomes = {loaded.item.id: loaded for loaded in take(loader, 4)}
    assert sorted(outcomes) == [-1, 0, 1, 2]
    deadly = outcomes.pop(-1)
    assert deadly.data is None
    assert type(deadly.error) is ImageLoaderCrashedError
    assert "SIGKILL" in str(deadly.error)
    for loaded in outcomes.values():
        copies.check(loaded)


def test_a_picture_that_hangs_is_given_up(make: Maker, copies: Copies) -> None:
    """A process that is overdue is ended, and so is the next one; then the picture fails and the others come."""
    loader = make(1, picture_timeout_s=0.5)
    loader.submit(copies.hang("endless"))
    loader.submit(copies.item(1))
    outcomes = {loaded.item.id: loaded for loaded in take(loader, 2)}
    assert type(outcomes[-1].error) is ImageLoaderCrashedError
    assert "took too long" in str(outcomes[-1].error)
    copies.check(outcomes[1])


@both
def test_a_fault_of_ours_is_no_endless_wait(make: Maker, copies: Copies, processes: int) -> None:
    """What is neither the picture's fault nor foreseen fails the item, and the engine is told."""
    loader = make(processes, PixelPlan(56, 56, 56, 99, 4.0))
    loader.submit(copies.item(1))
    (loaded,) = take(loader, 1)
    assert type(loaded.error) is ImageLoaderCrashedError
    assert ("exit code 1" if processes else "99 is not a valid Resampling") in str(loaded.error)


def test_what_is_discarded_never_comes(make: Maker, copies: Copies) -> None:
    """After discarding, nothing that was ready, in work or waiting is taken; only what is submitted then."""
    loader = make(1, picture_timeout_s=1.0)
    loader.submit(copies.item(0))
    wait_for(lambda: not loader._done.empty())
    loader.submit(copies.hang("in work"))
    loader.submit(copies.item(1))
    with being_read(copies.locate("in work")):
        loader.discard()
        assert (loader.pending, loader.take(0.01)) == (0, [])
        loader.submit(copies.item(11))
        assert loader.pending == 1
    (loaded,) = take(loader, 1)
    assert loaded.item.id == 11
    copies.check(loaded)


def test_a_thread_discards_too(make: Maker, copies: Copies) -> None:
    """Without processes, what was ready or waiting when it was discarded is not taken either."""
    loader = make(0)
    loader.submit(copies.item(0))
    wait_for(lambda: not loader._done.empty())
    for number in range(100):
        loader.submit(copies.item(number))
    loader.discard()
    loader.submit(copies.item(11))
    (loaded,) = take(loader, 1)
    assert loaded.item.id == 11
    assert loader.take(0.01) == []


def test_closing_ends_busy_processes(make: Maker, copies: Copies) -> None:
    """Closing does not wait for a picture in work, leaves no process and may be done twice."""
    before = children(os.getpid())
    loader = make(2)
    loader.submit(copies.hang("endless"))
    for number in range(100):
        loader.submit(copies.item(number))
    pids = started(2, before)
    with being_read(copies.locate("endless")):
        loader.close()
    assert not any(exists(pid) for pid in pids)
    loader.close()
    assert (loader.pending, loader.take(1)) == (0, [])
    with pytest.raises(EtlError, match="closed"):
        loader.submit(copies.item(1))


def test_closing_ends_a_process_that_stands_still(make: Maker, copies: Copies) -> None:
    """Closing does not wait for the rest of an answer of which a stopped process has sent a part."""
    before = children(os.getpid())
    loader = make(1, PixelPlan(4000, 4000, 4000, Image.Resampling.NEAREST, 4.0))
    (pid,) = started(1, before)
    at_first = resident()
    loader.submit(copies.item(1))
    wait_for(lambda: resident() > at_first + 4_000_000, pause_s=0.0005)
    os.kill(pid, signal.SIGSTOP)
    assert loader.take(0.3) == [], "the answer is on its way"
    loader.close()
    assert not exists(pid)


def resident() -> int:
    """Return this process's memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class StrangePlan(PixelPlan):
    """A plan that no process understands."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("no plan",)


def test_processes_that_cannot_be_started(make: Maker, copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes end at their start again and again, or none can be made, taking says so instead of waiting."""
    loader = make(1, StrangePlan(56, 56, 56, 3, 4.0))
    loader.submit(copies.item(1))
    for _ in range(2):
        with pytest.raises(EtlError, match="an image loader cannot be started: exit code 1"):
            loader.take(30)
    late = make(1, start_timeout_s=0.0001)
    late.submit(copies.item(1))
    with pytest.raises(EtlError, match="an image loader cannot be started: it took too long"):
        late.take(30)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    none = make(1)
    none.submit(copies.item(1))
    with pytest.raises(EtlError, match="a loader process cannot be started"):
        none.take(30)


def test_processes_are_light_and_yield(make: Maker, copies: Copies) -> None:
    """An image loader imports none of the heavy libraries; it yields to the engine, and the decoders yield to it."""
    before = children(os.getpid())
    loader = make(1)
    loader.submit(copies.item(1))
    take(loader, 1)
    (pid,) = started(1, before)
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    assert 0 < NICENESS <= decoder.NICENESS
    done = subprocess.run(
        [sys.executable, "-c", "import etl.caption.pictures.loader_worker, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert not {"torch", "transformers", "httpx2", "sqlite_utils", "numpy", "jinja2"} & set(done.stdout.split())
