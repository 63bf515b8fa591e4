"""States of every released schema, half done, go on under today's program; also when it dies in the migration."""

import base64
import hashlib
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database
from support.common_check import check_state
from support.etl_process import Program
from support.workbench import OpeningCaptioner, PlainCaptioner, Workbench, scenes
from support.zygote import Zygote

from etl.export.stage import ExportOptions, export
from etl.run.pipeline import export_manifest
from etl.run_control import RunControl
from etl.state.checks import deep_problems
from etl.state.database import DATABASE_NAME, PAGE_SIZE, SCHEMA_VERSION
from etl.state.migrations import migrations
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader

pytestmark = pytest.mark.usefixtures("forked_decoders")

ENDS_BEFORE = {
    1: "0002_hosts_and_mirrors",
    2: "0003_captions_again_and_engine_samples",
    3: "0004_looking",
    4: "0005_splits_and_formats",
    5: "0006_local_roots",
    6: "0007_thinking",
    7: "0008_image_flags",
    8: "0009_skipped",
    9: "0010_own_pictures",
    10: "0011_lines_with_own_pictures",
}
"""The migration before which each released schema ends."""

KEYS = [f"r{n}" for n in range(7)]

RECORDS = [{"id": key, "path": f"{n}.jpg"} for n, key in enumerate(KEYS)]

IN_ORDER = (
    "runs", "manifests", "prompts", "recipes", "images", "sources", "captions", "records", "record_lines", "attempts",
    "exports", "commands", "gpu_samples", "hosts", "earlier_captions", "engine_samples", "splits", "split_parts",
    "split_sources", "own_pictures",
)  # fmt: skip
"""Tables, what is pointed to first; counters are kept by triggers."""


def test_every_released_schema_is_known_here() -> None:
    """Whoever adds a migration adds the schema before it to these tests."""
    assert set(ENDS_BEFORE) == set(range(1, SCHEMA_VERSION)), "name the migration that ends the newest released schema"


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A state with captions, pictures without one, a dead picture, some not fetched, and a run that died with two."""
    directory = tmp_path_factory.mktemp("half")
    for n, (_, body) in enumerate(scenes(6)):
        (directory / f"{n}.jpg").write_bytes(body)
    (directory / "6.jpg").write_bytes(b"<html>no picture")
    bench = Workbench(directory, batch_size=2)
    bench.ingest(*RECORDS)
    bench.fetch()
    control, captioner = RunControl(), PlainCaptioner()
    captioner.before = lambda _: control.stop() if captioner.captions else None
    bench.caption(captioner, control)
    bench.execute("UPDATE sources SET status = 'ready', image = NULL WHERE id = 5")
    bench.execute("UPDATE runs SET ended_at = NULL, state = 'running' WHERE id = (SELECT max(id) FROM runs)")
    bench.execute(
        "UPDATE captions SET status = 'running', lease_run = (SELECT max(id) FROM runs) WHERE id IN "
        "(SELECT id FROM captions WHERE status = 'ready' LIMIT 2)"
    )
    return bench


def as_of(version: int, half_done: Workbench, directory: Path) -> Path:
    """Copy the state, with its database as the program of that schema would have left it; return the database."""
    shutil.copytree(half_done.state.parent, directory, dirs_exist_ok=True)
    path = directory / "state" / DATABASE_NAME
    path.unlink()
    old = Database(sqlite3.connect(path, isolation_level=None))
    with closing(old.conn):
        old.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        old.execute("PRAGMA journal_mode = WAL")
        migrations.apply(old, stop_before=ENDS_BEFORE[version])
        old.execute("ATTACH ? AS today", (f"{half_done.state.resolve() / DATABASE_NAME}",))
        for table in IN_ORDER:
            if table not in old.table_names():
                continue
            names = ", ".join(column.name for column in old[table].columns)
            old.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM today.{table}")
        # The test's own copy lies elsewhere, and so do its pictures.
        old.execute("UPDATE sources SET url = replace(url, ?, ?)", (f"{half_done.state.parent}", f"{directory}"))
        old.execute("UPDATE manifests SET path = replace(path, ?, ?)", (f"{half_done.state.parent}", f"{directory}"))
        old.execute(f"PRAGMA user_version = {version}")
    return path


@pytest.mark.parametrize("version", ENDS_BEFORE)
def test_a_state_of_an_earlier_schema_goes_on(
    version: int, half_done: Workbench, tmp_path: Path, plain_zygote: Zygote
) -> None:
    """It can be looked at as it is, its captions are kept, and only what was open is fetched and captioned."""
    as_of(version, half_done, tmp_path)
    bench, captioner, output = Workbench(tmp_path, batch_size=2), PlainCaptioner(), tmp_path / "out.jsonl"
    done = "SELECT id, text, done_at FROM captions WHERE status = 'done' ORDER BY id"
    kept = bench.rows(done)
    with Reader(bench.state) as reader:
        assert reader.version == version
        skipped = {"skipped": 0} if version >= 9 else {}
        assert read_progress(reader).outcomes == {
            "captioned": len(kept), "failed": 1, "pending": 6 - len(kept), **skipped,
        }  # fmt: skip
    assert bench.rows("PRAGMA user_version") == [(version,)], "looking migrates nothing"
    # Nothing proves that a state which names no root was made by this user.
    bench.ingest(*RECORDS)
    assert bench.fetch().done == 1
    assert bench.caption(captioner).done == 6 - len(kept)
    assert 0 < len(kept) < 6
    assert bench.rows("PRAGMA user_version") == [(SCHEMA_VERSION,)]
    assert set(kept) <= set(bench.rows(done))
    assert not {item.id for call in captioner.calls for item in call} & {number for number, *_ in kept}
    export_manifest(bench.settings, str(output), ExportOptions())
    exported = check_state(bench.state, output=output, keys=KEYS, program=Program(tmp_path, zygote=plain_zygote))
    assert exported is not None and exported.failed == {"r6": "not_an_image"}


def test_a_state_of_schema_10_has_its_pictures_put_back(tmp_path: Path) -> None:
    """It is exported as it is and once it was migrated; of what is ingested then, a stranger's names stay."""
    text = base64.b64encode(b"GIF89a" + bytes(90)).decode()
    mark = f"etl-picture-sha256={hashlib.sha256(base64.b64decode(text)).hexdigest()}"
    today, out = tmp_path / "today", tmp_path / "out.jsonl"
    today.mkdir()
    bench = Workbench(today)
    bench.ingest({"id": "a", "image": text})
    line = (today / "manifest.jsonl").read_bytes()
    path = as_of(10, bench, tmp_path / "old")
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        (stored,) = old.execute("SELECT line FROM record_lines").fetchone()
        old.execute("UPDATE records SET line_sha256 = ?", (hashlib.sha256(stored).digest(),))
    old_bench = Workbench(tmp_path / "old")
    with Reader(old_bench.state) as reader:
        export(reader, str(out), ExportOptions())
    assert (out.read_bytes(), mark.encode() in stored) == (line, True)
    other = tmp_path / "other.jsonl"
    other.write_text(f'{{"id": "b", "url": "http://a.example/1.jpg", "x": "{mark}"}}\n')
    old_bench.ingest_path(str(other))
    with Reader(old_bench.state) as reader:
        assert reader.version == SCHEMA_VERSION
        export(reader, str(out), ExportOptions())
        assert not list(deep_problems(reader))
    assert out.read_bytes() == line + other.read_bytes()


