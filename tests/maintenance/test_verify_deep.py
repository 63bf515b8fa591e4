"""`verify --deep`: every kind of damage is named, and nothing that is right is taken for one."""

import gzip
import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image
from support.cached import CachedState
from support.common_check import check_export, check_state
from support.workbench import encoded

from etl.compression import zstd
from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.export.check import ExportFound
from etl.export.stage import ExportOptions, export
from etl.maintenance.verify import VerifySummary, verify
from etl.state.checks import EXAMPLES
from etl.state.images import EvictionReason
from etl.state.read.reader import Reader

KEYS = "0123"


def write_export(state: CachedState, output: Path, options: ExportOptions | None = None) -> None:
    """Export the state as a run of its own."""
    with state.store.run((Stage.EXPORT,)) as run:
        with Reader(state.store.directory) as reader:
            summary, recipe = export(reader, str(output), options or ExportOptions())
        state.store.record_export(run, summary, recipe)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four records, captioned and exported, in a directory to be copied."""
    directory = tmp_path_factory.mktemp("made")
    with CachedState(directory) as state:
        state.ingest(*KEYS)
        state.fetch(originals=True)
        state.caption()
        write_export(state, directory / "out.jsonl")
    return directory


@pytest.fixture
def state(made: Path, tmp_path: Path) -> Iterator[CachedState]:
    """A copy of that state, with its export beside it."""
    directory = tmp_path / "copy"
    shutil.copytree(made, directory)
    execute(directory / "state", "UPDATE exports SET path = ?", str(directory / "out.jsonl"))
    with CachedState(directory) as copy:
        yield copy


def execute(directory: Path, sql: str, *arguments: object) -> None:
    """Change the database behind the program's back, whatever its constraints say."""
    with closing(sqlite3.connect(directory / "state.db", isolation_level=None)) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        assert database.execute(sql, arguments).rowcount != 0


def output_of(state: CachedState) -> Path:
    """Return the export beside the state."""
    return state.store.directory.parent / "out.jsonl"


def deep(state: CachedState) -> VerifySummary:
    """Verify everything."""
    return verify(state.store, deep=True)


