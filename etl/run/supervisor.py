"""One run: stages in threads, while the main thread keeps heartbeat, obeys commands and looks for signals.

The first signal (`etl.run.signals`), a deadline and `etl stop` stop claiming and let work in flight finish within its
grace period.
"""

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from etl import processes
from etl.clock import drift_ms, held
from etl.domain.statuses import RunState, Stage
from etl.domain.views import Progress, StageSummary
from etl.errors import UsageError
from etl.gpu import GpuSampler
from etl.run.signals import PATIENCE_S, Signals
from etl.run_control import GRACE_S, RunControl
from etl.state import commands
from etl.state.commands import Command
from etl.state.log import journal
from etl.state.read.progress import ProgressReader
from etl.state.read.reader import Reader
from etl.state.store import Store
from etl.text import clean

log = logging.getLogger(__name__)

TICK_S = 0.1
"""How often the main thread looks around."""

BEAT_S = 1.0
"""How often it writes a heartbeat and reads commands."""

JUMP_MS = 1000
"""A clock that is this far from where it should be was set, not slewed."""

LAST_RESORT_S = PATIENCE_S - 1.0
"""A stage that has not ended so long after a stop is left behind: a spot machine would be gone soon."""

assert GRACE_S < LAST_RESORT_S

StageFunction = Callable[[Store, int, RunControl], StageSummary]


@dataclass
class RunResult:
    """How a run ended.

    Attributes:
        state: done or interrupted.
        signal: the signal that stopped it, if one did.
        summaries: per stage.
        deadline: whether it was stopped because its time was over.
        device: what captioned, in words; empty when no model was loaded.
    """

    state: RunState
    signal: int | None
    summaries: dict[Stage, StageSummary] = field(default_factory=dict)
    deadline: bool = False
    device: str = ""


class _Worker:
    """One stage in its thread."""

    def __init__(self, stage: Stage, function: StageFunction, store: Store, run: int, control: RunControl) -> None:
        self.stage = stage
        self.summary: StageSummary | None = None
        self.error: BaseException | None = None
        self._work: Callable[[], StageSummary] = functools.partial(function, store, run, control)
        self._control = control
        self.thread = self._new_thread()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=self.stage, daemon=True)

    def begin_again(self) -> None:
        """Do the stage once more, in a new thread; what it does then counts on top of what it has done."""
        self.thread.join()
        self.thread = self._new_thread()
        self.thread.start()

    def _run(self) -> None:
        try:
            done = self._work()
            self.summary = done if self.summary is None else self.summary.plus(done)
            words = "%s ended: %d done, %d failed, %d attempts to be repeated"
            journal.info(words, self.stage, done.done, done.dead, done.retried)
        except BaseException as error:
            self.error = error
            journal.error("%s ended with an error: %s", self.stage, error)
            # One stage alone cannot finish the run; what the others have in flight is still committed.
            self._control.stop()
        finally:
            self._control.end(self.stage)


def run_stages(
    store: Store,
    run: int,
    stages: dict[Stage, StageFunction],
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    signals: Signals | None = None,
    stop_at: float | None = None,
) -> RunResult:
    """Run the stages of a recorded run side by side and return how they ended.

    Nothing is claimed from ``stop_at`` on, a moment of `time.monotonic`.  Raises the first error of a stage, after the
    others have stopped.
    """
    control = RunControl()
    control.begin(stages)
    workers = [_Worker(stage, function, store, run, control) for stage, function in stages.items()]
    supervisor = _Supervisor(store, run, control, workers, Signals() if signals is None else signals, stop_at)
    with held(), Reader(store.directory) as reader, GpuSampler(store, run):
        supervisor.look()
        for worker in workers:
            worker.thread.start()
        outlook = ProgressReader(reader)

        def told() -> Progress:
            return dataclasses.replace(
                outlook.progress(), device=control.device, loading=control.loading, download=control.download
            )

        try:
            supervisor.supervise(lambda: on_progress(told()))
            on_progress(told())
        except BaseException:
            control.stop()
            for worker in workers:
                worker.thread.join(LAST_RESORT_S)
            raise
    return supervisor.result()


