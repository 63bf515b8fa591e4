"""Captions made again with changed decoding, because an identical attempt would give the same words.

The caption that there was moves to ``earlier_captions`` and stays what readers get until the new one takes its place:
an attempt that waits for its picture, fails or is cancelled costs nobody a caption.
"""

from dataclasses import dataclass

from etl.domain.views import FailureFilter
from etl.state.database import Connection
from etl.state.images import wake_evicted
from etl.state.penalty import HIGHEST_PENALTY, PENALTY
from etl.state.requeue import REVIVED, chosen_items

_NEEDED = (
    " AND EXISTS (SELECT 1 FROM sources s JOIN records r ON r.source = s.id "
    "WHERE s.image = captions.image AND r.state = 'active' AND r.prompt = captions.prompt)"
)
_FLAGGED = "status = 'done' AND flags <> '' AND instr(',' || flags || ',', ',' || ? || ',')"
_LAST = "coalesce(repetition_penalty, 1.0)"


@dataclass(frozen=True, slots=True)
class CaptionsAgain:
    """What was put back into the caption queue, or would be.

    Attributes:
        caption: captions to be made again.
        waiting: of these, captions whose picture must be fetched first.
        exhausted: captions left as they are, because they were made with the highest penalty already.
        penalties: number of captions by the repetition penalty that they will be made with.
    """

    caption: int
    waiting: int
    exhausted: int
    penalties: dict[float, int]

    def line(self, *, dry_run: bool = False) -> str:
        """Return one line for people."""
        text = f"caption: {self.caption:,} {'would be' if dry_run else 'will be'} made again"
        if self.penalties:
            text += " with a repetition penalty of " + ", ".join(
                f"{penalty:g} ({n:,})" if len(self.penalties) > 1 else f"{penalty:g}"
                for penalty, n in sorted(self.penalties.items())
            )
        if self.waiting:
            text += f"; {self.waiting:,} of them when their pictures have been fetched again"
        if self.exhausted:
            text += f"; {self.exhausted:,} have had the highest penalty, {HIGHEST_PENALTY:g}, and are left as they are"
        return text


def caption_again(connection: Connection, chosen: FailureFilter, *, dry_run: bool = False) -> CaptionsAgain:
    """Put the finished captions of the current recipe with ``chosen.flag`` back into the queue, to be decoded anew.

    The penalty grows with each time: what it exceeds 1 by is added to the penalty that the caption was made with, up to
    `HIGHEST_PENALTY`.  Captions that no active record needs stay as they are.  With ``dry_run`` they are only counted.
    """
    step = (chosen.repetition_penalty or PENALTY) - 1.0
    condition, arguments = chosen_items("captions", chosen)
    flagged, arguments = f"{_FLAGGED}{condition}{_NEEDED}", [chosen.flag or "", *arguments]
    higher = f"round(min({_LAST} + {step!r}, {HIGHEST_PENALTY}), 4)"
    where = f"{flagged} AND {_LAST} < {HIGHEST_PENALTY}"
    with connection.transaction("retry.again") as db:
        rows = db.conn.execute(
            f"SELECT {higher}, {REVIVED['captions']}, count(*) FROM captions WHERE {where} GROUP BY 1, 2", arguments
        ).fetchall()
        total = db.conn.execute(f"SELECT count(*) FROM captions WHERE {flagged}", arguments).fetchone()[0]
        if not dry_run:
            db.conn.execute(
                "INSERT INTO earlier_captions (caption, text, finish_reason, tokens, flags, repetition_penalty, run, "
                "done_at) SELECT id, text, finish_reason, tokens, flags, repetition_penalty, run, done_at "
                f"FROM captions WHERE {where}",
                arguments,
            )
            moved = db.conn.execute(
                f"UPDATE captions SET status = {REVIVED['captions']}, repetition_penalty = {higher}, text = NULL, "
                "finish_reason = NULL, tokens = NULL, flags = '', run = NULL, done_at = NULL, attempts = 0, "
                f"crashes = 0, not_before = 0 WHERE {where} RETURNING status, image",
                arguments,
            ).fetchall()
            wake_evicted(db, [image for status, image in moved if status == "cancelled"])
    penalties: dict[float, int] = {}
    for penalty, _, n in rows:
        penalties[penalty] = penalties.get(penalty, 0) + n
    count = sum(penalties.values())
    return CaptionsAgain(count, sum(n for _, status, n in rows if status == "cancelled"), total - count, penalties)