SQL = {
    "a source is left running": (
        "UPDATE sources SET status = 'running', lease_run = 1 WHERE id = 1", "running, or", "source 1 of record 0",
    ),
    "a caption is left running": ("UPDATE captions SET status = 'running' WHERE id = 2", "running, or", "of record 1"),
    "a finished source is leased": ("UPDATE sources SET lease_run = 1 WHERE id = 3", "running, or", "of record 2"),
    "a finished caption is leased": ("UPDATE captions SET lease_run = 1 WHERE id = 4", "running, or", "of record 3"),
    "a run never ended": ("UPDATE runs SET ended_at = NULL WHERE id = 1", "without an end", "run "),
    "a source is dead of nothing": ("UPDATE sources SET status = 'dead' WHERE id = 1", "failed with", "of record 0"),
    "a caption is dead of nothing": ("UPDATE captions SET status = 'dead' WHERE id = 1", "failed with", "of record 0"),
    "a record is invalid for nothing": ("UPDATE records SET state = 'invalid' WHERE id = 1", "invalid", "record 0"),
    "a caption has no text": ("UPDATE captions SET text = NULL WHERE id = 1", "done without text", "of record 0"),
    "a caption is empty": ("UPDATE captions SET text = '' WHERE id = 1", "done without text", "of record 0"),
    "a caption has no tokens": ("UPDATE captions SET tokens = NULL WHERE id = 1", "done without text", "of record 0"),
    "a caption has no time": ("UPDATE captions SET done_at = NULL WHERE id = 1", "done without text", "of record 0"),
    "a caption has no run": ("UPDATE captions SET run = NULL WHERE id = 1", "done without text", "of record 0"),
    "a caption succeeded twice": (
        "INSERT INTO attempts (stage, item, n, run, started_at, ended_at) VALUES ('caption', 3, 2, 1, 1, 1)",
        "with several successes", "caption item 3",
    ),
    "a picture was fetched twice": (
        "INSERT INTO attempts (stage, item, n, run, started_at, ended_at) VALUES ('fetch', 3, 2, 1, 1, 1)",
        "with several successes", "fetch item 3",
    ),
    "a caption was made and not on record": (
        "DELETE FROM attempts WHERE stage = 'caption' AND item = 1", "done, but not by", "of record 0",
    ),
    "a caption was overwritten": ("UPDATE captions SET done_at = done_at + 1 WHERE id = 1", "done, but", "of record 0"),
    "a caption was made again unasked": (
        "INSERT INTO earlier_captions (caption, text, flags) VALUES (2, 'Before.', '')", "made again", "of record 1",
    ),
    "a source is asleep though needed": ("UPDATE sources SET status = 'cancelled' WHERE id = 1", "stuck", "record 0"),
    "a missing picture is not fetched": ("UPDATE images SET state = 'missing' WHERE id = 1", "stuck", "record 0"),
    "a record has no source": ("UPDATE records SET source = NULL WHERE id = 4", "stuck", "record 3"),
    "a record has no prompt": ("UPDATE records SET prompt = NULL WHERE id = 4", "stuck", "record 3"),
    "a stored line was changed": (
        "UPDATE record_lines SET line = CAST(replace(line, 'a.example', 'b.example') AS BLOB) WHERE record = 2",
        "line", "record 1",
    ),
    "a stored line is lost": ("DELETE FROM record_lines WHERE record = 2", "line", "record 1"),
    "a picture has another width": ("UPDATE images SET working_width = 5 WHERE id = 1", "no good", "image 1 ("),
    "a picture has another height": ("UPDATE images SET working_height = 4 WHERE id = 1", "x 3 pixels, not 4 x 4", ""),
    "a counter is wrong": ("UPDATE counters SET n = n + 1 WHERE stage = 'sources' AND status = 'done'", "counter", "5"),
    "an outcome is wrong": ("UPDATE records SET outcome = 'pending' WHERE id = 1", "1 records with an outcome", ""),
    "a row points nowhere": ("UPDATE sources SET image = 99 WHERE id = 1", "sources row 1 points", "images"),
    "a status is no status": ("UPDATE captions SET status = 'x' WHERE id = 1", "integrity: CHECK", "captions"),
}  # fmt: skip


@pytest.mark.parametrize("damage", SQL)
def test_each_damage_to_the_database_is_named(state: CachedState, damage: str) -> None:
    """What is wrong with which row is one line; `verify` without --deep would have passed most of them."""
    sql, what, where = SQL[damage]
    execute(state.store.directory, sql)
    problems = deep(state).problems
    assert any(what in problem and where in problem for problem in problems), problems


def test_a_sound_state_has_no_problems(state: CachedState) -> None:
    """Nothing is found, nothing is touched, and the export is read again."""
    before = state.files()
    found = deep(state)
    assert (found.problems, found.export, found.damaged, found.requeued) == ((), ExportFound.COMPARED, 0, 0)
    assert state.files() == before


def test_many_rows_with_one_fault_make_one_line(tmp_path: Path) -> None:
    """The first are named, the others counted."""
    with CachedState(tmp_path) as state:
        state.ingest(*"0123456789")
        execute(state.store.directory, "UPDATE sources SET lease_run = NULL, status = 'dead'")
        [problem] = deep(state).problems
    assert problem.count("record ") == EXAMPLES and problem.endswith("and 5 more")


HALF = encoded(Image.effect_noise((64, 64), 50).convert("RGB"))[:1500]
"""A picture whose header is right and whose end is missing."""


