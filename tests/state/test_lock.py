"""The lock: one writer for each state directory, whatever becomes of the process that holds it."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.states import put_sources, settings_for

from etl.errors import StateError, StateLockedError
from etl.models import RunState, Stage
from etl.state import lock
from etl.state.lock import StateLock, file_system_of, is_locked
from etl.state.queries import Reader
from etl.state.store import Store

HOLD = """
import sys, time
from pathlib import Path
from etl.config import Settings
from etl.models import Stage
from etl.state.store import Store
store = Store.open(Settings(state=Path(sys.argv[1])))
store.begin_run([Stage.FETCH])
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def _holder(state: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that holds the state until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(state)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_second_writer_is_refused_and_changes_nothing(state: Path) -> None:
    """While one process holds a state, another gets exit code 4, is told by whom, and leaves every byte alone."""
    with _holder(state) as process:
        before = {path.name: path.read_bytes() for path in state.iterdir()}
        with pytest.raises(StateLockedError, match=f"pid {process.pid} ") as caught:
            Store.open(settings_for(state))
        assert caught.value.exit_code == 4
        assert {path.name: path.read_bytes() for path in state.iterdir()} == before
        with Reader(state) as reader:
            assert reader.runs(1)[0].state == RunState.RUNNING


def test_second_writer_in_the_same_process_is_refused(store: Store, state: Path) -> None:
    """The lock also keeps two stores of one process apart, and the first goes on undisturbed."""
    with pytest.raises(StateLockedError):
        Store.open(settings_for(state))
    put_sources(store, "http://a.example/1.jpg")


def test_lock_dies_with_its_process(state: Path) -> None:
    """After a SIGKILL of the holder the state is free at once, its run has crashed, and the file is left behind."""
    with _holder(state) as process:
        assert is_locked(state)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (state / lock.LOCK_NAME).exists()
        assert not is_locked(state)
        with Reader(state) as reader:
            assert reader.runs(1)[0].state == RunState.CRASHED
        with Store.open(settings_for(state)):
            assert is_locked(state)
    with Reader(state) as reader:
        assert reader.runs(1)[0].ended_at is not None


def test_lock_is_not_inherited(state: Path) -> None:
    """A child that outlives the holder does not keep the state locked."""
    with Store.open(settings_for(state)):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        assert not is_locked(state)
        Store.open(settings_for(state)).close()
    finally:
        child.kill()
        child.wait()


def test_writer_waits_out_a_reader_that_only_asks(tmp_path: Path) -> None:
    """Readers that ask again and again who holds the state do not keep a writer from taking it."""
    with StateLock(tmp_path):
        pass
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            is_locked(tmp_path)
            time.sleep(0.001)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(10):
            with StateLock(tmp_path):
                assert is_locked(tmp_path)
    finally:
        done.set()
        for thread in asking:
            thread.join()


def test_never_opened_state_is_not_locked(tmp_path: Path) -> None:
    """Asking about a state that does not exist answers no and creates nothing."""
    assert not is_locked(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state on a network file system is refused before anything is opened there, and the lock is let go."""
    monkeypatch.setattr(lock, "NETWORK_FILE_SYSTEMS", frozenset({file_system_of(tmp_path)}))
    with pytest.raises(StateError, match="network file system"), StateLock(tmp_path):
        pass
    assert not is_locked(tmp_path)


def test_file_system_of_the_nearest_mount() -> None:
    """The type is that of the innermost mount: ``/proc`` is not what ``/`` is."""
    assert file_system_of(Path("/proc/self")) == "proc"


def test_failed_opening_lets_go_of_the_lock(state: Path) -> None:
    """A store that could not be opened leaves no lock behind."""
    with Store.open(settings_for(state)), pytest.raises(StateLockedError):
        Store.open(settings_for(state))
    (state / "state.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(StateError, match="damaged"):
        Store.open(settings_for(state))
    assert not is_locked(state)


def test_run_records_how_it_ended(store: Store, state: Path) -> None:
    """A run ends done, or failed with its message when its block raises; its leases are given back either way."""
    put_sources(store, "http://a.example/1.jpg")
    with store.run((Stage.INGEST,)):
        pass
    with pytest.raises(ValueError, match="mine"), store.run((Stage.FETCH,)) as run:
        assert len(store.sources(run).claim("a.example", 5)) == 1
        raise ValueError("mine")
    with Reader(state) as reader:
        latest, first = reader.runs()
        assert (first.state, latest.state, latest.message) == (RunState.DONE, RunState.FAILED, "mine")
        assert reader.run_config(latest.id)["state"] == str(state)
        assert reader.progress().sources["ready"] == 1
