"""What is shown of a run that goes on: rows with bars, each made to fit one line of a terminal, however narrow."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size

from etl.cli.hosts import errors_text, host_line, is_news
from etl.clock import stops_at
from etl.domain.statuses import QueueStatus, RecordOutcome, RecordState, RunState, Stage
from etl.domain.views import Progress
from etl.text import clean
from etl.units import duration, percent, size

NAME_WIDTH = 9
"""Columns of a row's name."""

_BAR_WIDTHS = range(4, 41)
"""Columns of a bar: what the words of its line leave of it."""

_SHOWN_HOSTS = 4

_PLAIN_HOST_CHARS = 160

_WINDOW_MS = 180_000
"""Over which the pace of a run is taken; captions come in bursts."""

_FAR_MS = 20 * 3600 * 1000
"""A finish that is farther off is told with its day."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a name, a bar where there is something to count, and facts.

    Attributes:
        bar: share that is done, from 0 to 1; ``None`` for a line of words alone.
        must: facts that are always shown.
        may: further ones, as many as there is room for, the first before the others.
    """

    name: str
    bar: float | None
    must: Sequence[str]
    may: Sequence[str] = ()

    def parts(self, width: int) -> tuple[str, int, str]:
        """Return the name, the columns of the bar and the facts, which together take at most ``width`` columns."""
        name, text = f"{self.name:<{NAME_WIDTH}}", "  ".join(self.must)
        room = width - NAME_WIDTH - 1 - (_BAR_WIDTHS[0] + 1 if self.bar is not None else 0)
        for fact in self.may:
            if cell_len(text) + 2 + cell_len(fact) <= room:
                text = f"{text}  {fact}" if text else fact
        text = cut(text, room)
        if self.bar is None:
            return name, 0, text
        return name, min(_BAR_WIDTHS[-1], _BAR_WIDTHS[0] + room - cell_len(text)), text


def cut(text: str, width: int) -> str:
    """Return a clean text that takes at most so many columns; where something was cut off it ends with ``...``."""
    text = clean(text)
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 3)).rstrip() + "..."[: max(0, width)]


