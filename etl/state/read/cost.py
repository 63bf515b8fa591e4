"""What the runs have cost: their hours times the hourly price of the machine.

A run that was started with a price (``gpu_price``) costs that.  Another price can be given for those that were not; it
counts for runs that captioned, because fetching needs no such machine.  The time between runs, in which a rented
machine costs as much, is not known here.
"""

from dataclasses import dataclass

from etl.domain.statuses import Stage
from etl.state.read.reader import Reader

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost in whatever money the price is in.

    Attributes:
        price: per hour, of the latest run.
        run: of the latest run so far.
        total: of all runs.
    """

    price: float
    run: float
    total: float


def cost(reader: Reader, price: float = 0.0) -> Cost | None:
    """Return what the runs have cost; ``None`` when neither they nor the caller know a price."""
    runs = list(_priced(reader, price).values())
    if not any(each for each, _ in runs):
        return None
    return Cost(runs[0][0], runs[0][1], sum(spent for _, spent in runs))


def cost_by_run(reader: Reader, price: float = 0.0) -> dict[int, float]:
    """Return what each run has cost so far, by its id; those without a price are left out."""
    return {run: spent for run, (each, spent) in _priced(reader, price).items() if each}


def _priced(reader: Reader, price: float) -> dict[int, tuple[float, float]]:
    """Return the price per hour and the cost of each run, by its id, newest first."""
    # A live run's last heartbeat is this very second; a crashed one ended with its last.
    runs = reader.rows(
        "SELECT id, stages, coalesce(ended_at, heartbeat_at) - started_at, "
        "CASE WHEN json_valid(config) THEN json_extract(config, '$.gpu_price') END "
        "FROM runs ORDER BY id DESC"
    )
    prices = {
        run: float(own or 0) or (price if Stage.CAPTION in stages.split(",") else 0.0) for run, stages, _, own in runs
    }
    return {run: (prices[run], prices[run] * max(0, took) / _HOUR_MS) for run, _, took, _ in runs}
