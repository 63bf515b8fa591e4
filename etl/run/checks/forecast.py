"""What is still to be done in the state at hand: how many pictures, how many hours, how much money."""

from etl.domain.statuses import QueueStatus, RecordOutcome
from etl.errors import EtlError, StateError
from etl.fetch.estimate import estimate_of
from etl.run.checks.check import Check
from etl.settings import Settings
from etl.state.read.cost import cost
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.read.speed import caption_speed
from etl.text import clean
from etl.units import count, duration

_DUE = (QueueStatus.READY, QueueStatus.RETRY, QueueStatus.RUNNING)

MEASURE = "`etl run --limit 300` or a run of some minutes measures it"


def records_to_do(settings: Settings) -> int:
    """Return the records of the state at hand that still want a caption."""
    try:
        with Reader(settings.state) as reader:
            return read_progress(reader).outcomes.get(RecordOutcome.PENDING, 0)
    except StateError:
        return 0


def work(settings: Settings) -> Check:
    """Say what is left to do, and how long that takes at the rates of earlier runs, side by side as a run does it."""
    try:
        with Reader(settings.state) as reader:
            return _work(reader, settings)
    except EtlError:
        return Check("time", "note", f"there is no state in {settings.state}, so nothing is known of its work")


def _work(reader: Reader, settings: Settings) -> Check:
    progress = read_progress(reader)
    fetches = _due(progress.sources)
    captions = progress.outcomes.get(RecordOutcome.PENDING, 0)
    if progress.captions:
        # Records that share picture and prompt share the caption; one that is to come wants one at least.
        captions = min(captions, _due(progress.captions) + fetches)
    said = f"{count(fetches, 'picture')} to fetch, about {count(captions, 'caption')} to make"
    if not captions:
        return Check("time", "ok", "nothing is left to do")
    fetching = estimate_of(reader, settings).seconds if fetches else 0.0
    speed = caption_speed(reader)
    if fetching is None or speed is None:
        unknown = [name for name, known in (("fetching", fetching), ("captioning", speed)) if known is None]
        return Check("time", "note", f"{said}; how long {' and '.join(unknown)} takes is not known yet", MEASURE)
    captioning = captions / speed.per_s
    hours = max(fetching, captioning) / 3600
    rates = f"{speed.per_s:.2g} captions/s as run {speed.run[:8]} on {clean(speed.host, 60)}"
    said += f"; about {duration(3600 * hours)} at the rates of earlier runs ({rates}"
    said += f", {duration(fetching)} of fetching)" if fetches else ")"
    price = settings.gpu_price or (known.price if (known := cost(reader)) else 0.0)
    if not price:
        return Check("time", "ok", said, "`--gpu-price` says what that costs")
    return Check("time", "ok", f"{said}; {hours * price:,.2f} at {price:,.2f} an hour")


def _due(counts: dict[str, int]) -> int:
    return sum(counts.get(status, 0) for status in _DUE)
