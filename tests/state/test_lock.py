"""The lock: one writer for each state directory, whatever becomes of the process that holds it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.states import put_sources, settings_for

from etl.domain.statuses import RunState, Stage
from etl.errors import StateError, StateLockedError
from etl.state import file_systems, lock
from etl.state.file_systems import file_system_of, is_shared, kind_of_mount
from etl.state.lock import StateLock, is_locked
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs
from etl.state.store import Store

HOLD = """
import sys, time
from pathlib import Path
from etl.settings import Settings
from etl.domain.statuses import Stage
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
            assert latest_runs(reader, 1)[0].state == RunState.RUNNING


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
            assert latest_runs(reader, 1)[0].state == RunState.CRASHED
        with Store.open(settings_for(state)):
            assert is_locked(state)
    with Reader(state) as reader:
        assert latest_runs(reader, 1)[0].ended_at is not None


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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writers wait for nobody, where no reader only asks."""
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("gone", [["lock"], ["lock", "state.db", "state.db-wal", "state.db-shm"]])
def test_a_removed_lock_file_lets_nobody_in(state: Path, gone: list[str]) -> None:
    """Whoever tidies up beside a run, even the whole directory, opens no door: a second writer is still refused."""
    with _holder(state):
        for name in gone:
            (state / name).unlink()
        assert is_locked(state)
        with pytest.raises(StateLockedError, match="another run holds this state directory; wait"):
            Store.open(settings_for(state))
        (state / "lock").touch()
        with pytest.raises(StateLockedError):
            Store.open(settings_for(state))
        moved = state.with_name("moved")
        state.rename(moved)
        with pytest.raises(StateLockedError):
            Store.open(settings_for(moved))


def test_a_run_whose_directory_was_replaced_ends(state: Path) -> None:
    """When another directory lies in the place of the state, the run goes on in neither: one line says why."""
    with Store.open(settings_for(state)) as store:
        run = store.begin_run([Stage.FETCH])
        store.heartbeat(run, RunState.RUNNING)
        state.rename(state.with_name("moved"))
        with pytest.raises(StateError, match="was moved, removed or replaced"):
            store.heartbeat(run, RunState.RUNNING)
        state.mkdir()
        with pytest.raises(StateError, match="was moved, removed or replaced"):
            store.heartbeat(run, RunState.RUNNING)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("x")])
def test_a_lock_file_of_another_kind(state: Path, make: Callable[[Path], None]) -> None:
    """What lies in the lock file's place in a copied state is named at once, also to whom a run holds off."""
    state.mkdir()
    make(state / "lock")
    with pytest.raises(StateError, match=r"lock is a .* under that name, so it is not followed or opened; remove it"):
        Store.open(settings_for(state))
    (state / "lock").rmdir() if (state / "lock").is_dir() else (state / "lock").unlink()
    with StateLock(state):
        (state / "lock").unlink()
        make(state / "lock")
        with pytest.raises(StateLockedError, match="holds this state directory; wait"):
            Store.open(settings_for(state))


@pytest.mark.usefixtures("impatient")
def test_a_strangers_lock_file_says_little(state: Path) -> None:
    """Of a name without end, or with a terminal's escapes in it, one short harmless line is left."""
    with StateLock(state):
        for host in ("\x1b[31m" + "x" * 1000, "x" * 10_000):
            (state / "lock").write_text(json.dumps({"pid": 1, "host": host}))
            with pytest.raises(StateLockedError) as caught:
                Store.open(settings_for(state))
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 250


def test_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state on a network file system is refused before anything is opened there, and the lock is let go."""
    monkeypatch.setattr(file_systems, "_SHARED", frozenset({file_system_of(tmp_path)}))
    with pytest.raises(StateError, match="network file system"), StateLock(tmp_path):
        pass
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    ["nfs4", "smb2", "beegfs", "gpfs", "virtiofs", "vboxsf", "9p", "fuse", "fuse.sshfs", "fuse.rclone", "fuse.s3fs",
     "fuse.gcsfuse", "fuse.juicefs", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.mfs", "fuse.bindfs", "fuse.mergerfs"],
)  # fmt: skip
def test_file_systems_that_others_share(kind: str) -> None:
    """Networks, clusters, hosts of virtual machines, and FUSE of any kind that was not tried."""
    assert is_shared(kind)


@pytest.mark.parametrize(
    "kind", ["", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk", "fuse.fuse-overlayfs", "fuse.gocryptfs"]
)
def test_file_systems_of_this_machine(kind: str) -> None:
    """Disks, memory, containers and encrypted directories hold a state; what is unknown is not refused."""
    assert not is_shared(kind)


MOUNTS = r"""
22 1 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
42 27 0:39 / /mnt/my\040data rw,nosuid,nodev,relatime shared:7 master:2 - fuse.sshfs me@host:/data rw,user_id=0
43 42 254:1 /inner /mnt/my\040data/disk rw,relatime - xfs /dev/vdb rw
44 27 0:41 / /mnt/my\040data rw,relatime - nfs4 host:/ rw
"""


@pytest.mark.parametrize(
    ("number", "device", "kind"),
    [("27", "254:0", "ext4"), ("42", "0:39", "fuse.sshfs"), ("43", "254:1", "xfs"), ("44", "0:41", "nfs4"),
     ("", "0:39", "fuse.sshfs"), ("", "9:9", ""), ("99", "254:0", "")],
)  # fmt: skip
def test_a_mount_is_known_by_its_number(number: str, device: str, kind: str) -> None:
    """Spaces in its place, a mount over another and one from another directory do not mislead."""
    assert kind_of_mount(MOUNTS, number, device) == kind


def test_file_system_of_the_nearest_mount() -> None:
    """The type is that of the innermost mount: ``/proc`` is not what ``/`` is."""
    assert file_system_of(Path("/proc/self")) == "proc"


def test_a_mount_with_a_space(tmp_path: Path) -> None:
    """What is mounted on a path with a space in it is seen, and so is what is mounted over that."""
    place = tmp_path / "a b"
    place.mkdir()
    seen = [file_system_of(place)]
    with contextlib.ExitStack() as mounted:
        for kind in ("tmpfs", "ramfs"):
            mount = ["mount", "-t", kind, kind, str(place)]
            if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
                pytest.skip("only root may mount a file system")
            mounted.callback(subprocess.run, ["umount", str(place)], check=True)
            seen.append(file_system_of(place))
    assert seen[1:] == ["tmpfs", "ramfs"]
    assert file_system_of(place) == seen[0]


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
        latest, first = latest_runs(reader)
        assert (first.state, latest.state, latest.message) == (RunState.DONE, RunState.FAILED, "mine")
        assert json.loads(reader.rows("SELECT config FROM runs ORDER BY id DESC")[0][0])["state"] == str(state)
        assert read_progress(reader).sources["ready"] == 1
