"""An image cache that is not there, or goes in the midst of a run, and single files of it that are gone or bad."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.common_check import check_state
from support.etl_process import Ended, Program, wait_for_done
from support.fault_server import Exchange, FaultServer, ok, status
from support.watching import wait_for
from support.workbench import OpeningCaptioner, PlainCaptioner, Workbench, scenes, write_manifest
from support.zygote import Zygote

from etl.caption.stage import caption
from etl.domain.items import CaptionItem, ItemFailure
from etl.domain.statuses import Stage
from etl.domain.views import StageSummary
from etl.errors import CacheMissingError, StateError
from etl.export.stage import ExportOptions
from etl.fetch.stage import fetch
from etl.images.cache import ImageCache
from etl.maintenance.verify import verify
from etl.run.pipeline import export_manifest
from etl.run.supervisor import run_stages
from etl.run_control import RunControl
from etl.state.store import Store

pytestmark = pytest.mark.usefixtures("forked_decoders")

PICTURES = 6
KEYS = [f"r{n}" for n in range(PICTURES)]


@pytest.fixture
def fetched(tmp_path: Path) -> Workbench:
    """A state with its pictures, of local files, the first two of them captioned."""
    for n, (_, body) in enumerate(scenes(PICTURES)):
        (tmp_path / f"{n}.jpg").write_bytes(body)
    bench = Workbench(tmp_path, batch_size=2, longest_edge=224)
    bench.ingest(*({"id": key, "path": f"{n}.jpg"} for n, key in enumerate(KEYS)))
    assert bench.fetch().done == PICTURES
    control, captioner = RunControl(), OpeningCaptioner(bench.state)
    captioner.before = lambda _: control.stop() if captioner.captions else None
    assert bench.caption(captioner, control).done == 2
    return bench


def working_path(bench: Workbench, source: int) -> Path:
    """Return where the working copy of a source lies."""
    [(sha256,)] = bench.rows(
        "SELECT i.working_sha256 FROM images i JOIN sources s ON s.image = i.id WHERE s.id = ?", source
    )
    return ImageCache.of_state(bench.state).working_path(sha256)


def complete(bench: Workbench) -> None:
    """Caption the rest, export, and check all that must hold then."""
    bench.caption(OpeningCaptioner(bench.state))
    output = bench.state.parent / "out.jsonl"
    export_manifest(bench.settings, str(output), ExportOptions())
    program = Program(bench.state.parent)
    check = program.here("verify", "--deep", "--json")
    found = json.loads(check.stdout)
    assert (check.code, found["problems"], found["missing"], found["orphans"]) == (0, [], 0, 0)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == KEYS
    assert all(line["vlm_caption"] for line in lines)


def not_mounted(images: Path) -> None:
    """Leave the mount point."""
    images.mkdir()


def another(images: Path) -> None:
    """Mount the cache of a state that has fetched nothing yet."""
    ImageCache(images).prepare()


def emptied(images: Path) -> None:
    """Leave the directory of working copies, and nothing in it."""
    (images / "working").mkdir(parents=True)


LOSSES = {"not mounted": not_mounted, "emptied": emptied, "another": another}
"""What is found in the place of the cache; nothing at all for any other name."""


def assert_missing(ended: Ended, images: Path, pictures: int = PICTURES) -> None:
    """The answer is exit code 5 and one line: what was looked for, how many are counted, what to do."""
    assert (ended.code, ended.stdout) == (5, ""), ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    said = (
        str(images / "working"),
        f"counts {pictures} pictures",
        "mount",
        f"etl verify --accept-missing --state {images.parent}",
    )
    assert all(words in lines[0] for words in said), lines


@pytest.mark.parametrize("loss", ["gone", *LOSSES])
def test_without_its_cache_no_command_changes_anything(fetched: Workbench, loss: str) -> None:
    """Each command that needs the pictures says what is missing; with the cache back, the work goes on as it was."""
    images, away = fetched.state / "images", fetched.state.parent / "away"
    images.rename(away)
    if loss in LOSSES:
        LOSSES[loss](images)
    was = sorted(images.rglob("*"))
    tables = ("images", "sources", "captions", "attempts", "splits")
    rows = [fetched.rows(f"SELECT * FROM {table} ORDER BY id") for table in tables]
    program = Program(fetched.state.parent)
    folder, page = fetched.state.parent / "folder", fetched.state.parent / "page.html"
    commands: list[tuple[object, ...]] = [
        ("fetch", "-q"), ("caption", "-q"), ("run", "-q"), ("verify",), ("gc",), ("gc", "--dry-run"),
        ("split", 2, fetched.state.parent / "parts"), ("report", "--output", page),
        ("export", folder, "--format", "imagefolder"), ("export", folder, "--format", "webdataset"),
    ]  # fmt: skip
    for words in commands:
        assert_missing(program.here(*words), images)
    assert not folder.exists() and not page.exists()
    assert [fetched.rows(f"SELECT * FROM {table} ORDER BY id") for table in tables] == rows
    assert sorted(images.rglob("*")) == was
    assert program.here("export", "-q", "plain.jsonl").code == 0, "lines alone need no pictures"
    assert program.here("report", "--output", page, "--thumbnail", "0").code == 0

    shutil.rmtree(images, ignore_errors=True)
    away.rename(images)
    complete(fetched)


def test_a_cache_that_is_gone_for_good_is_fetched_again(fetched: Workbench) -> None:
    """With consent `verify` lets go of all its pictures; fetch brings them, captions that were made stay."""
    shutil.rmtree(fetched.state / "images")
    made = fetched.rows("SELECT id, text, done_at FROM captions WHERE status = 'done'")
    with Store.open(fetched.settings) as store:
        with pytest.raises(CacheMissingError):
            verify(store)
        found = verify(store, accept_missing=True)
    assert (found.missing, found.requeued) == (PICTURES, PICTURES)
    assert fetched.fetch().done == PICTURES
    complete(fetched)
    assert set(made) <= set(fetched.rows("SELECT id, text, done_at FROM captions"))


def test_a_part_without_its_cache_is_not_merged(tmp_path: Path) -> None:
    """What it fetched is not given up for lost: it is merged when its pictures are there again."""
    for n, (_, body) in enumerate(scenes(PICTURES)):
        (tmp_path / f"{n}.jpg").write_bytes(body)
    whole, program = Workbench(tmp_path, longest_edge=224), Program(tmp_path)
    whole.ingest(*({"id": key, "path": f"{n}.jpg"} for n, key in enumerate(KEYS)))
    assert program.here("split", 2, tmp_path / "parts").code == 0
    part = Workbench(tmp_path, longest_edge=224, state=tmp_path / "parts" / "part-1")
    given = part.fetch().done
    (part.state / "images").rename(tmp_path / "away")
    assert_missing(program.here("merge", part.state), part.state / "images", given)
    assert whole.counts("sources") == {"ready": PICTURES}
    (tmp_path / "away").rename(part.state / "images")
    assert program.here("merge", part.state).code == 0
    assert 0 < given < PICTURES
    assert whole.fetch().done == PICTURES - given
    complete(whole)


def test_a_copy_that_was_cut_short_is_noticed(tmp_path: Path) -> None:
    """Where most pictures are missing, the cache is not taken for whole; where a few are, for one that lacks a few."""
    for n, (_, body) in enumerate(scenes(20)):
        (tmp_path / f"{n}.jpg").write_bytes(body)
    bench = Workbench(tmp_path, longest_edge=64)
    bench.ingest(*(str(tmp_path / f"{n}.jpg") for n in range(20)))
    bench.fetch()
    files = sorted(bench.files("working"))
    for file in files[:9]:
        file.unlink()
    with Store.open(bench.settings) as store:
        assert verify(store).requeued == 9
    assert bench.fetch().done == 9
    for file in files[:11]:
        file.unlink()
    with Store.open(bench.settings) as store, pytest.raises(CacheMissingError, match="11 of 20 pictures"):
        verify(store)


def test_an_evicted_cache_is_not_missed(fetched: Workbench) -> None:
    """Pictures that went to make room, or are known to be missing, are not counted: nothing is there to be lost."""
    complete(fetched)
    program = Program(fetched.state.parent)
    assert program.here("gc", "--captioned").code == 0
    shutil.rmtree(fetched.state / "images")
    assert program.here("verify").code == 0
    assert fetched.fetch() == StageSummary()


def test_a_cache_renamed_while_captions_are_made(fetched: Workbench) -> None:
    """The run stops, charges nothing and makes no new cache; what was captioned counts, and the rest is done later."""
    images, away = fetched.state / "images", fetched.state.parent / "away"
    captioner = OpeningCaptioner(fetched.state)
    captioner.before = lambda _: images.rename(away) if captioner.captions == 2 and images.exists() else None
    with pytest.raises(CacheMissingError, match=f"counts {PICTURES} pictures"):
        fetched.caption(captioner)
    rest = fetched.rows("SELECT status, attempts, crashes, lease_run FROM captions WHERE status <> 'done'")
    assert rest == [("ready", 0, 0, None)] * 2
    assert not images.exists()
    assert fetched.rows("SELECT DISTINCT state FROM images") == [("present",)]
    away.rename(images)
    complete(fetched)


@pytest.mark.parametrize("which", ["images", pytest.param("images/working", marks=pytest.mark.soak)])
def test_a_cache_renamed_while_pictures_are_fetched(tmp_path: Path, plain_zygote: Zygote, which: str) -> None:
    """The run stops with exit code 5, charges nobody and makes no new one beside it; with it back, it goes on."""
    program = Program(tmp_path, zygote=plain_zygote, per_host=1)
    moved, away = program.state / which, tmp_path / "away"

    def held(exchange: Exchange) -> None:
        exchange.closing.wait(0.1)
        ok(exchange)

    with FaultServer() as server:
        urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(15))]
        for n in range(15):
            server.fail(f"/{n}.jpg", held)
        records = [{"id": f"r{n}", "url": url} for n, url in enumerate(urls)]
        assert program.run("ingest", write_manifest(tmp_path / "manifest.jsonl", records)).code == 0
        with program.start("fetch", "-q") as run:
            wait_for_done(program, run, "sources", 3)
            moved.rename(away)
            ended = run.wait()
        assert ended.code == 5, ended.stderr
        assert ended.stderr.count("\n") == 1 and "taken away during the run" in ended.stderr, ended.stderr
        assert not moved.exists()
        states = program.rows("SELECT DISTINCT status, attempts, crashes FROM sources ORDER BY status")
        assert states == [("done", 1, 0), ("ready", 0, 0)]
        assert program.run("fetch", "-q").code == 5
        away.rename(moved)
        assert program.run("fetch", "-q").code == 0
    Workbench(tmp_path, longest_edge=224).caption(PlainCaptioner())
    assert program.run("export", tmp_path / "out.jsonl").code == 0
    check_state(program.state, output=tmp_path / "out.jsonl", keys=[f"r{n}" for n in range(15)], program=program)


def spoil(path: Path, how: int) -> None:
    """Delete a file, cut it, or garble it without changing its size."""
    content = path.read_bytes()
    path.unlink()
    if how == 1:
        path.write_bytes(content[: len(content) // 2])
    elif how == 2:
        path.write_bytes(b"\0" * len(content))


def test_single_pictures_heal_within_one_run_of_the_program(tmp_path: Path, zygote: Zygote) -> None:
    """Gone, cut and garbled ones are downloaded again beside the captioning of the others; all are captioned once."""
    program, output = Program(tmp_path, zygote=zygote), tmp_path / "out.jsonl"
    bench = Workbench(tmp_path)
    with FaultServer() as server:
        urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(PICTURES))]
        records = [{"id": key, "url": url} for key, url in zip(KEYS, urls, strict=True)]
        assert program.run("ingest", write_manifest(tmp_path / "manifest.jsonl", records)).code == 0
        assert program.run("fetch", "-q").code == 0
        for how in range(3):
            spoil(working_path(bench, how + 2), how)
        ended = program.run("run", "--json", "--output", output, timeout_s=120)
        assert ended.code == 0, ended.stderr
        assert server.requests == {f"/{n}.jpg": 2 if n in (1, 2, 3) else 1 for n in range(PICTURES)}
    stages = json.loads(ended.stdout)["stages"]
    assert (stages["fetch"]["done"], stages["caption"]["done"], stages["caption"]["lost"]) == (3, PICTURES, 3)
    assert program.rows("SELECT DISTINCT status, attempts, crashes FROM captions") == [("done", 1, 0)]
    exported = check_state(program.state, output=output, keys=KEYS, program=program)
    assert exported is not None and not exported.failed


def test_captioning_alone_says_who_waits(fetched: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fetch in the same run, captions of lost pictures are left waiting, and a line says what to run."""
    working_path(fetched, 4).unlink()
    # Seconds of a core for a model, and no other words.
    monkeypatch.setattr("etl.run.pipeline.open_captioner", lambda *_: OpeningCaptioner(fetched.state))
    program = Program(fetched.state.parent)
    ended = program.here("caption")
    assert ended.code == 3, ended.stderr
    assert "1 caption waits for pictures that are not in the cache: run `etl fetch --state" in ended.stderr
    again = program.here("caption")
    assert (again.code, "1 caption waits for pictures" in again.stderr) == (3, True)
    assert fetched.fetch().done == 1
    complete(fetched)