class _Supervisor:
    """What the main thread does while the stages work."""

    def __init__(
        self,
        store: Store,
        run: int,
        control: RunControl,
        workers: Sequence[_Worker],
        signals: Signals,
        stop_at: float | None,
    ) -> None:
        self._store = store
        self._run = run
        self._control = control
        self._workers = workers
        self._signals = signals
        self._stop_at = stop_at
        self._stopped_at: float | None = None
        self._deadline = False
        self._left_behind: list[_Worker] = []

    def supervise(self, show: Callable[[], None]) -> None:
        """Return when every stage has ended or was left behind."""
        beat = 0.0
        while living := [worker for worker in self._workers if worker.thread.is_alive()]:
            now = time.monotonic()
            if abs(drift_ms()) > JUMP_MS:
                self._store.follow_clock()
            if self.look():
                beat = 0.0
            for worker in self._workers:
                if self._control.take_recall(worker.stage):
                    worker.begin_again()
            if self._control.stopping and self._leaves_behind(living, now):
                return
            if now - beat >= BEAT_S:
                beat = now
                self._store.heartbeat(self._run, _state(self._control))
                for command in self._store.open_commands():
                    self._store.acknowledge(command, self._run, _obey(self._store, command, self._control))
                show()
            # A stage that ends is noticed at once.
            living[0].thread.join(TICK_S)

    def look(self) -> bool:
        """Stop when a signal has come or the time is over; return whether a stop is news, whoever asked for it."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at and not self._control.stopping:
            self._deadline = True
            self._control.stop()
        if self._signals:
            self._control.stop()
        if not self._control.stopping or self._stopped_at is not None:
            return False
        self._stopped_at = time.monotonic()
        return True

    def _leaves_behind(self, living: Sequence[_Worker], now: float) -> bool:
        """Return whether nothing is to be waited for any more, although threads live."""
        overdue = self._stopped_at is not None and now - self._stopped_at > LAST_RESORT_S
        if overdue and not self._deadline:
            self._signals.leave("a stage did not end in time")
        # Nothing is lost with a model that is not loaded yet, and nobody can interrupt who loads it.
        if not overdue and not all(self._control.is_loading(worker.stage) for worker in living):
            return False
        self._left_behind = list(living)
        RunControl.abandon(worker.thread for worker in living)
        # Whatever they still say is said by a run that holds nothing any more.
        self._store.sources(self._run).release_all()
        self._store.captions(self._run, 0).release_all()
        processes.kill_all()
        return True

    def result(self) -> RunResult:
        """Return how the stages ended; raises the first error of one."""
        ended = [worker for worker in self._workers if worker not in self._left_behind]
        error = next((worker.error for worker in ended if worker.error is not None), None)
        if error is not None:
            raise error
        summaries = {worker.stage: worker.summary for worker in ended if worker.summary is not None}
        state = RunState.INTERRUPTED if self._control.stopping else RunState.DONE
        return RunResult(state, self._signals.first, summaries, self._deadline, self._control.device)


def _state(control: RunControl) -> RunState:
    if control.stopping:
        return RunState.STOPPING
    return RunState.PAUSED if control.paused else RunState.RUNNING


def _obey(store: Store, command: Command, control: RunControl) -> str:
    """Do what another process asks for and return the answer; what is not understood is answered too, in one line."""
    if command.fault is not None:
        return _refused(command, command.fault)
    try:
        return _done(store, command, control)
    except UsageError as error:
        return _refused(command, str(error))


def _refused(command: Command, why: str) -> str:
    return clean(f"{command.name} was not obeyed: {why}; was it sent by another version of etl?", 500)


def _done(store: Store, command: Command, control: RunControl) -> str:
    match command.name:
        case commands.PAUSE:
            control.pause()
            return "paused; what is in flight is still finished"
        case commands.RESUME:
            control.resume()
            return "resumed"
        case commands.STOP:
            control.stop()
            return "stopping; what is in flight is still finished"
        case commands.RETRY:
            chosen = commands.chosen_by(command.arguments)
            if chosen.flag is not None:
                return store.recaption(chosen).line()
            counts = store.retry_failed(chosen)
            return ", ".join(f"{stage}: {n} ready again" for stage, n in counts.items())
    return _refused(command, "this version does not know this command")
