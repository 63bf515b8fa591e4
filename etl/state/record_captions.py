"""Which captions a record asks for, and which it has: the one place that knows.

A record asks of its source's image what its prompt asks, and has the caption that a recipe gave for these two.  All SQL
that goes from records to captions, or back, is put together from these pieces; their tables are ``records r``,
``sources s`` and ``captions c``.  The database's own triggers say the same in the view ``record_outcomes``.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etl.clock import now_ms
from etl.domain.statuses import FinishReason, ImageFlag

if TYPE_CHECKING:
    from etl.state.sqlite import Database

CURRENT_RECIPE = "(SELECT id FROM recipes WHERE current = 1)"
"""The recipe that outcomes and counts speak of, as an SQL expression."""

PROMPT_OF_RECORD = "(SELECT text FROM prompts WHERE id = r.prompt)"
"""What ``r`` asks, in words."""

GIVEN = "[the caption of a file]\n"
"""How the prompt of a record begins that brings its caption: no model is asked, and the caption is what follows."""

_OF_RECORD = "c.image = s.image AND c.prompt = r.prompt"

CAPTIONS_OF_RECORDS = f"records r JOIN sources s ON s.id = r.source JOIN captions c ON {_OF_RECORD}"
"""What follows FROM: records with their captions, whatever the recipe."""


def written(captions: str) -> str:
    """Return the query for what models wrote of chosen captions ``c``, whatever they were asked."""
    return (
        f"WITH c AS (SELECT c.* FROM {captions}) "
        f"SELECT text FROM c WHERE status = 'done' AND finish_reason <> '{FinishReason.FILE}' "
        "UNION SELECT e.text FROM c JOIN earlier_captions e ON e.caption = c.id"
    )


WRITTEN_ABOUT = written("sources s JOIN captions c ON c.image = s.image WHERE s.url = ?")
"""Selects what models wrote about the picture at a URL."""

SURROUNDINGS = "SELECT DISTINCT format FROM exports WHERE format LIKE '% [%'"
"""Selects the formats of exports that had something before and behind captions; see `around_of`."""


def around_of(name: str) -> tuple[str, str]:
    """Return what such a format has around captions: behind its name, as JSON."""
    before, behind = json.loads(name.partition(" ")[2])
    return before, behind


def caption_of_record(recipe: str) -> str:
    """Return the join by which ``r`` and ``s`` get their caption of a recipe, an SQL expression; NULLs for none."""
    return f"LEFT JOIN captions c ON {_OF_RECORD} AND c.recipe = {recipe}"


def records_of_caption(caption: str) -> str:
    """Return ``FROM ... WHERE ...`` over the active records that ask for a caption, by the name of its table."""
    return (
        "FROM sources s JOIN records r ON r.source = s.id AND r.state = 'active' "
        f"WHERE s.image = {caption}.image AND r.prompt = {caption}.prompt"
    )


def asked_by_record(caption: str, which: str) -> str:
    """Return the condition that a caption, by the name of its table, is what one record ``r`` asks for.

    ``which`` is the condition that tells the record.
    """
    return (
        f"({caption}.image, {caption}.prompt) = "
        f"(SELECT s.image, r.prompt FROM records r JOIN sources s ON s.id = r.source WHERE {which})"
    )


def without_caption(*statuses: str) -> str:
    """Return the condition that ``r`` and ``s`` want a caption of the current recipe.

    That is, that they have none in any of these statuses, and it is not skipped either.
    """
    among = ", ".join(f"'{status}'" for status in statuses)
    return (
        f"NOT EXISTS (SELECT 1 FROM captions c WHERE {_OF_RECORD} AND c.recipe = {CURRENT_RECIPE} "
        f"AND (c.status IN ({among}) OR c.skipped IS NOT NULL))"
    )


def skipped_for(flags: Sequence[str], image: str) -> str:
    """Return for which of these flags an image, by the name of its table, is skipped, as SQL; NULL for none."""
    cases = [f"WHEN instr({image}.flags, '{ImageFlag(flag)}') THEN '{ImageFlag(flag)}'" for flag in flags]
    return f"(CASE {' '.join(cases)} END)" if cases else "NULL"


def queue_captions(db: "Database", recipe: int, source: int | None = None) -> int:
    """Queue what active records ask of images that are here, of one source or of all, inside a transaction.

    A caption that was cancelled begins anew, unless it is skipped; any other stays as it is.  What records bring is
    done at once.  Returns how many are left to be made that are new or wanted again.
    """
    sql = (
        "INSERT INTO captions (image, prompt, recipe) SELECT DISTINCT s.image, r.prompt, ? FROM records r "
        "JOIN sources s ON s.id = r.source JOIN images i ON i.id = s.image "
        f"WHERE r.state = 'active' AND i.state = 'present'{'' if source is None else ' AND s.id = ?'} "
        "ON CONFLICT (image, prompt, recipe) DO UPDATE SET status = 'ready', attempts = 0, crashes = 0, "
        "not_before = 0, error_class = NULL, error = NULL WHERE status = 'cancelled' AND skipped IS NULL"
    )
    of_source = (recipe,) if source is None else (recipe, source)
    queued = db.conn.execute(sql, of_source).rowcount
    # As below, the plus: one image has few captions, and much may be queued.
    which = "status" if source is None else "image = (SELECT image FROM sources WHERE id = ?) AND +status"
    given = db.conn.execute(
        f"UPDATE captions SET status = 'done', text = (SELECT substr(text, {len(GIVEN) + 1}) FROM prompts p "
        f"WHERE p.id = captions.prompt), finish_reason = '{FinishReason.FILE}', tokens = 0, done_at = {now_ms()}, "
        f"run = (SELECT max(id) FROM runs) WHERE recipe = ? AND {which} IN ('ready', 'retry') "
        f"AND EXISTS (SELECT 1 FROM prompts p WHERE p.id = captions.prompt AND substr(p.text, 1, {len(GIVEN)}) = "
        f"'{GIVEN}')",
        of_source,
    ).rowcount
    return queued - given


def skip_captions(db: "Database", recipe: int, flags: Sequence[str], image: int | None = None) -> int:
    """Cancel what is queued of images with one of these flags, of one image or of all; return how many that were."""
    if not flags:
        return 0
    why = skipped_for(flags, "i")
    # The plus keeps SQLite from going through all that is queued: few images are flagged.
    sql = (
        "UPDATE captions SET status = 'cancelled', attempts = 0, not_before = 0, "
        f"skipped = (SELECT {why} FROM images i WHERE i.id = captions.image) "
        "WHERE recipe = ? AND +status IN ('ready', 'retry') AND image IN (SELECT i.id FROM images i "
        f"WHERE i.flags <> '' AND {why} IS NOT NULL{'' if image is None else ' AND i.id = ?'})"
    )
    return db.conn.execute(sql, (recipe,) if image is None else (recipe, image)).rowcount


def take_up_skipped(db: "Database", recipe: int, flags: Sequence[str]) -> None:
    """Let the captions that were skipped, and with these flags would not be, be queued again."""
    why = f"(SELECT {skipped_for(flags, 'i')} FROM images i WHERE i.id = captions.image)"
    db.conn.execute(
        f"UPDATE captions SET skipped = {why} WHERE recipe = ? AND skipped IS NOT NULL AND skipped IS NOT {why}",
        (recipe,),
    )
