"""One run: stages in threads, while the main thread keeps heartbeat, obeys commands and watches for signals.

The first SIGINT or SIGTERM stops claiming and lets work in flight finish within its grace period; the second
gives everything back and ends the process at once.
"""

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from etl.clock import drift_ms, held
from etl.gpu import GpuSampler
from etl.models import Progress, RunState, Stage, StageSummary
from etl.stages.flow import GRACE_S, Flow
from etl.state import control
from etl.state.log import journal
from etl.state.outlook import Outlook
from etl.state.queries import Reader
from etl.state.store import Command, Store

log = logging.getLogger(__name__)

TICK_S = 0.1
"""How often the main thread looks around."""

BEAT_S = 1.0
"""How often it writes a heartbeat and reads commands."""

JUMP_MS = 1000
"""A clock that is this far from where it should be was set, not slewed."""

LAST_RESORT_S = GRACE_S + 4.0
"""A stage that has not ended so long after a stop is left behind: a spot machine would be gone soon."""

StageFunction = Callable[[Store, int, Flow], StageSummary]


@dataclass
class RunResult:
    """How a run ended.

    Attributes:
        state: done or interrupted.
        signal: the signal that stopped it, if one did.
        summaries: per stage.
    """

    state: RunState
    signal: int | None
    summaries: dict[Stage, StageSummary] = field(default_factory=dict)


class _Worker:
    """One stage in its thread."""

    def __init__(self, stage: Stage, function: StageFunction, store: Store, run: int, flow: Flow) -> None:
        self.stage = stage
        self.summary: StageSummary | None = None
        self.error: BaseException | None = None
        self._work: Callable[[], StageSummary] = functools.partial(function, store, run, flow)
        self._flow = flow
        self.thread = threading.Thread(target=self._run, name=stage, daemon=True)

    def _run(self) -> None:
        try:
            done = self.summary = self._work()
            words = "%s ended: %d done, %d failed, %d attempts to be repeated"
            journal.info(words, self.stage, done.done, done.dead, done.retried)
        except BaseException as error:
            self.error = error
            journal.error("%s ended with an error: %s", self.stage, error)
            # One stage alone cannot finish the run; what the others have in flight is still committed.
            self._flow.stop()
        finally:
            self._flow.end(self.stage)


def run_stages(
    store: Store,
    run: int,
    stages: dict[Stage, StageFunction],
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> RunResult:
    """Run the stages of a recorded run side by side and return how they ended.

    Raises the first error of a stage, after the others have stopped.
    """
    flow = Flow()
    flow.begin(stages)
    workers = [_Worker(stage, function, store, run, flow) for stage, function in stages.items()]
    with watch_signals() as caught, held(), Reader(store.directory) as reader, GpuSampler(store, run):
        for worker in workers:
            worker.thread.start()
        try:
            outlook = Outlook(reader)
            _supervise(store, run, flow, workers, caught, outlook, on_progress)
            on_progress(outlook.progress())
        except BaseException:
            flow.stop()
            for worker in workers:
                worker.thread.join(LAST_RESORT_S)
            raise
    return _result(flow, workers, caught)


def _supervise(
    store: Store,
    run: int,
    flow: Flow,
    workers: Sequence[_Worker],
    caught: list[int],
    outlook: Outlook,
    on_progress: Callable[[Progress], None],
) -> None:
    beat, stop_seen = 0.0, None
    while any(worker.thread.is_alive() for worker in workers):
        now = time.monotonic()
        if len(caught) > 1:
            _leave_now(store, run, caught[-1], "a second signal")
        if abs(drift_ms()) > JUMP_MS:
            store.follow_clock()
        if caught and not flow.stopping:
            flow.stop()
        if flow.stopping and stop_seen is None:
            stop_seen, beat = now, 0.0
        if stop_seen is not None and now - stop_seen > LAST_RESORT_S:
            _leave_now(store, run, caught[-1] if caught else signal.SIGTERM, "a stage did not end in time")
        if now - beat >= BEAT_S:
            beat = now
            store.heartbeat(run, _state(flow))
            for command in store.open_commands():
                store.acknowledge(command, run, _obey(store, command, flow))
            on_progress(outlook.progress())
        # A stage that ends is noticed at once.
        next((worker.thread for worker in workers if worker.thread.is_alive()), workers[0].thread).join(TICK_S)


def _state(flow: Flow) -> RunState:
    if flow.stopping:
        return RunState.STOPPING
    return RunState.PAUSED if flow.paused else RunState.RUNNING


def _obey(store: Store, command: Command, flow: Flow) -> str:
    match command.name:
        case control.PAUSE:
            flow.pause()
            return "paused; what is in flight is still finished"
        case control.RESUME:
            flow.resume()
            return "resumed"
        case control.STOP:
            flow.stop()
            return "stopping; what is in flight is still finished"
        case control.RETRY:
            try:
                chosen = control.filter_of(command.arguments)
            except ValueError:
                # Written by another version, or by hand: no reason to end a run.
                return f"{command.name} has arguments that this version does not know; nothing was done"
            if chosen.flag is not None:
                return store.caption_again(chosen).line()
            counts = store.retry_failed(chosen)
            return ", ".join(f"{stage}: {n} ready again" for stage, n in counts.items())
    return f"unknown command {command.name!r}"


def _result(flow: Flow, workers: Sequence[_Worker], caught: list[int]) -> RunResult:
    error = next((worker.error for worker in workers if worker.error is not None), None)
    if error is not None:
        raise error
    summaries = {worker.stage: worker.summary for worker in workers if worker.summary is not None}
    state = RunState.INTERRUPTED if flow.stopping else RunState.DONE
    return RunResult(state, caught[0] if caught else None, summaries)


def _leave_now(store: Store, run: int, number: int, why: str) -> None:
    """Give everything back and end the process without waiting for its threads."""
    log.warning("leaving at once: %s; unfinished work was given back", why)
    store.end_run(run, RunState.INTERRUPTED, why)
    os._exit(128 + number)


@contextlib.contextmanager
def watch_signals(*, second_interrupts: bool = False) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them.

    With ``second_interrupts`` a second one raises KeyboardInterrupt, for work that looks at the list too seldom.
    Outside the main thread (in a test) there is nothing to collect.
    """
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if second_interrupts and len(caught) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
