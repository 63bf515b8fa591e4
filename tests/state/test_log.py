"""The log of a state: bounded, private, harmless, and silent about what goes to stderr."""

import logging
import stat
from pathlib import Path

import pytest
from support.states import failed, put_sources, settings_for

from etl.models import Stage
from etl.state import log
from etl.state.log import RunLog, tail
from etl.state.store import Store

HOSTILE = "a\x1b]0;owned\x07[/red]\u202e\r\n2026-01-01T00:00:00Z ERROR forged: line"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory that may be a state."""
    return tmp_path


def test_a_run_tells_its_story(state: Path) -> None:
    """Beginning, a failed item and the end are in the log, each on its line, and can be read back."""
    with Store.open(settings_for(state)) as store:
        put_sources(store, "http://a.example/1.jpg")
        with store.run((Stage.FETCH,)) as run:
            item = store.sources(run).claim("a.example", 1)[0]
            store.sources(run).fail([failed(item.id, "http_404", retryable=False)])
    lines = tail(state, 10)
    assert [line.words for line in lines] == [
        "run 1 began: fetch", "fetch 1 failed: http_404: it was http_404", "run 1 ended: done",
    ]  # fmt: skip
    assert {line.origin for line in lines} == {"run"}
    assert all(line.level == "INFO" and line.at.endswith("Z") for line in lines)


def test_an_error_ends_the_story(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that fails says why in its log, and nothing of it on stderr, where the command says it."""
    with Store.open(settings_for(state)) as store, pytest.raises(OSError), store.run((Stage.FETCH,)):
        raise OSError("out of cheese")
    assert [(line.level, line.words) for line in tail(state, 1)] == [("ERROR", "run 1 ended: failed: out of cheese")]
    assert capsys.readouterr().err == ""


def test_hostile_text_stays_one_harmless_line(folder: Path) -> None:
    """Escapes and line ends of a stranger's text neither act nor forge a line, and a long one is cut."""
    with RunLog(folder):
        logging.getLogger("etl.net").warning("%s", HOSTILE)
        logging.getLogger("etl.net").warning("%s", "x" * 5000)
    first, second = tail(folder, 5)
    assert first.words == r"a\x1b]0;owned\x07[/red]\u202e\r\n2026-01-01T00:00:00Z ERROR forged: line"
    assert len(second.words) < log.MAX_LINE
    assert b"\x1b" not in (folder / "logs" / "etl.log").read_bytes()


def test_a_strangers_log_is_cleaned_when_it_is_read(folder: Path) -> None:
    """A log that came with a copied state is as untrusted as its manifest; half lines are left out."""
    (folder / "logs").mkdir()
    (folder / "logs" / "etl.log").write_bytes(b"\x1b[2Jno time\n2026-11-24T00:00:00Z INFO net: \xff\x9b31m\nhalf a li")
    assert [line.words for line in tail(folder, 9)] == [r"\x1b[2Jno time", "\ufffd\ufffd31m"]


def test_size_and_rights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is logged, a few bounded files remain, for the owner alone; the tail reaches over their ends."""
    monkeypatch.setattr(log, "MAX_BYTES", 2000)
    with RunLog(folder):
        for number in range(300):
            logging.getLogger("etl.x").info("line %d", number)
    files = list((folder / "logs").iterdir())
    assert {file.name for file in files} == {"etl.log", "etl.log.1", "etl.log.2", "etl.log.3"}
    assert all(file.stat().st_size <= 2000 for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert [line.words for line in tail(folder, 45)] == [f"line {number}" for number in range(255, 300)]


def test_only_between_entering_and_leaving(folder: Path) -> None:
    """What is logged outside a run is not written, and the program's level is as it was before."""
    before = logging.getLogger("etl").level
    with RunLog(folder):
        logging.getLogger("etl.x").debug("too fine")
    logging.getLogger("etl.x").warning("too late")
    assert tail(folder, 5) == ()
    assert logging.getLogger("etl").level == before


def test_a_log_that_cannot_be_written_costs_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run goes on without its log, and nobody is told twice."""
    (folder / "logs" / "etl.log").mkdir(parents=True)
    with RunLog(folder):
        logging.getLogger("etl.x").info("a line")
    assert "Traceback" not in capsys.readouterr().err
