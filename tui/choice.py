"""Which failures a retry means."""

import shlex
from dataclasses import dataclass

from etl.models import FailureFilter

EVERYTHING = FailureFilter()


@dataclass(frozen=True, slots=True)
class Choice:
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
        given = (("--stage", chosen.stage), ("--class", chosen.error_class), ("--host", chosen.host),
                 ("--key", chosen.key))  # fmt: skip
        return shlex.join(["etl", "retry-failed", *(word for pair in given if pair[1] for word in map(str, pair))])
