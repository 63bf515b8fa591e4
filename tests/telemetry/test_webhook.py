"""The message at the end of a run: sent once, never in the way, and never more public than it has to be."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.http_server import Handler, StandIn
from support.made_state import MadeState

from etl.errors import ConfigError, EtlError, StateLockedError
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan
from etl.settings import Settings
from etl.state.store import Store
from etl.telemetry import webhook


class Room(StandIn):
    """A chat room that takes messages; ``answers`` are the statuses it gives, 200 when there are none left."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.messages: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.wait_s = 0.0
        self.url = f"{self.base}/hooks/T0KEN"


class _Handler(Handler):
    server: Room

    def do_POST(self) -> None:
        self.server.messages.append(json.loads(self.body()))
        self.server.closing.wait(self.server.wait_s)
        self.answer(self.server.answers.pop(0) if self.server.answers else 200, b"", headers={"Location": "/elsewhere"})


@pytest.fixture
def room() -> Iterator[Room]:
    with Room() as room:
        yield room


@pytest.mark.parametrize(
    ("answers", "taken", "asked"),
    [([], True, 1), ([503, 429], True, 3), ([500, 500, 500], False, 3), ([404], False, 1), ([302], False, 1)],
)
def test_it_is_tried_again_where_that_may_help(
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answers: list[int],
    taken: bool,
    asked: int,
) -> None:
    """A busy room is asked three times, one that refuses or points elsewhere once; the log does not show the path."""
    monkeypatch.setattr(webhook, "PAUSE_S", 0)
    room.answers = answers
    with caplog.at_level(logging.WARNING):
        assert webhook.send(room.url, {"text": "done"}) is taken
    assert room.messages == [{"text": "done"}] * asked
    assert ("127.0.0.1 did not take the message" in caplog.text) is not taken
    assert "T0KEN" not in caplog.text


def test_what_is_on_this_machine_is_told_without_a_proxy(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not asked for a loopback address."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert webhook.send(room.url, {"text": "done"}) is True
    assert webhook.send("http://chat.example/x", {}, attempts=1) is False


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://[::1", "http://nowhere.invalid/"])
def test_a_room_that_is_not_there_costs_a_moment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """No error comes out, whatever is wrong with the URL or the network."""
    monkeypatch.setattr(webhook, "PAUSE_S", 0)
    assert webhook.send(url, {}) is False


def test_a_room_that_hangs_is_given_up(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """All attempts together take no longer than their limits."""
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(webhook, "PAUSE_S", 0)
    room.wait_s = 1.0
    begun = time.monotonic()
    assert webhook.send(room.url, {}) is False
    assert time.monotonic() - begun < 30
    assert webhook.ATTEMPTS * (webhook.TIMEOUT_S + webhook.PAUSE_S) < 25


@pytest.fixture
def state(tmp_path: Path, room: Room) -> MadeState:
    made = MadeState(tmp_path, webhook=room.url, gpu_price=1.0)
    made.ingest(
        b'{"id": "1", "url": "http://a.example/1.jpg"}\n{"id": "2", "url": "http://a.example/2.jpg"}\nno json\n'
    )
    return made


def test_the_end_of_a_run_is_told(state: MadeState, room: Room) -> None:
    """Counts, state, run and cost, in words for a chat room and as values for programs; settings keep no token."""
    state.finish({"1": "A street."}, dead_sources={"2": "http_404"})
    assert room.messages == []
    run_pipeline(state.settings, Plan(fetch=True), lambda _: None)
    [message] = room.messages
    assert message["event"] == "run_ended"
    assert (message["state"], message["signal"]) == ("partial", None)
    assert message["records"] == {"pending": 0, "captioned": 1, "failed": 2, "skipped": 0}
    assert len(message["run"]) == 12
    assert "partial: 0 pending, 1 captioned, 2 failed, 0 skipped; " in message["text"]
    assert message["content"] == message["text"]
    with Store.open(state.settings) as store:
        configs = store._connection.rows("SELECT config FROM runs")
    assert len(configs) == 3
    assert not [config for (config,) in configs if "T0KEN" in config]
    logged = (state.settings.state / "logs" / "etl.log").read_text()
    assert "webhook at 127.0.0.1 took the message" in logged and "T0KEN" not in logged


def test_a_run_that_fails_is_told_and_still_fails(
    state: MadeState, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error goes to the room and to the caller."""

    def fail(*_: object, **__: object) -> None:
        raise EtlError("the disk burnt")

    monkeypatch.setattr("etl.fetch.stage.fetch", fail)
    with pytest.raises(EtlError, match="burnt"):
        run_pipeline(state.settings, Plan(fetch=True), lambda _: None)
    assert (room.messages[0]["state"], room.messages[0]["error"]) == ("failed", "the disk burnt")


def test_what_never_began_is_not_told(state: MadeState, room: Room) -> None:
    """A second run beside another, and a mistake in the settings, are the caller's business alone."""
    with Store.open(state.settings), pytest.raises(StateLockedError):
        run_pipeline(state.settings, Plan(fetch=True), lambda _: None)
    assert room.messages == []


@pytest.mark.parametrize("url", ["ftp://a.example/", "a.example/hook", "https:///hook", "http://[::1"])
def test_a_webhook_must_be_a_url(url: str) -> None:
    """What cannot be posted to is refused at once, and not shown."""
    with pytest.raises(ConfigError, match="webhook is no http or https URL") as refused:
        Settings(webhook=url)
    assert url not in str(refused.value)
