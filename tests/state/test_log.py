"""The log of a state: bounded, private, harmless, and silent about what goes to stderr."""

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.states import failed, put_sources, settings_for

from etl.domain.statuses import Stage
from etl.state import log
from etl.state.log import RunLog, stamp, tail
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


def _file_for_directory(folder: Path) -> None:
    (folder / "logs").write_text("kept")


def _fifo_for_directory(folder: Path) -> None:
    os.mkfifo(folder / "logs")


def _link_for_directory(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "logs").symlink_to("elsewhere")


def _in_the_log_s_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        (folder / "logs").mkdir()
        make(folder / "logs" / "etl.log")

    return go


def _rotation_blocked(folder: Path) -> None:
    (folder / "logs" / "etl.log.3").mkdir(parents=True)
    for name in ("etl.log", "etl.log.1", "etl.log.2"):
        (folder / "logs" / name).write_text("x" * log.MAX_BYTES)


@pytest.mark.parametrize(
    "attack",
    [_file_for_directory, _fifo_for_directory, _link_for_directory, _rotation_blocked, _in_the_log_s_place(os.mkfifo),
     _in_the_log_s_place(Path.mkdir), _in_the_log_s_place(lambda path: path.symlink_to("/etc/passwd"))],
)  # fmt: skip
def test_a_log_that_cannot_be_written_costs_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], attack: Callable[[Path], None]
) -> None:
    """Whatever lies in its place, a run goes on at once without its log, says so once, and readers see no line."""
    attack(folder)
    outside = logging.StreamHandler(os.fdopen(os.dup(2), "w"))
    logging.getLogger("etl").addHandler(outside)
    outside.setLevel(logging.WARNING)
    try:
        with RunLog(folder):
            for _ in range(100):
                logging.getLogger("etl.x").info("a line")
    finally:
        logging.getLogger("etl").removeHandler(outside)
        outside.stream.close()
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert [line for line in tail(folder, 5) if line.words == "a line"] == []
    assert not list(folder.glob("elsewhere/*"))
    stamp(folder)


def test_another_s_directory_is_not_read_as_a_log(folder: Path) -> None:
    """A copied state whose logs are a link, or whose log is one, shows no other file of the user's."""
    (folder / "mine").mkdir()
    (folder / "mine" / "etl.log").write_text("2026-11-24T00:00:00Z INFO net: secret\n")
    for state, link, target in (("a", "logs", "../mine"), ("b", "logs/etl.log", "../../mine/etl.log")):
        (folder / state / link).parent.mkdir(parents=True)
        (folder / state / link).symlink_to(target)
        assert (folder / state / link).exists()
        assert tail(folder / state, 5) == ()


def test_a_full_disk_ends_no_run(folder: Path) -> None:
    """Lines for which there is no room are lost, also the ones under way when the log is closed; one line says so."""
    code = (
        "import logging, resource, sys\nfrom pathlib import Path\nfrom etl.state.log import RunLog\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\nlogging.basicConfig(level=logging.WARNING)\n"
        "with RunLog(Path(sys.argv[1])):\n    for _ in range(50): logging.getLogger('etl.x').debug('a line')\n"
        "    for _ in range(50): logging.getLogger('etl.x').warning('a line')\nprint('went on')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "went on\n")
    assert [line for line in ran.stderr.splitlines() if "a line" not in line] == [
        f"WARNING:etl.state.log:the run goes on without its log, {folder}/logs/etl.log: File too large"
    ]
