"""The images of the cache: what is still needed of them, evicting what is not, and bringing it back.

An image is ``present``, ``missing`` (its working copy is lost) or ``evicted`` (removed on purpose to make room).
The sources of an evicted image stay ``done``: they become ready again only when a record needs a caption that is
not there, see `wake_evicted`.  Here only rows are changed.  Whoever removes the files does it after the commit, so a
crash leaves a file without a row, never a row without its file.
"""

import json
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from etl.domain.statuses import ImageFlag
from etl.errors import WorkingCopyError
from etl.state.database import Connection
from etl.state.read.reader import Reader
from etl.state.record_captions import CURRENT_RECIPE, without_caption

if TYPE_CHECKING:
    from etl.state.sqlite import Database


class EvictionReason(StrEnum):
    """Why a finished file of the cache may go, in the order in which room is made."""

    ORIGINAL = "original"
    """The model never looks at it."""
    UNNEEDED = "unneeded"
    """A working copy that no active record needs."""
    CAPTIONED = "captioned"
    """A working copy whose captions under the current recipe are all done."""


class Candidate(NamedTuple):
    """A file that is there, and whether it may go; ``sha256`` is its name."""

    image: int
    sha256: str
    may_go: bool


class Expected(NamedTuple):
    """A file that should be there: its name, its bytes, whose it is, and the picture's size in pixels."""

    sha256: str
    size: int
    image: int
    width: int
    height: int


_NEEDED = "SELECT 1 FROM sources s JOIN records r ON r.source = s.id WHERE s.image = images.id AND r.state = 'active'"
_UNHELD = "NOT EXISTS (SELECT 1 FROM captions c WHERE c.image = images.id AND +c.status = 'running')"
_MAY_GO = {
    EvictionReason.ORIGINAL: "true",
    EvictionReason.UNNEEDED: f"NOT EXISTS ({_NEEDED}) AND {_UNHELD}",
    EvictionReason.CAPTIONED: f"NOT EXISTS ({_NEEDED} AND {without_caption('done')}) AND {_UNHELD}",
}


_AMONG = "IN (SELECT value FROM json_each(?))"
_ANEW = "attempts = 0, crashes = 0, not_before = 0, done_at = NULL, error_class = NULL, error = NULL"


PLACEHOLDER_URLS = 5
"""URLs of one host with the same bytes, from which on these stand in for pictures that it has not.  A picture that is
filed twice, and asked for by http and https, or in sizes larger than it has, comes under two to four."""

_LOOKED_AT = 256
"""URLs of an image, the latest, among which those of one host are counted: it may have any number."""

IS_PLACEHOLDER = "instr(images.flags, 'placeholder')"
"""Whether an image is flagged as one, as an SQL expression.  It stays one if its URLs come to give real pictures."""


def plus_placeholder(flags: str) -> str:
    """Return flags, an SQL expression, with that of a placeholder added."""
    return f"iif({flags} = '', '', {flags} || ',') || '{ImageFlag.PLACEHOLDER}'"


