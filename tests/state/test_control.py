"""Commands from other processes to a live run."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.states import put_sources, settings_for

from etl.errors import StateMissingError
from etl.models import FailureFilter, Stage
from etl.state import control
from etl.state.store import Command, Store


@contextmanager
def _obeying(store: Store) -> Iterator[list[Command]]:
    """Acknowledge commands in another thread, as a run does; yield the list of what came."""
    seen, done = list[Command](), threading.Event()

    def obey() -> None:
        while not done.is_set():
            for command in store.open_commands():
                seen.append(command)
                store.acknowledge(command, None, f"{command.name} it is")
            time.sleep(0.01)

    thread = threading.Thread(target=obey)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_command_is_obeyed_and_answered(store: Store, state: Path) -> None:
    """The sender gets the run's answer; the run gets the command once, with its arguments."""
    with _obeying(store) as seen:
        assert control.send(state, control.PAUSE) == "pause it is"
        chosen = FailureFilter(stage=Stage.FETCH, error_class="http_404")
        assert control.send(state, control.RETRY, chosen) == "retry it is"
    assert [(command.name, command.arguments) for command in seen] == [
        ("pause", {}), ("retry", {"stage": "fetch", "error_class": "http_404"}),
    ]  # fmt: skip
    assert FailureFilter(**seen[1].arguments) == chosen
    assert store.open_commands() == []


def test_unanswered_command_is_given_up(store: Store, state: Path) -> None:
    """A sender does not wait longer than its patience; the command stays open, oldest first."""
    assert control.send(state, control.PAUSE, patience_s=0.05) is None
    assert control.send(state, control.STOP, patience_s=0.05) is None
    assert [command.name for command in store.open_commands()] == ["pause", "stop"]


def test_nobody_to_command(state: Path, tmp_path: Path) -> None:
    """Without a live run, or without any state, there is nobody to command, and nothing is written."""
    with pytest.raises(StateMissingError, match="nothing to stop"):
        control.send(tmp_path / "nowhere", control.STOP)
    Store.open(settings_for(state)).close()
    before = (state / "state.db").read_bytes()
    with pytest.raises(StateMissingError, match="nothing to pause"):
        control.send(state, control.PAUSE)
    assert (state / "state.db").read_bytes() == before


def test_stale_stop_does_not_stop_the_next_run(state: Path) -> None:
    """A command that its run did not live to obey is answered, not obeyed, when the state is opened again."""
    with Store.open(settings_for(state)):
        control.send(state, control.STOP, patience_s=0.0)
    with Store.open(settings_for(state)) as store:
        assert store.open_commands() == []
        ((answer,),) = store._connection.rows("SELECT result FROM commands")
        assert "too late" in answer


def test_sending_does_not_empty_the_log(store: Store, state: Path) -> None:
    """A sender leaves the write-ahead log to the run: two that checkpoint at once can damage a database."""
    put_sources(store, *(f"http://a.example/{n}.jpg" for n in range(50)))
    size = (state / "state.db").stat().st_size
    control.send(state, control.PAUSE, patience_s=0.0)
    assert (state / "state.db").stat().st_size == size
