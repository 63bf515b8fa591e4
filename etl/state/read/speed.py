"""How fast captions were made in earlier runs, by the captions that they left."""

from dataclasses import dataclass

from etl.state.read.reader import Reader
from etl.state.record_captions import CURRENT_RECIPE

LEAST = 20
"""Captions from which a run says anything of speed."""


@dataclass(frozen=True, slots=True)
class CaptionSpeed:
    """Captions per second of one run, from its first to its last; ``run`` is its uid, ``host`` where it was."""

    per_s: float
    captions: int
    run: str
    host: str


def caption_speed(reader: Reader) -> CaptionSpeed | None:
    """Return the speed of the latest run that made enough captions under the current recipe; ``None`` for none."""
    rows = reader.rows(
        "SELECT count(*), max(c.done_at) - min(c.done_at), r.uid, r.host FROM captions c JOIN runs r ON r.id = c.run "
        f"WHERE c.status = 'done' AND c.recipe = {CURRENT_RECIPE} "
        "GROUP BY r.id HAVING count(*) >= ? AND max(c.done_at) > min(c.done_at) ORDER BY r.id DESC LIMIT 1",
        (LEAST,),
    )
    return next((CaptionSpeed(1000 * (n - 1) / took, n, uid, host) for n, took, uid, host in rows), None)
