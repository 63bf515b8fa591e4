"""What a run keeps back of the time until its deadline, so that it has really ended by then."""

from dataclasses import dataclass

from etl.deadline import Deadline
from etl.errors import StateError
from etl.export.stage import export_seconds
from etl.run.plan import Plan
from etl.run_control import GRACE_S
from etl.settings import Settings
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.units import duration

SPARE_S = 5.0
"""Seconds between the last moment of work in flight and the deadline, beside the export: to end decoders and GPU
workers, to commit, and to end the process."""


@dataclass(frozen=True)
class KeptBack:
    """Seconds before the deadline in which nothing is begun; ``export_s`` of them are for the export."""

    export_s: float

    @classmethod
    def of(cls, settings: Settings, plan: Plan) -> "KeptBack":
        """Return what is kept back now, as many records as the state holds."""
        if plan.output is None:
            return cls(0.0)
        try:
            with Reader(settings.state) as reader:
                return cls(export_seconds(sum(read_progress(reader).records.values())))
        except StateError:
            # There is none before the first manifest is read.
            return cls(export_seconds(0))

    @property
    def seconds(self) -> float:
        """All of it."""
        return GRACE_S + SPARE_S + self.export_s

    def line(self, left_s: float) -> str:
        """Return one line on it, with ``left_s`` until the deadline."""
        export = f", {duration(self.export_s)} for the export" if self.export_s else ""
        why = f"{duration(GRACE_S)} for what is in flight, {duration(SPARE_S)} to end{export}"
        if left_s <= self.seconds:
            return (
                f"the deadline is in {duration(left_s)}, and the last {duration(self.seconds)} are kept back ({why}): "
                "nothing new is begun, give a later one"
            )
        return f"the deadline is in {duration(left_s)}; in the last {duration(self.seconds)} nothing is begun ({why})"


def kept_back_line(settings: Settings, plan: Plan) -> str | None:
    """Return what a run with these settings says at its start of its deadline; ``None`` without one.

    Raises `ConfigError` for one that is over.
    """
    deadline = Deadline.begin(settings.deadline)
    return None if deadline is None else KeptBack.of(settings, plan).line(deadline.left())
