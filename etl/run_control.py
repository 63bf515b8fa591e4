"""The switch between a run and its stages: stop, pause, abandon; and what they tell each other."""

import threading
import time
from collections.abc import Iterable
from typing import ClassVar

from etl.domain.statuses import Stage
from etl.domain.views import Download

GRACE_S = 20.0
"""How long work in flight may go on after a stop, in seconds; a spot machine gives 25 to 30."""


class RunControl:
    """Shared by the threads of a run; every method may be called from any thread.

    Attributes:
        recipe: row of the current recipe once the model is loaded, so that fetch queues captions for it.
        device: what captions, in words, once the model is loaded.
        awaits_picture: whether a model is not loaded because no picture wants a caption so far.
        loading: whether a model is being loaded.
        download: of the model's weights, while that lasts.
    """

    _abandoned: ClassVar[list[threading.Thread]] = []

    def __init__(self) -> None:
        self.recipe: int | None = None
        self.device = ""
        self.awaits_picture = False
        self.loading = False
        self.download: Download | None = None
        self._known: set[Stage] = set()
        self._active: set[Stage] = set()
        self._recalled: set[Stage] = set()
        self._stop_at: float | None = None
        self._paused = threading.Event()
        self._changed = threading.Event()

    def begin(self, stages: Iterable[Stage]) -> None:
        """Note that the stages are at work."""
        self._known = set(stages)
        self._active.update(self._known)

    def end(self, stage: Stage) -> None:
        """Note that a stage has ended."""
        self._active.discard(stage)

    def recall(self, stage: Stage) -> bool:
        """Ask for a stage of this run that has ended to begin again; return whether there is one, now at work."""
        if self.stopping or stage not in self._known:
            return False
        self._active.add(stage)
        self._recalled.add(stage)
        return True

    def take_recall(self, stage: Stage) -> bool:
        """Return whether a stage was recalled since this was last asked."""
        if stage not in self._recalled:
            return False
        self._recalled.remove(stage)
        return True

    def is_active(self, stage: Stage) -> bool:
        """Return whether a stage of this run is still at work."""
        return stage in self._active

    def stop(self) -> None:
        """Claim nothing more; finish what is in flight within `GRACE_S`."""
        if self._stop_at is None:
            self._stop_at = time.monotonic()
        self._changed.set()

    def is_loading(self, stage: Stage) -> bool:
        """Return whether a stage is loading its model: it has nothing in flight that could be lost."""
        return stage is Stage.CAPTION and self.model_is_loading

    def note_download(self, now: Download) -> None:
        """Remember how far the download of a model has come."""
        self.download = now

    def pause(self) -> None:
        """Claim nothing until `resume`; what is in flight goes on."""
        self._paused.set()

    def resume(self) -> None:
        """End a pause."""
        self._paused.clear()

    @property
    def model_is_loading(self) -> bool:
        """Whether this run will caption, but does not know by which recipe yet."""
        return self.recipe is None and not self.awaits_picture and self.is_active(Stage.CAPTION)

    @property
    def stopping(self) -> bool:
        """Whether no more work may be claimed, for good."""
        return self._stop_at is not None

    @property
    def paused(self) -> bool:
        """Whether no more work may be claimed for now."""
        return self._paused.is_set()

    @property
    def accepting_work(self) -> bool:
        """Whether work may be claimed."""
        return not (self.stopping or self.paused)

    def should_abandon(self) -> bool:
        """Return whether the grace period is over and unfinished work must be given back."""
        return self._stop_at is not None and time.monotonic() > self._stop_at + GRACE_S

    @classmethod
    def abandon(cls, threads: Iterable[threading.Thread]) -> None:
        """Wait no more for threads that are in a call which nobody can end."""
        cls._abandoned += threads

    @classmethod
    def abandoned(cls) -> bool:
        """Return whether an abandoned thread is alive, over which the interpreter would trip at its end."""
        return any(thread.is_alive() for thread in cls._abandoned)

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the beginning of a stop."""
        self._changed.wait(seconds)
