"""What the runs have cost: their hours times the hourly price of the machine.

A run that was started with a price (``gpu_price``) costs that.  Another price can be given for those that were not; it
counts for runs that captioned, because fetching needs no such machine.  The time between runs, in which a rented
machine costs as much, is not known here.
"""

from dataclasses import dataclass

from etl.models import Stage
from etl.state.queries import Reader

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
    # A live run's last heartbeat is this very second; a crashed one ended with its last.
    runs = reader.rows(
        "SELECT stages, coalesce(ended_at, heartbeat_at) - started_at, json_extract(config, '$.gpu_price') FROM runs "
        "ORDER BY id DESC"
    )
    prices = [float(own or 0) or (price if Stage.CAPTION in stages.split(",") else 0.0) for stages, _, own in runs]
    spent = [each * max(0, took) / _HOUR_MS for each, (_, took, _) in zip(prices, runs, strict=True)]
    return Cost(prices[0], spent[0], sum(spent)) if any(prices) else None