class Pace:
    """How fast the whole run goes, by what was shown of it: records share captions, so no queue tells that."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def per_s(self, now: Progress) -> float:
        """Return records, or pictures where nothing is captioned, per second over the last minutes."""
        if now.loading:
            # What fails meanwhile, and the wait itself, tell nothing of the pace of captions.
            self._seen.clear()
        self._seen.append((now.at, _Overall(now, 0.0).done))
        while now.at - self._seen[0][0] > _WINDOW_MS:
            self._seen.popleft()
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return max(0, last - first) * 1000 / (last_at - first_at) if last_at > first_at else 0.0


def rows(now: Progress, pace: float, most: int = 20) -> Iterator[Row]:
    """Yield what is to be shown, the most important first, in at most so many lines; ``pace`` is that of `Pace`."""
    overall = _Overall(now, pace)
    shown = [overall.row(), overall.facts(), *_stage_rows(now)]
    yield from shown
    hosts = [host for host in now.hosts if is_news(host)]
    room = max(1, min(_SHOWN_HOSTS, most - len(shown)))
    if now.fetch_errors:
        yield Row("errors", None, [errors_text(now)])
        room = max(1, room - 1)
    hidden = max(0, len(hosts) - room) + now.more_hosts[0]
    for number, host in enumerate(hosts[:room], 1):
        more = f"({hidden:,} more)  " if hidden and number == min(room, len(hosts)) else ""
        yield Row("host", None, [more + host_line(host)])


class _Overall:
    """How far the whole run is: against all that was selected, not against what has come so far."""

    def __init__(self, now: Progress, pace: float) -> None:
        self._now = now
        self._rate = pace
        if Stage.CAPTION in stages(now):
            self._name, self._total = "records", now.records.get(RecordState.ACTIVE, 0)
            self.done = now.ended
        else:
            self._name, self._total = "pictures", wanted(now.sources)
            self.done = sum(now.sources.get(status, 0) for status in (QueueStatus.DONE, QueueStatus.DEAD))
        left = 0 if now.loading else self._total - self.done
        self.seconds = max(left / pace if pace else 0.0, now.fetch_seconds or 0.0) or None if left else None
        """Until all is done; ``None`` while that cannot be said, or nothing is left."""

    @property
    def counts(self) -> str:
        """Done of all."""
        return f"{self.done:,}/{self._total:,}"

    @property
    def percent(self) -> str:
        """The share in words."""
        return percent(self.done, self._total) or "0 %"

    @property
    def share(self) -> float:
        """Done of all, from 0 to 1."""
        return min(1.0, self.done / self._total) if self._total else 0.0

    @property
    def finish(self) -> str:
        """When all will be done, as a time of the clock."""
        if self.seconds is None:
            return "ETA --:--" if self.done < self._total or not self._total else "all done"
        at = self._now.at + self.seconds * 1000
        form = "%H:%M" if at - self._now.at < _FAR_MS else "%a %d %b %H:%M"
        try:
            return f"ETA {datetime.fromtimestamp(at / 1000).astimezone():{form}}"
        except (ValueError, OverflowError, OSError):
            return "ETA in years"

    def row(self) -> Row:
        """Return the line with the bar."""
        return Row(self._name, self.share, [self.counts, self.percent, self.finish])

    def facts(self) -> Row:
        """Return the line below it: what the run is at, rate, times, money, device."""
        return Row("", None, [], self.words())

    def words(self) -> list[str]:
        """Return rate, times, money and device, as far as they are known."""
        now, found = self._now, [f"{self._rate:.1f}/s"]
        if now.run is not None:
            if now.run.state in (RunState.PAUSED, RunState.STOPPING):
                found.insert(0, now.run.state.value)
            found.append(f"{duration(max(0, now.at - now.run.started_at) / 1000)} so far")
        if self.seconds is not None:
            found.append(f"{duration(self.seconds)} left")
        if now.spent is not None:
            found.append(f"{now.spent:,.2f} spent")
        if now.device:
            found.append(clean(now.device, 40))
        if now.run is not None and now.run.stops_at is not None:
            found.append(stops_at(now.run.stops_at, now.at))
        return found


def stages(now: Progress) -> tuple[str, ...]:
    """Return the stages of the latest run; both that take long where there is none."""
    return now.run.stages if now.run is not None else (Stage.FETCH, Stage.CAPTION)


def _stage_rows(now: Progress) -> Iterator[Row]:
    if Stage.FETCH in stages(now):
        done, total = now.sources.get(QueueStatus.DONE, 0), wanted(now.sources)
        yield Row(
            Stage.FETCH, done / total if total else 0.0,
            [f"{done:,}/{total:,}", f"{now.fetched_per_s:.1f}/s"],
            [*_trouble(now.sources.get(QueueStatus.DEAD, 0), now.sources.get(QueueStatus.RETRY, 0)),
             *([f"{size(now.bytes_per_s)}/s"] if now.bytes_per_s else []),
             *([f"{duration(now.fetch_seconds)} left"] if now.fetch_seconds else [])],
        )  # fmt: skip
    if Stage.CAPTION not in stages(now):
        return
    if now.download is not None:
        model = now.download
        left = (model.total - model.done) / model.bytes_per_s if model.bytes_per_s else None
        yield Row(
            "model", min(1.0, model.done / model.total) if model.total else 0.0,
            [f"{size(model.done)}/{size(model.total)}", f"{size(model.bytes_per_s)}/s"],
            ["" if left is None else f"{duration(left)} left"],
        )  # fmt: skip
    done, total = now.outcomes.get(RecordOutcome.CAPTIONED, 0), now.records.get(RecordState.ACTIVE, 0)
    pace = "loading the model" if now.loading and now.download is None else f"{now.captioned_per_s:.1f}/s"
    yield Row(
        Stage.CAPTION, done / total if total else 0.0, [f"{done:,}/{total:,}", pace],
        _trouble(now.captions.get(QueueStatus.DEAD, 0), now.captions.get(QueueStatus.RETRY, 0)),
    )  # fmt: skip


def _trouble(failed: int, retried: int) -> list[str]:
    return [f"{n:,} {word}" for n, word in ((failed, "failed"), (retried, "will retry")) if n]


def progress_line(now: Progress, pace: float) -> str:
    """Return the same as one plain line, for a log."""
    overall = _Overall(now, pace)
    parts = [", ".join((f"{overall.row().name} {overall.counts}", overall.percent, overall.finish, *overall.words()))]
    for row, counts in zip(
        (row for row in _stage_rows(now) if row.name != "model"),
        [now.sources] * (Stage.FETCH in stages(now)) + [now.captions],
        strict=False,
    ):
        failed, retried = counts.get(QueueStatus.DEAD, 0), counts.get(QueueStatus.RETRY, 0)
        part = f"{row.name} {row.must[0]} ({failed:,} failed, {retried:,} will retry) {row.must[1]}"
        if row.name == Stage.FETCH:
            part += f" {size(now.bytes_per_s)}/s" if now.bytes_per_s else ""
            part += f", {duration(now.fetch_seconds)} left" if now.fetch_seconds else ""
        parts.append(part)
    parts += [f"model {'  '.join((*row.must, *row.may))}" for row in _stage_rows(now) if row.name == "model"]
    if now.fetch_errors:
        parts.append(f"errors: {errors_text(now)}")
    parts += [f"host {clean(host_line(host), _PLAIN_HOST_CHARS)}" for host in now.hosts if is_news(host)]
    return "; ".join(parts)


def wanted(counts: dict[str, int]) -> int:
    """Return how many items of a queue some record needs."""
    return sum(n for status, n in counts.items() if status != QueueStatus.CANCELLED)
