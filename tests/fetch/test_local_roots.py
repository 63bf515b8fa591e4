"""Whose word it is that pictures beside a manifest may be read: this user's, on this machine, and no database's."""

import logging
import os
import stat
from pathlib import Path

import pytest
from support.workbench import Workbench, scenes, write_manifest

from etl import local_roots
from etl.local_roots import opened, seal
from etl.maintenance.split import split
from etl.run_control import RunControl
from etl.state.store import Store

pytestmark = pytest.mark.usefixtures("forked_decoders")

FAILED = "SELECT error_class, error FROM sources WHERE status = 'dead'"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where this test's user keeps what programs remember."""
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}/home")
    return tmp_path / "home"


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """Return a state with one picture beside its manifest, not fetched yet."""
    (tmp_path / "a.jpg").write_bytes(scenes(1)[0][1])
    bench = Workbench(tmp_path)
    bench.ingest("a.jpg")
    return bench


def become_another(home: Path) -> None:
    """Let whoever comes next have no secret, or another one: another user, or another machine."""
    (home / "caption-etl" / "secret").unlink()


def test_a_copied_database_opens_no_directory(bench: Workbench, tmp_path: Path, home: Path) -> None:
    """A stranger's database that calls `/` its manifest's directory, with a seal of the stranger's, reads nothing."""
    (tmp_path / "private").mkdir()
    (tmp_path / "a.jpg").rename(tmp_path / "private" / "a.jpg")
    forged = seal("/")
    become_another(home)
    bench.execute(f"UPDATE sources SET url = '{tmp_path}/private/a.jpg'")
    for column in ("path = '/x.jsonl', root = NULL", f"root = '/', root_seal = '{forged}'", "root_seal = 'ä'"):
        bench.execute(f"UPDATE manifests SET {column}")
        assert (bench.fetch().done, bench.rows("SELECT count(*) FROM images")) == (0, [(0,)])
        [(slug, message)] = bench.rows(FAILED)
        assert slug == "blocked_path" and "ingest it here again" in message and "--allow-path" in message
        bench.retry()
    assert bench.fetch(allow_path=(f"{tmp_path}/private",)).done == 1


def test_a_seal_is_of_one_directory(bench: Workbench, tmp_path: Path) -> None:
    """What was given for the manifest's directory opens no other one."""
    bench.execute(f"UPDATE manifests SET root = '{tmp_path.parent}'")
    assert bench.fetch().dead == 1


def test_ingest_opens_it_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What another user or machine ingested is refused, with one line for the run, until it is ingested here."""
    monkeypatch.setattr(local_roots, "_machine", lambda: "another machine")
    with caplog.at_level(logging.WARNING):
        assert bench.fetch().dead == 1
    said = [record.getMessage() for record in caplog.records if record.name == "etl.fetch.stage"]
    assert len(said) == 1 and "ingest it here again" in said[0] and "--allow-path" in said[0]
    bench.ingest("a.jpg")
    assert bench.rows("SELECT generation FROM manifests") == [(1,)], "nothing had changed"
    bench.retry()
    assert bench.fetch().done == 1


def test_pictures_of_the_web_raise_no_alarm(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A state that was copied here and has no local picture to fetch is fetched without a word about directories."""
    bench = Workbench(tmp_path, max_attempts=1)
    bench.ingest("http://127.0.0.1:9/a.jpg")
    become_another(home)
    bench.fetch()
    assert "--allow-path" not in caplog.text


def test_a_part_is_fetched_where_its_state_was(bench: Workbench, tmp_path: Path, home: Path) -> None:
    """Parts made here read what their state reads; elsewhere they need the word of whoever fetches them."""
    with Store.open(bench.settings) as store:
        split(store, 2, tmp_path / "parts")
    parts = [Workbench(tmp_path, state=tmp_path / "parts" / f"part-{number}") for number in (1, 2)]
    assert sum(part.fetch().done for part in parts) == 1
    become_another(home)
    with Store.open(parts[0].settings) as store, store._connection.transaction() as db:
        db.conn.execute("UPDATE sources SET status = 'ready', image = NULL")
    assert parts[0].fetch().dead == 1


def test_one_command_needs_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none can be kept, this process reads what it has ingested itself; the next one does not."""
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    (tmp_path / "a.jpg").write_bytes(scenes(1)[0][1])
    bench = Workbench(tmp_path)
    bench.ingest("a.jpg")
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.delenv("HOME")
    assert bench.fetch(RunControl()).done == 1
    monkeypatch.setattr(local_roots, "_OF_THIS_PROCESS", bytes(32))
    assert bench.fetch(refresh=True).dead == 1


def test_standard_input_has_the_directory_in_which_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest without a file names what lies where it was ingested, wherever the fetch runs."""
    (tmp_path / "a.jpg").write_bytes(scenes(1)[0][1])
    manifest = write_manifest(tmp_path / "m.jsonl", [{"id": "a", "path": "a.jpg"}])
    bench = Workbench(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with manifest.open("rb") as file:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": file}))
        bench.ingest_path("-")
    monkeypatch.chdir("/")
    assert bench.fetch().done == 1


def test_the_secret_is_one_and_private(home: Path) -> None:
    """It is made once, readable by its owner alone, and nothing else lies beside it."""
    first = seal("/a")
    path = home / "caption-etl" / "secret"
    assert (seal("/a"), stat.S_IMODE(path.stat().st_mode), [*path.parent.iterdir()]) == (first, 0o600, [path])
    assert first != seal("/b")
    assert opened([("/a/m.jsonl", "/a", first), ("/b/m.jsonl", "/b", first)]) == (["/a"], ["/b"])


@pytest.mark.parametrize("fault", ["link", "fifo", "open", "short"])
def test_a_secret_that_others_may_know_or_have_laid_is_none(home: Path, fault: str) -> None:
    """A link, a FIFO, a file that others can read and one of another length are not used, and never waited for."""
    sealed = seal("/a")
    path = home / "caption-etl" / "secret"
    if fault == "open":
        path.chmod(0o644)
    elif fault == "short":
        path.write_bytes(b"1")
    else:
        path.rename(path.with_name("other"))
        os.mkfifo(path) if fault == "fifo" else path.symlink_to("other")
    assert opened([("/a/m.jsonl", "/a", sealed)]) == ([], ["/a"])
    assert opened([("/a/m.jsonl", "/a", seal("/a"))]) == (["/a"], []), "this process still knows what it has opened"
