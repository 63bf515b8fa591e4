"""When the work was done: runs laid end to end, so that the nights between them take no room in a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etl.domain.views import RunInfo


@dataclass(frozen=True, slots=True)
class Span:
    """Unix milliseconds in which at least one run was at work; ``offset`` is the busy time before it."""

    start: int
    end: int
    offset: int


class Timeline:
    """Maps instants to busy time, in milliseconds since the first run began.

    Attributes:
        spans: in their order, without overlaps.
        busy: the length of all.
    """

    def __init__(self, runs: Sequence[RunInfo]) -> None:
        self.spans: list[Span] = []
        self.busy = 0
        for start, end in sorted((run.started_at, run.ended_at or run.heartbeat_at) for run in runs):
            last = self.spans[-1] if self.spans else None
            if last is not None and start <= last.end:
                end = max(end, last.end)
                self.spans[-1] = Span(last.start, end, last.offset)
            else:
                end = max(start, end)
                self.spans.append(Span(start, end, self.busy))
            self.busy = self.spans[-1].offset + self.spans[-1].end - self.spans[-1].start

    def place(self, at: int) -> int:
        """Return the busy time at an instant; one between two runs belongs to the end of the earlier."""
        before = [span for span in self.spans if span.start <= at]
        if not before:
            return 0
        span = before[-1]
        return span.offset + min(at, span.end) - span.start

    def gather(self, counts: Mapping[int, int], buckets: int) -> list[int]:
        """Return the counts of so many stretches of equal busy time, given counts by instant."""
        sums = [0] * buckets
        for at, count in counts.items():
            sums[min(buckets - 1, self.place(at) * buckets // max(1, self.busy))] += count
        return sums
