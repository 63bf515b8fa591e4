"""Which failures a retry means."""

import shlex
from dataclasses import dataclass

from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.text import clean
from tui.snapshot import ClassView

EVERYTHING = FailureFilter()

MANIFEST = "Its manifest lines are invalid: correct the file and ingest it again."
BY_ITSELF = "These will retry by themselves when their time has come."


@dataclass(frozen=True, slots=True)
class RetrySelection:
    """What would be retried.

    Attributes:
        failures: the filter for the run.
        items: how many that are now.
        what: in words, for a question.
        problem: why there is nothing to retry; empty where there is.
    """

    failures: FailureFilter = EVERYTHING
    items: int = 0
    what: str = "failed items"
    problem: str = ""

    def command(self) -> str:
        """Return the command line that does the same without a live run."""
        chosen = self.failures
        given = (
            ("--stage", chosen.stage),
            ("--class", chosen.error_class),
            ("--host", chosen.host),
            ("--key", chosen.key),
        )
        return shlex.join(["etl", "retry-failed", *(word for pair in given if pair[1] for word in map(str, pair))])


def selection_of(view: ClassView) -> RetrySelection:
    """Return what a retry of a whole class means."""
    what = f"{view.stage} items with {clean(view.error_class, 40)}"
    if view.stage == Stage.INGEST:
        return RetrySelection(problem=MANIFEST)
    if not view.failed:
        return RetrySelection(problem=BY_ITSELF)
    return RetrySelection(FailureFilter(stage=Stage(view.stage), error_class=view.error_class), view.items, what)