@pytest.mark.parametrize("command", [("verify",), ("retry-failed", "--class", "working_copy")])
def test_captions_that_an_earlier_version_gave_up_without_a_picture(
    command: tuple[str, ...], half_done: Workbench, tmp_path: Path
) -> None:
    """Its dead `working_copy` captions are made: at once where the file is there, else once it has been fetched."""
    path = as_of(4, half_done, tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute(
            "UPDATE captions SET status = 'dead', attempts = 1, lease_run = NULL, error_class = 'working_copy', "
            "error = 'the working copy is not in the cache', done_at = 1 WHERE status IN ('ready', 'running')"
        )
        # Of a source that has its image still: pictures come in any order, and one was taken back.
        sql = "SELECT max(c.image) FROM captions c JOIN sources s ON s.image = c.image WHERE c.status = 'dead'"
        [(image,)] = old.execute(sql).fetchall()
        [(sha256,)] = old.execute("SELECT working_sha256 FROM images WHERE id = ?", (image,)).fetchall()
        dead = old.execute("SELECT count(*) FROM captions WHERE status = 'dead'").fetchone()[0]
    (tmp_path / "state" / "images" / "working" / sha256[:2] / f"{sha256}.jpg").unlink()
    bench, program = Workbench(tmp_path, batch_size=2), Program(tmp_path)
    # Nothing proves that a state which names no root was made by this user.
    bench.ingest(*RECORDS)
    # A file that is gone is damage, and told.
    assert program.here(*command).code == (3 if command == ("verify",) else 0)
    if command == ("verify",):
        states = bench.rows("SELECT status, attempts, error_class, count(*) FROM captions WHERE status <> 'done' "
                            "GROUP BY 1 ORDER BY 1")  # fmt: skip
        assert states == [("cancelled", 0, "working_copy", 1), ("ready", 0, None, dead - 1)]
        assert bench.rows("SELECT s.status FROM sources s WHERE image = ?", image) == [("ready",)]
    assert dead > 1
    bench.caption(OpeningCaptioner(bench.state))
    bench.fetch()
    bench.caption(OpeningCaptioner(bench.state))
    assert bench.counts("captions") == {"done": 6}
    assert program.here("verify", "--deep").code == 0


KILLED = """
import os, shutil, signal, sqlite3, sys
from pathlib import Path
from etl.settings import Settings
from etl.state.checks import problems
from etl.state.read.reader import Reader
from etl.state.store import Store
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
connect, left = sqlite3.connect, 0

def count(_):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

def traced(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(count)
    return connection

def ended(work):
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for statement in range(1, 1000):
    state = folder / str(statement)
    state.mkdir()
    shutil.copy(source, state / source.name)
    settings = Settings(state=state)

    def opened():
        global left
        left, sqlite3.connect = statement, traced
        Store.open(settings).close()

    def checked():
        Store.open(settings).close()
        with Reader(state) as reader:
            assert list(problems(reader)) == [], statement
            print(*reader.rows("SELECT status, count(*) FROM captions GROUP BY status ORDER BY status"),
                  *reader.rows("PRAGMA user_version"), flush=True)

    code = ended(opened)
    assert ended(checked) == 0, statement
    shutil.rmtree(state)
    if code != -signal.SIGKILL:
        sys.exit(code)
"""
"""Opens copies of a state, each killed before another one of the statements of its opening, and opens them again."""


@pytest.mark.soak
def test_a_process_that_dies_in_the_migration(half_done: Workbench, tmp_path: Path) -> None:
    """Killed before each statement from the first schema to today's, the next process opens it whole."""
    path = as_of(1, half_done, tmp_path / "old")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = tmp_path / "copies"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, folder], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    states = done.stdout.splitlines()
    assert len(states) > 40, "killed at fewer moments than a migration has statements"
    assert set(states) == {f"('done', 2) ('ready', 4) ({SCHEMA_VERSION},)"}