@pytest.mark.parametrize(("garbage", "size"), [(b"no picture at all", 4), (HALF, 64)], ids=["no picture", "half"])
def test_a_working_copy_that_does_not_decode_is_fetched_again(state: CachedState, garbage: bytes, size: int) -> None:
    """Its hash is right, so only decoding tells; the picture goes back into the fetch queue."""
    sha256 = hashlib.sha256(garbage).hexdigest()
    state.cache.remove(state.working_path("2"))
    execute(
        state.store.directory, "UPDATE images SET working_sha256 = ?1, working_bytes = ?2, working_width = ?3, "
        "working_height = ?3 WHERE id = 3", sha256, len(garbage), size,
    )  # fmt: skip
    state.cache.put_working(garbage)
    assert verify(state.store).damaged == 0
    found = deep(state)
    assert (found.damaged, found.requeued) == (1, 1)
    assert any(f"{sha256}.jpg: it cannot be decoded" in problem for problem in found.problems)
    assert state.ready() == {"2"} and not state.cache.working_path(sha256).exists()


def edit(state: CachedState, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of the export, and make the database believe that it wrote them so."""
    output = output_of(state)
    output.write_bytes(b"".join(change(output.read_bytes().splitlines(keepends=True))))
    sha256 = hashlib.sha256(output.read_bytes()).hexdigest()
    execute(state.store.directory, "UPDATE exports SET sha256 = ?", sha256)


EDITS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str, str]] = {
    "first lost": (lambda x: x[1:], "missing from", "record 0"),
    "one lost": (lambda x: x[:2] + x[3:], "missing from", "record 2"),
    "last lost": (lambda x: x[:-1], "missing from", "record 3"),
    "all lost": (lambda _: [], "missing from", "record 0, record 1, record 2, record 3"),
    "one twice": (lambda x: [x[0], *x], "twice, or out of", "line 2"),
    "last twice": (lambda x: [*x, x[3]], "twice, or out of", "line 5"),
    "twice, far away": (lambda x: [*x, x[0]], "twice, or out of", "line 5"),
    "two exchanged": (lambda x: [x[0], x[2], x[1], x[3]], "missing from", "record 1"),
    "no JSON": (lambda x: [b"x\n", *x[1:]], "missing from", "record 0"),
    "another caption": (lambda x: [x[0].replace(b"A street", b"A stream"), *x[1:]], "does not hold", "record 0"),
    "caption lost": (lambda x: [x[0].replace(b'"A street."', b"null"), *x[1:]], "without its caption", "record 0"),
    "other fields": (lambda x: [x[0].replace(b"a.example", b"b.example"), *x[1:]], "missing from", "record 0"),
}


@pytest.mark.parametrize("name", EDITS)
def test_each_damage_to_the_export_is_named(state: CachedState, name: str) -> None:
    """The line or the record is named, and the file."""
    change, what, where = EDITS[name]
    edit(state, change)
    problems = deep(state).problems
    assert any(what in problem and where in problem and "out.jsonl" in problem for problem in problems), problems


def test_captions_of_other_records_are_not_those_of_this_one(tmp_path: Path) -> None:
    """Two captions that changed places are both named."""
    with CachedState(tmp_path) as state:
        state.ingest(*KEYS)
        state.fetch()
        state.caption()
        execute(state.store.directory, "UPDATE captions SET text = 'Caption ' || id")
        write_export(state, output_of(state))
        assert deep(state).problems == ()
        edit(
            state,
            lambda x: [x[0].replace(b"Caption 1", b"Caption 2"), x[1].replace(b"Caption 2", b"Caption 1"), *x[2:]],
        )
        [problem] = deep(state).problems
        assert "record 0, record 1" in problem


def test_an_export_that_is_not_what_was_written_is_a_problem(state: CachedState) -> None:
    """Cut, edited or replaced, its file is named with what to do; another form of export in its place is none."""
    output = output_of(state)
    output.write_bytes(output.read_bytes()[:-10])
    found = deep(state)
    [problem] = found.problems
    assert (found.export, str(output) in problem, "run `etl export` again" in problem) == (
        ExportFound.CHANGED, True, True,
    )  # fmt: skip
    write_export(state, output, ExportOptions(format="csv"))
    assert (deep(state).export, deep(state).problems) == (ExportFound.NONE, ())


def test_an_export_that_cannot_be_compared_is_no_problem(state: CachedState) -> None:
    """Gone, or older than the records: it is said, and nothing is wrong."""
    output = output_of(state)
    whole = output.read_bytes()
    output.unlink()
    assert (deep(state).export, deep(state).problems) == (ExportFound.GONE, ())
    output.write_bytes(whole)
    with state.store.run((Stage.INGEST,)):
        state.ingest("0", "1", "4")
    assert (deep(state).export, deep(state).problems) == (ExportFound.OLDER, ())
    assert any("may have changed" in line for line in deep(state).lines())


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_export_is_read_too(state: CachedState, suffix: str) -> None:
    """A line that was lost is found in it; a file cut short is another file."""
    output = output_of(state).with_suffix(suffix)
    write_export(state, output)
    assert (deep(state).export, deep(state).problems) == (ExportFound.COMPARED, ())
    packed = output.read_bytes()
    module = gzip if suffix == ".gz" else zstd
    fewer = b"".join(module.decompress(packed).splitlines(keepends=True)[1:])
    output.write_bytes(module.compress(fewer))
    execute(state.store.directory, "UPDATE exports SET sha256 = ?", hashlib.sha256(fewer).hexdigest())
    assert any("record 0" in problem for problem in deep(state).problems)
    output.write_bytes(packed[:-5])
    assert deep(state).export is ExportFound.CHANGED


def test_an_export_of_captions_alone_lacks_only_what_had_none(tmp_path: Path) -> None:
    """Records that were not captioned are not missed; one that was captioned, and is not in it, is."""
    with CachedState(tmp_path) as state:
        state.ingest(*KEYS)
        state.fetch()
        state.caption("0", "2")
        write_export(state, output_of(state), ExportOptions(only_captioned=True))
        # In the order in which a user may do it: what came later is not missed either.
        state.caption()
        assert (deep(state).export, deep(state).problems) == (ExportFound.COMPARED, ())
        edit(state, lambda x: x[:1])
        [problem] = deep(state).problems
        assert "missing from" in problem and "record 2" in problem and "record 1" not in problem


def test_what_is_done_on_purpose_is_no_damage(state: CachedState) -> None:
    """Failures that were retried, captions made again, other recipes, evicted pictures and lost ones: all sound."""

    def assert_sound(export: ExportFound = ExportFound.COMPARED) -> None:
        found = deep(state)
        assert (found.problems, found.export) == ((), export)

    for _ in range(2):
        execute(state.store.directory, "UPDATE captions SET flags = 'repetition' WHERE id IN (1, 2)")
        state.store.recaption(FailureFilter(flag=QualityFlag.REPETITION))
        assert_sound()
        state.caption("0")
        assert_sound()
        state.caption()
    write_export(state, output_of(state))
    state.use_recipe("two")
    state.caption(dead="1")
    assert_sound()
    state.retry()
    state.caption()
    for sha256 in state.store.images().evict(EvictionReason.CAPTIONED, [1, 2]):
        state.cache.remove(state.cache.working_path(sha256))
    assert_sound()
    state.use_recipe("three")
    assert_sound()
    state.working_path("3").unlink()
    assert deep(state).missing == 1
    assert_sound()
    state.fetch()
    state.caption()
    assert_sound(ExportFound.OLDER)


def test_the_common_check_fails_where_the_program_finds_nothing(state: CachedState) -> None:
    """What tests check after faults is the program's own verdict, and more: orphans, order and number of the keys."""
    directory, output = state.store.directory, output_of(state)
    state.store.close()
    found = check_state(directory, output=output, keys=list(KEYS))
    assert found is not None and found.captioned == dict.fromkeys(KEYS, "A street.") and found.failed == {}
    for keys in ("1023", "012", "01234"):
        with pytest.raises(AssertionError, match="out of order"):
            check_export(output, list(keys))
    stray = state.cache.root / "stray"
    stray.write_bytes(b"x")
    with pytest.raises(AssertionError, match="orphans"):
        check_state(directory)
    stray.unlink()
    execute(directory, "UPDATE captions SET tokens = NULL WHERE id = 1")
    with pytest.raises(AssertionError, match="done without text, tokens"):
        check_state(directory)