def test_what_is_no_file_costs_its_own_picture_alone(fetched: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO in the place of a working copy is a lost picture: the others are captioned, and it is fetched again."""
    path = working_path(fetched, 4)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("etl.run.pipeline.open_captioner", lambda *_: OpeningCaptioner(fetched.state))
    ended = Program(fetched.state.parent).here("caption")
    assert ended.code == 3, ended.stderr
    assert fetched.counts("captions")["done"] == PICTURES - 1
    assert not path.exists()
    assert fetched.fetch().done == 1
    complete(fetched)


def test_all_captions_of_a_lost_picture_wait_for_it(tmp_path: Path) -> None:
    """Two prompts for one picture: both wait, it is fetched again once, and both are captioned."""
    (tmp_path / "0.jpg").write_bytes(scenes(1)[0][1])
    bench = Workbench(tmp_path, batch_size=1)
    bench.ingest(*({"id": title, "title": title, "path": "0.jpg"} for title in ("A boat", "A house")))
    bench.fetch()
    working_path(bench, 1).unlink()
    assert bench.caption(OpeningCaptioner(bench.state)).done == 0
    assert bench.counts("captions") == {"cancelled": 2}
    assert bench.fetch() == StageSummary(done=1)
    assert bench.caption(OpeningCaptioner(bench.state)) == StageSummary(done=2)


def test_a_lost_picture_that_cannot_be_had_again_fails_as_its_source_does(tmp_path: Path) -> None:
    """A 404 is what its record fails with; the others are captioned."""
    bench = Workbench(tmp_path)
    with FaultServer() as server:
        bench.ingest(*(server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(3))))
        bench.fetch()
        working_path(bench, 2).unlink()
        server.fail("/1.jpg", status(404))
        assert bench.caption(OpeningCaptioner(bench.state)) == StageSummary(done=2, lost=1)
        bench.fetch()
    assert bench.rows("SELECT s.error_class FROM sources s WHERE status = 'dead'") == [("http_404",)]
    assert bench.rows("SELECT outcome, count(*) FROM records GROUP BY outcome") == [("captioned", 2), ("failed", 1)]


def test_a_disk_that_loses_a_picture_again_and_again_ends_the_matter(fetched: Workbench) -> None:
    """A picture is fetched again once in a run; lost a second time, its caption fails, and everything else is done."""
    bad = working_path(fetched, 5)
    captioner = OpeningCaptioner(fetched.state, lambda item: bad.unlink() if item.working_sha256 in bad.name else None)
    settings = fetched.settings
    with Store.open(settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
        result = run_stages(store, run, {
            Stage.FETCH: lambda store, run, control: fetch(store, run, settings, control),
            Stage.CAPTION: lambda store, run, control: caption(
                store, run, settings, captioner, control, more_coming=lambda: control.is_active(Stage.FETCH)
            ),
        })  # fmt: skip
    assert result.summaries == {
        Stage.FETCH: StageSummary(done=1), Stage.CAPTION: StageSummary(done=3, dead=1, lost=1)
    }  # fmt: skip
    [(slug, message)] = fetched.rows("SELECT error_class, error FROM captions WHERE status = 'dead'")
    assert slug == "working_copy" and "though this run had it fetched again" in message

    with Store.open(settings) as store:
        assert verify(store).requeued == 1
    assert fetched.fetch().done == 1
    complete(fetched)


def test_a_whole_file_that_cannot_be_opened_is_charged(fetched: Workbench) -> None:
    """Fetched again it would be the same: it is tried as often as any failure that may pass, and not downloaded."""
    captioner = OpeningCaptioner(fetched.state)
    number = fetched.rows("SELECT min(id) FROM captions WHERE status = 'ready'")[0][0]

    class Failing(OpeningCaptioner):
        def caption(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            for result in super().caption(*arguments, **more):
                wrong = ItemFailure(
                    id=result.id, slug="working_copy", message="damaged on its way", retryable=True, started_at=0
                )
                yield wrong if result.id == number else result

    captioner = Failing(fetched.state)
    assert fetched.caption(captioner) == StageSummary(done=3, retried=2, dead=1)
    assert fetched.rows("SELECT attempts, error_class FROM captions WHERE status = 'dead'") == [(3, "working_copy")]
    assert fetched.counts("sources") == {"done": PICTURES}
    assert fetched.retry() == {"fetch": 0, "caption": 1}
    complete(fetched)


def test_a_cache_that_may_not_be_read_stops_the_run(fetched: Workbench) -> None:
    """No file is to blame for permissions or open files: one clear line, nothing charged, nothing removed."""

    class Refused(OpeningCaptioner):
        def caption(self, *arguments: Any, **more: Any) -> Iterator[Any]:
            for result in super().caption(*arguments, **more):
                yield ItemFailure(
                    id=result.id,
                    slug="working_copy",
                    message="cannot read it: Permission denied",
                    retryable=True,
                    started_at=0,
                    stops=True,
                )

    files = fetched.files("working")
    with pytest.raises(StateError, match="Permission denied"):
        fetched.caption(Refused(fetched.state))
    rest = fetched.rows("SELECT DISTINCT status, attempts, crashes, lease_run FROM captions WHERE status <> 'done'")
    assert rest == [("ready", 0, 0, None)]
    assert fetched.files("working") == files
    complete(fetched)


def test_fetch_that_ended_begins_again_for_a_late_loss(fetched: Workbench) -> None:
    """A picture that is lost when all are fetched is brought by the same run, without another model being loaded."""
    gone: list[Path] = []

    def lose(item: CaptionItem) -> None:
        if not gone:
            # Everything is fetched by then: fetch has nothing to do in this run.
            wait_for(lambda: not controls[0].is_active(Stage.FETCH))
            gone.append(ImageCache.of_state(fetched.state).working_path(item.working_sha256))
            gone[0].unlink()

    controls: list[RunControl] = []
    settings, captioner = fetched.settings, OpeningCaptioner(fetched.state, lose)

    def captioned(store: Store, run: int, control: RunControl) -> StageSummary:
        controls.append(control)
        return caption(store, run, settings, captioner, control, more_coming=lambda: control.is_active(Stage.FETCH))

    with Store.open(settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
        result = run_stages(store, run, {
            Stage.FETCH: lambda store, run, control: fetch(store, run, settings, control), Stage.CAPTION: captioned,
        })  # fmt: skip
    assert result.summaries == {Stage.FETCH: StageSummary(done=1), Stage.CAPTION: StageSummary(done=4, lost=1)}
    complete(fetched)
