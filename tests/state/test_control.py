"""Commands from other processes to a live run."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.states import put_sources, settings_for
from support.watching import wait_for

from etl.domain.statuses import RunState, Stage
from etl.domain.views import FailureFilter, StageSummary
from etl.errors import StateMissingError, UsageError
from etl.run.supervisor import run_stages
from etl.run_control import RunControl
from etl.state import commands as control
from etl.state.commands import Command
from etl.state.store import Store


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


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"stage": "fetch", "since": 1}, "'since'"),
        ({"stage": "export2"}, "no stage 'export2'"),
        ({"stage": ["fetch"]}, "no stage"),
        ({"flag": "ugly"}, "no flag 'ugly'"),
        ({"host": 7}, "host must be a text"),
        ({"flag": "echo", "repetition_penalty": "much"}, "repetition_penalty"),
        ({"flag": "echo", "repetition_penalty": 9.0}, "repetition_penalty"),
        ({"flag": "echo", "repetition_penalty": True}, "repetition_penalty"),
    ],
)
def test_a_filter_of_another_version_is_refused(arguments: dict[str, object], why: str) -> None:
    """Fields and values that are not known here mean nothing that could be guessed."""
    with pytest.raises(UsageError, match=why):
        control.chosen_by(arguments)


def test_a_run_answers_what_it_does_not_understand_and_goes_on(tmp_path: Path) -> None:
    """A newer sender, a garbled row and an unknown word each get one line; the pause behind them is obeyed."""
    rows = [
        ("retry", '{"since": "yesterday"}'), ("retry", '{"stage": 3}'), ("retry", '{"stage": "fe'), ("retry", "[1]"),
        ("explode", "{}"), ("retry", "[" * 100_000), ("pause", "{}"),
    ]  # fmt: skip
    with Store.open(settings_for(tmp_path / "state")) as store, store.run((Stage.FETCH,)) as run:
        connection = sqlite3.connect(tmp_path / "state" / "state.db", isolation_level=None)
        connection.executemany("INSERT INTO commands (name, arguments, created_at) VALUES (?, ?, 1)", rows)

        def stage(_store: Store, _run: int, control: RunControl) -> StageSummary:
            wait_for(lambda: control.paused, 30)
            return StageSummary(1, 0, 0, 0)

        result = run_stages(store, run, {Stage.FETCH: stage})
        answers = [answer for (answer,) in connection.execute("SELECT result FROM commands ORDER BY id")]
        connection.close()
    assert (result.state, result.summaries[Stage.FETCH].done) == (RunState.DONE, 1)
    assert answers[-1].startswith("paused")
    for (name, _), answer in zip(rows[:-1], answers[:-1], strict=True):
        assert answer.startswith(f"{name} was not obeyed: ")
        assert "\n" not in answer