class Images:
    """The writer of what the cache holds of each image."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def candidates(self, reason: EvictionReason, after: int, limit: int) -> list[Candidate]:
        """Return the next ``limit`` files that the reason may concern, behind image ``after``, oldest first."""
        name, there = "working_sha256", "state = 'present'"
        if reason is EvictionReason.ORIGINAL:
            name, there = "sha256", "original_kept = 1"
        rows = self._connection.rows(
            f"SELECT id, {name}, {_MAY_GO[reason]} FROM images WHERE {there} AND id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [Candidate(image, sha256, bool(may_go)) for image, sha256, may_go in rows]

    def shared(self) -> dict[str, int]:
        """Return the working copies that several present images share, and how many these are."""
        rows = self._connection.rows(
            "SELECT working_sha256, count(*) FROM images WHERE state = 'present' GROUP BY working_sha256 "
            "HAVING count(*) > 1"
        )
        return dict(rows)

    def evict(self, reason: EvictionReason, images: Sequence[int]) -> list[str]:
        """Note that files are gone, where the reason still holds; return the names of those to be removed now.

        A working copy that another present image shares is not among them.  Captions that wait for the picture are
        cancelled until it is back, so that none is claimed without it.
        """
        with self._connection.transaction("images.evict") as db:
            if reason is EvictionReason.ORIGINAL:
                return self._drop_originals(db, images)
            evicted = db.conn.execute(
                f"UPDATE images SET state = 'evicted' WHERE id {_AMONG} AND state = 'present' "
                f"AND {_MAY_GO[reason]} RETURNING id, working_sha256",
                (json.dumps(images),),
            ).fetchall()
            _cancel_captions(db, [image for image, _ in evicted])
            names = {sha256 for _, sha256 in evicted}
            return sorted(names - _owned_working_copies(db, names))

    def drop_originals(self, images: Sequence[int]) -> list[str]:
        """Note that originals are gone; return their names."""
        with self._connection.transaction("images.drop_originals") as db:
            return self._drop_originals(db, images)

    def _drop_originals(self, db: "Database", images: Sequence[int]) -> list[str]:
        rows = db.conn.execute(
            f"UPDATE images SET original_kept = 0 WHERE id {_AMONG} AND original_kept = 1 RETURNING sha256",
            (json.dumps(images),),
        ).fetchall()
        return [sha256 for (sha256,) in rows]

    def owned(self, names: Sequence[str]) -> tuple[set[str], set[str]]:
        """Return which of these hashes name a working copy, and which an original, that should be in the cache."""
        with self._connection.transaction() as db:
            originals = db.conn.execute(
                f"SELECT sha256 FROM images WHERE sha256 {_AMONG} AND original_kept = 1", (json.dumps(names),)
            ).fetchall()
            return _owned_working_copies(db, names), {sha256 for (sha256,) in originals}

    def requeue_missing(self, images: Sequence[int]) -> int:
        """Mark images whose working copy is gone or damaged, and put their sources back into the fetch queue.

        Captions that exist stay, and a source that no record needs waits until one does.  Captions that need
        the picture, or failed for want of it, are cancelled until it is back.  Returns the number of sources
        that will be fetched again.
        """
        with self._connection.transaction("images.requeue") as db:
            return lose_images(db, images)

    def revive_captions(self) -> int:
        """Give captions that failed for want of a picture that is there another chance, from the beginning.

        Those of another recipe than the current one wait until that is used again.  Returns the number of the others.
        """
        with self._connection.transaction("images.revive") as db:
            rows = db.conn.execute(
                f"UPDATE captions SET status = iif(recipe = {CURRENT_RECIPE}, 'ready', 'cancelled'), {_ANEW} "
                "WHERE status = 'dead' AND error_class = ? "
                "AND (SELECT state FROM images i WHERE i.id = image) = 'present' RETURNING status",
                (WorkingCopyError.slug,),
            ).fetchall()
        return sum(status == "ready" for (status,) in rows)


def lose_images(db: "Database", images: Sequence[int]) -> int:
    """Do what `Images.requeue_missing` says, inside a transaction."""
    _cancel_captions(db, images)
    db.conn.execute(f"UPDATE images SET state = 'missing' WHERE id {_AMONG}", (json.dumps(images),))
    rows = db.conn.execute(
        "UPDATE sources SET status = CASE WHEN EXISTS (SELECT 1 FROM records r WHERE r.source = sources.id "
        f"AND r.state = 'active') THEN 'ready' ELSE 'cancelled' END, {_ANEW} "
        f"WHERE image {_AMONG} AND status = 'done' RETURNING status",
        (json.dumps(images),),
    ).fetchall()
    return sum(status == "ready" for (status,) in rows)


def wake_evicted(db: "Database", images: Sequence[int] | None = None) -> int:
    """Put the sources of evicted images that a record needs a caption of back into the fetch queue.

    Needed is what an active record has neither a caption nor a failed one of under the current recipe.  Looks at
    these ``images``, or at all.  Returns the number of sources.
    """
    among = "" if images is None else f" AND id {_AMONG}"
    return db.conn.execute(
        f"UPDATE sources AS s SET status = 'ready', {_ANEW} "
        f"WHERE image IN (SELECT id FROM images WHERE state = 'evicted'{among}) AND status = 'done' "
        "AND EXISTS (SELECT 1 FROM records r WHERE r.source = s.id AND r.state = 'active' "
        f"AND {without_caption('done', 'dead')})",
        () if images is None else (json.dumps(images),),
    ).rowcount


def flag_placeholder(db: "Database", image: int, host: str) -> None:
    """Flag an image that has just come from another URL of a host, if that makes it a placeholder."""
    urls = f"SELECT host FROM sources WHERE image = ? ORDER BY id DESC LIMIT {_LOOKED_AT}"
    db.conn.execute(
        f"UPDATE images SET flags = {plus_placeholder('flags')} WHERE id = ? AND NOT {IS_PLACEHOLDER} "
        f"AND (SELECT count(*) FROM ({urls}) WHERE host = ?) >= {PLACEHOLDER_URLS}",
        (image, image, host),
    )


def _cancel_captions(db: "Database", images: Sequence[int]) -> None:
    # Ready, they would be claimed, and fail, before the picture has come.
    db.conn.execute(
        f"UPDATE captions SET status = 'cancelled', attempts = 0, not_before = 0 WHERE image {_AMONG} "
        "AND (status IN ('ready', 'retry') OR status = 'dead' AND error_class = ?)",
        (json.dumps(images), WorkingCopyError.slug),
    )


def _owned_working_copies(db: "Database", names: Collection[str]) -> set[str]:
    rows = db.conn.execute(
        f"SELECT working_sha256 FROM images WHERE working_sha256 {_AMONG} AND state = 'present'",
        (json.dumps(list(names)),),
    ).fetchall()
    return {sha256 for (sha256,) in rows}


# What should be in the cache, read shard by shard: the files whose hashes begin with the same two digits.


def working_copies_of(reader: Reader, shard: str) -> list[Expected]:
    """Return the working copies that should be in one shard; one that several images share comes several times."""
    columns = "working_sha256, working_bytes, id, working_width, working_height"
    return _expected(reader, columns, "working_sha256", "state = 'present'", shard)


def originals_of(reader: Reader, shard: str) -> list[Expected]:
    """Return the kept originals that should be in one shard."""
    return _expected(reader, "sha256, bytes, id, width, height", "sha256", "original_kept = 1", shard)


def _expected(reader: Reader, columns: str, name: str, there: str, shard: str) -> list[Expected]:
    # "g" follows the last digit: a range of the index, which LIKE would not use.
    rows = reader.rows(
        f"SELECT {columns} FROM images WHERE {name} >= ? AND {name} < ? AND {there}", (shard, f"{shard}g")
    )
    return [Expected(*row) for row in rows]


def counted(reader: Reader) -> int:
    """Return how many images have a working copy in the cache, as far as the database knows."""
    return int(reader.rows("SELECT count(*) FROM images WHERE state = 'present'")[0][0])


def some_working_copies(reader: Reader, most: int) -> list[str]:
    """Return the hashes of about ``most`` working copies that should be in the cache, spread over all of them."""
    first, last = reader.rows("SELECT min(id), max(id) FROM images")[0]
    found, place = list[str](), first
    while place is not None and (
        row := reader.rows(
            "SELECT id, working_sha256 FROM images WHERE id >= ? AND state = 'present' ORDER BY id LIMIT 1", (place,)
        )
    ):
        found.append(row[0][1])
        place = max(row[0][0], place + (last - first) // most) + 1
    return found


def evicted(reader: Reader) -> int:
    """Return how many images are evicted."""
    return int(reader.rows("SELECT count(*) FROM images WHERE state = 'evicted'")[0][0])
