"""Captions to look at, one after the other: the latest, those with quality flags, those that hold a word.

A `Cursor` orders all captions by the time at which they were made.  `step` goes from a cursor to the next caption that
is wanted; it looks at so many at a time, so that no read lasts, and is called again where it stopped.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from etl.state.database import FLAGS_VERSION, LOOKING_VERSION, THINKING_VERSION
from etl.state.read.reader import Reader
from etl.state.read.titles import title_and_date
from etl.state.record_captions import records_of_caption

LOOKED_AT_ONCE = 2000
"""Captions that one step of a search reads: about 20 ms."""


class Cursor(NamedTuple):
    """Where a caption stands: when it was made, Unix milliseconds, and its row."""

    done_at: int
    caption: int


NEWEST = Cursor(2**62, 2**62)
"""The cursor behind the last caption."""


@dataclass(frozen=True, slots=True)
class CaptionFilter:
    """Which captions are wanted.

    Attributes:
        flagged: only those with quality flags.
        text: only those that hold this in their words or in their record's title, whatever the case.
    """

    flagged: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found.

    Attributes:
        found: the caption; ``None`` when none of those looked at was wanted.
        reached: the cursor to go on from; ``None`` when there are no more.
        looked_at: captions that were read.
    """

    found: Cursor | None
    reached: Cursor | None
    looked_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One caption with what a person wants to know beside it.

    Attributes:
        cursor: where it stands.
        key, url: of the first record that shares it; both empty where no record needs it any more.
        records: active records that share it.
        title, date: of that record's line.
        text, tokens, finish_reason, flags: as it was made.
        thinking: what the model reasoned before it; empty where it did not.
        image_flags: what is suspicious about the picture.
        model, revision: what made it.
        current: whether the recipe is the current one.
        picture: the working copy; ``None`` when it has left the cache.
        width, height: pixels of the original.
    """

    cursor: Cursor
    key: str
    url: str
    records: int
    title: str | None
    date: str | None
    text: str
    tokens: int | None
    finish_reason: str | None
    flags: tuple[str, ...]
    thinking: str
    image_flags: tuple[str, ...]
    model: str
    revision: str
    current: bool
    picture: Path | None
    width: int
    height: int


_OF_CAPTION = records_of_caption("c")


def step(reader: Reader, cursor: Cursor, chosen: CaptionFilter, *, older: bool) -> Step:
    """Go from a cursor to the next older or newer caption that is wanted, as far as one read goes."""
    if chosen.text:
        return _search(reader, cursor, chosen, older=older)
    if chosen.flagged and reader.version >= LOOKING_VERSION:
        return _next_flagged(reader, cursor, older=older)
    flagged = "AND c.flags <> ''" if chosen.flagged else ""
    rows = reader.rows(
        f"SELECT c.done_at, c.id FROM captions c WHERE c.status = 'done' {flagged} {_beyond(older)} LIMIT 1", cursor
    )
    found = Cursor(*rows[0]) if rows else None
    return Step(found, found, len(rows))


def at_random(reader: Reader, chosen: CaptionFilter) -> Cursor:
    """Return a random cursor to step from; the captions after a gap in the numbers are a little likelier."""
    flagged = " AND flags <> ''" if chosen.flagged and not chosen.text else ""
    highest = reader.rows("SELECT coalesce(max(id), 0) FROM captions")[0][0]
    rows = reader.rows(
        f"SELECT done_at, id FROM captions WHERE status = 'done'{flagged} AND id >= ? ORDER BY id LIMIT 1",
        (random.randint(0, highest),),
    )
    return Cursor(rows[0][0], rows[0][1] + 1) if rows else NEWEST


def sample(reader: Reader, caption: int) -> Sample | None:
    """Return one finished caption; ``None`` when it is no longer there, because it is being made again."""
    thinking = "coalesce(c.thinking, '')" if reader.version >= THINKING_VERSION else "''"
    image_flags = "i.flags" if reader.version >= FLAGS_VERSION else "''"
    rows = reader.rows(
        f"SELECT c.done_at, c.text, c.tokens, c.finish_reason, c.flags, {thinking}, {image_flags}, p.model, "
        "p.revision, p.current, "
        f"i.working_sha256, i.state, i.width, i.height, (SELECT r.id {_OF_CAPTION} LIMIT 1), "
        f"(SELECT count(*) {_OF_CAPTION}) FROM captions c JOIN recipes p ON p.id = c.recipe "
        "JOIN images i ON i.id = c.image WHERE c.id = ? AND c.status = 'done'",
        (caption,),
    )
    if not rows:
        return None
    done_at, text, tokens, reason, flags, thought, suspicious, model, revision, current, *rest = rows[0]
    sha256, state, width, height, record, n = rest
    key, url, line = _record(reader, record)
    title, date = title_and_date(line)
    return Sample(
        cursor=Cursor(done_at, caption),
        key=key,
        url=url,
        records=n,
        title=title,
        date=date,
        text=text,
        tokens=tokens,
        finish_reason=reason,
        flags=tuple(filter(None, flags.split(","))),
        thinking=thought,
        image_flags=tuple(filter(None, suspicious.split(","))),
        model=model,
        revision=revision,
        current=bool(current),
        picture=_working_copy(reader, sha256) if state == "present" else None,
        width=width,
        height=height,
    )


def _record(reader: Reader, record: int | None) -> tuple[str, str, bytes]:
    rows = reader.rows(
        "SELECT r.key, s.url, l.line FROM records r JOIN sources s ON s.id = r.source "
        "JOIN record_lines l ON l.record = r.id WHERE r.id = ?",
        (record,),
    )
    return rows[0] if rows else ("", "", b"")


def _working_copy(reader: Reader, sha256: str) -> Path:
    # As `etl.images.cache` lays them out, which this layer does not know.
    return reader.state.resolve() / "images" / "working" / sha256[:2] / f"{sha256}.jpg"


def _beyond(older: bool) -> str:
    sign, order = ("<", "DESC") if older else (">", "ASC")
    return f"AND (c.done_at, c.id) {sign} (?, ?) ORDER BY c.done_at {order}, c.id {order}"


def _next_flagged(reader: Reader, cursor: Cursor, *, older: bool) -> Step:
    """Step through the index over flagged captions, which is in the order of their rows."""
    sign, order = ("<", "DESC") if older else (">", "ASC")
    rows = reader.rows(
        f"SELECT done_at, id FROM captions WHERE flags <> '' AND status = 'done' AND id {sign} ? "
        f"ORDER BY id {order} LIMIT 1",
        (cursor.caption,),
    )
    found = Cursor(*rows[0]) if rows else None
    return Step(found, found, len(rows))


def _search(reader: Reader, cursor: Cursor, chosen: CaptionFilter, *, older: bool) -> Step:
    flagged = "AND c.flags <> ''" if chosen.flagged else ""
    rows = reader.rows(
        "SELECT c.done_at, c.id, c.text, "
        f"(SELECT l.line FROM record_lines l WHERE l.record = (SELECT r.id {_OF_CAPTION} LIMIT 1)) FROM captions c "
        f"WHERE c.status = 'done' {flagged} {_beyond(older)} LIMIT {LOOKED_AT_ONCE}",
        cursor,
    )
    wanted = chosen.text.casefold()
    for looked_at, (done_at, caption, text, line) in enumerate(rows, 1):
        if wanted in text.casefold() or (line is not None and _in_title(wanted, line)):
            return Step(Cursor(done_at, caption), Cursor(done_at, caption), looked_at)
    whole = len(rows) == LOOKED_AT_ONCE
    return Step(None, Cursor(rows[-1][0], rows[-1][1]) if whole else None, len(rows))


def _in_title(wanted: str, line: bytes) -> bool:
    title, _ = title_and_date(line)
    return title is not None and wanted in title.casefold()
