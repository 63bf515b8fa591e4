"""Giving items another chance: failed ones, and finished captions that are to be made again with changed decoding.

An identical attempt would give the same words, so a caption is made again with a higher repetition penalty.  The
caption that there was moves to ``earlier_captions`` and stays what readers get until the new one takes its place: an
attempt that waits for its picture, fails or is cancelled costs nobody a caption.
"""

from dataclasses import dataclass

from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.state.database import Connection
from etl.state.images import wake_evicted
from etl.state.read.failures import filter_condition
from etl.state.record_captions import records_of_caption

PENALTY = 1.2
"""The usual repetition penalty; 1 is none.  What CTRL, which brought it in, found to balance truth and loops."""

HIGHEST_PENALTY = 2.0
"""Far beyond it a model avoids even its articles, and its sentences fall apart."""

LOWEST_PENALTY = 1.01
"""The smallest step that is kept as more than rounding."""

UNLIKELY: dict[str, str] = {
    QualityFlag.TRUNCATED: "unless the text goes round in a loop, the token limit is too low for it; a higher "
    "--max-new-tokens is another recipe, which captions every picture again",
    QualityFlag.EMPTY: "most empty captions end before their first word, and there no word is repeated",
    QualityFlag.REFUSAL: "what a model will not say depends on the picture and the prompt; another --prompt-template "
    "helps more",
    QualityFlag.THOUGHT_ONLY: "a model reasons as long as before; --chat-template-arg enable_thinking=false, or a "
    "higher --max-new-tokens, is another recipe, which captions every picture again",
    QualityFlag.RECOMPUTED: "nothing is wrong with these words; --dtype float32 or bfloat16 would avoid the overflow",
}
"""Why a repetition penalty hardly changes what the flag says.  It helps against the others: loops, and echoes, since
the words of the prompt are avoided too."""

_REVIVED = {
    Stage.FETCH: "'ready'",
    Stage.CAPTION: (
        "CASE (SELECT i.state FROM images i WHERE i.id = t.image) WHEN 'present' THEN 'ready' ELSE 'cancelled' END"
    ),
}
"""What an item's status becomes; a caption without its picture would only be claimed and fail."""

_NEEDED = f" AND EXISTS (SELECT 1 {records_of_caption('t')})"
_FLAGGED = "t.status = 'done' AND t.flags <> '' AND instr(',' || t.flags || ',', ',' || ? || ',')"
_LAST = "coalesce(t.repetition_penalty, 1.0)"


def retry_failed(connection: Connection, chosen: FailureFilter, *, dry_run: bool = False) -> dict[str, int]:
    """Put the chosen failed items back to ready with no attempts charged; return how many per stage.

    Captions of an earlier recipe are left alone: nobody would work on them.  One whose picture is not there is
    cancelled until it has been fetched again.  History stays in ``attempts``.  With ``dry_run`` they are only counted.
    """
    counts: dict[str, int] = {}
    with connection.transaction("retry.dead") as db:
        for stage, table in ((Stage.FETCH, "sources"), (Stage.CAPTION, "captions")):
            if chosen.stage not in (None, stage):
                continue
            condition, arguments = filter_condition(stage, chosen)
            if dry_run:
                sql = f"SELECT count(*) FROM {table} t WHERE t.status = 'dead'{condition}"
                counts[stage] = int(db.conn.execute(sql, arguments).fetchone()[0])
                continue
            revived = db.conn.execute(
                f"UPDATE {table} AS t SET status = {_REVIVED[stage]}, attempts = 0, crashes = 0, not_before = 0, "
                f"error_class = NULL, error = NULL WHERE t.status = 'dead'{condition} RETURNING status, image",
                arguments,
            ).fetchall()
            counts[stage] = len(revived)
            wake_evicted(db, [image for status, image in revived if status == "cancelled"])
    return counts


@dataclass(frozen=True, slots=True)
class Recaption:
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
            text += f"; {self.exhausted:,} left as made, with the highest penalty, {HIGHEST_PENALTY:g}"
        return text


def recaption(connection: Connection, chosen: FailureFilter, *, dry_run: bool = False) -> Recaption:
    """Put the finished captions of the current recipe with ``chosen.flag`` back into the queue, to be decoded anew.

    The penalty grows with each time: what it exceeds 1 by is added to the penalty that the caption was made with, up to
    `HIGHEST_PENALTY`.  Captions that no active record needs stay as they are.  With ``dry_run`` they are only counted.
    """
    step = (chosen.repetition_penalty or PENALTY) - 1.0
    condition, arguments = filter_condition(Stage.CAPTION, chosen)
    flagged, arguments = f"{_FLAGGED}{condition}{_NEEDED}", [chosen.flag or "", *arguments]
    higher = f"round(min({_LAST} + {step!r}, {HIGHEST_PENALTY}), 4)"
    where = f"{flagged} AND {_LAST} < {HIGHEST_PENALTY}"
    with connection.transaction("retry.again") as db:
        rows = db.conn.execute(
            f"SELECT {higher}, {_REVIVED[Stage.CAPTION]}, count(*) FROM captions t WHERE {where} GROUP BY 1, 2",
            arguments,
        ).fetchall()
        total = db.conn.execute(f"SELECT count(*) FROM captions t WHERE {flagged}", arguments).fetchone()[0]
        if not dry_run:
            db.conn.execute(
                "INSERT INTO earlier_captions (caption, text, finish_reason, tokens, flags, repetition_penalty, run, "
                "done_at, thinking) SELECT id, text, finish_reason, tokens, flags, repetition_penalty, run, done_at, "
                "thinking "
                f"FROM captions t WHERE {where}",
                arguments,
            )
            moved = db.conn.execute(
                f"UPDATE captions AS t SET status = {_REVIVED[Stage.CAPTION]}, repetition_penalty = {higher}, "
                "text = NULL, finish_reason = NULL, tokens = NULL, flags = '', run = NULL, done_at = NULL, "
                "thinking = NULL, "
                f"attempts = 0, crashes = 0, not_before = 0 WHERE {where} RETURNING status, image",
                arguments,
            ).fetchall()
            wake_evicted(db, [image for status, image in moved if status == "cancelled"])
    penalties: dict[float, int] = {}
    for penalty, _, n in rows:
        penalties[penalty] = penalties.get(penalty, 0) + n
    count = sum(penalties.values())
    return Recaption(count, sum(n for _, status, n in rows if status == "cancelled"), total - count, penalties)
