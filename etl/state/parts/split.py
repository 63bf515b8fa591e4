"""Splitting a state: which part each source goes to, and filling the database of a part.

A part is a whole state of its own.  Its rows keep the numbers that they have in the state that was split, so nothing
has to be translated on the way out; on the way back `etl.state.parts.merge` goes by URLs, hashes and keys, never by
numbers.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING

from etl.clock import now_ms
from etl.errors import StateMissingError, StateSplitError
from etl.state.checks import COUNTS
from etl.state.database import DATABASE_NAME, SPLIT_VERSION, Connection
from etl.state.read.reader import Reader

if TYPE_CHECKING:
    from etl.state.sqlite import Database

PAGE = 20_000
"""Groups of sources dealt out at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a split.

    Attributes:
        number: from 1.
        sources: that were given to it.
        made: whether its directory is complete.
        merged_at: when it was last merged, Unix milliseconds.
        closed: it came back with nothing left to do, or what it left is done elsewhere.
    """

    number: int
    sources: int
    made: bool
    merged_at: int | None
    closed: bool


@dataclass(frozen=True, slots=True)
class Split:
    """How the work of a state was dealt out.

    Attributes:
        id: row in ``splits``.
        uid: the name that the state and its parts know it by.
        directory: where the parts were made; empty where another state was split.
        parts: as far as this state knows them, in order.
        of: how many parts there are.
    """

    id: int
    uid: str
    directory: str
    of: int
    parts: tuple[Part, ...]

    @property
    def is_open(self) -> bool:
        """Whether parts are still at work on what this state holds."""
        return any(not part.closed for part in self.parts)


def latest_split(reader: Reader) -> Split | None:
    """Return the latest split of this state itself; ``None`` where it was never split."""
    return _split(reader, "role = 'given' ORDER BY id DESC")


def is_part(directory: Path, split: Split, number: int) -> bool:
    """Return whether a state directory is part ``number`` of the split."""
    with Reader(directory) as reader:
        sql = "SELECT 1 FROM splits WHERE (role, uid, number) = ('part', ?, ?)"
        return bool(reader.rows(sql, (split.uid, number)))


def refuse_split(directory: Path) -> None:
    """Raise `StateSplitError` where the work of a state is with its parts."""
    try:
        with Reader(directory) as reader:
            found = latest_split(reader)
    except StateMissingError:
        # The run itself says so, or makes one.
        return
    if found is not None and found.is_open:
        back = sum(part.closed for part in found.parts)
        raise StateSplitError(
            f"this state is split into {found.of} parts in {found.directory}, of which {back} have come back finished: "
            "work on those, then `etl merge` them; --force works here too, and may do their work twice"
        )


def _split(reader: Reader, where: str) -> Split | None:
    if reader.version < SPLIT_VERSION:
        return None
    found = reader.rows(f"SELECT id, uid, directory, parts FROM splits WHERE {where} LIMIT 1")
    if not found:
        return None
    number, uid, directory, of = found[0]
    rows = reader.rows(
        "SELECT number, sources, made, merged_at, closed FROM split_parts WHERE split = ? ORDER BY number", (number,)
    )
    parts = tuple(Part(part, sources, bool(made), at, bool(closed)) for part, sources, made, at, closed in rows)
    return Split(number, uid, directory or "", of, parts)


def begin_split(connection: Connection, parts: int, directory: Path) -> None:
    """Deal the sources out to ``parts`` parts, to be made in ``directory``; from now on the state counts as split.

    Sources with the same picture stay together, for they share its captions.  Groups are dealt in the order of their
    sources, each to the part with the least of its kind so far, so the parts get the same share of open work and of
    what is done, whatever the order of the manifest.
    """
    with connection.transaction() as db:
        execute = db.conn.execute
        execute("DELETE FROM split_sources")
        _gather_wanted(db)
        _deal(db, parts)
        execute(
            "INSERT INTO split_sources SELECT g.part, w.source FROM temp.wanted w "
            "JOIN temp.dealt g ON g.leader = w.leader ORDER BY g.part, w.source"
        )
        # What an earlier split has not brought back is this state's own again.
        execute("UPDATE split_parts SET closed = 1 WHERE split IN (SELECT id FROM splits WHERE role = 'given')")
        split = execute(
            "INSERT INTO splits (uid, role, parts, directory, at) VALUES (?, 'given', ?, ?, ?) RETURNING id",
            (uuid.uuid4().hex, parts, str(directory), now_ms()),
        ).fetchall()[0][0]
        for number in range(1, parts + 1):
            execute(
                "INSERT INTO split_parts (split, number, sources) "
                "VALUES (?1, ?2, (SELECT count(*) FROM split_sources WHERE part = ?2))",
                (split, number),
            )
        execute("DROP TABLE temp.wanted")
        execute("DROP TABLE temp.dealt")


def _gather_wanted(db: "Database") -> None:
    """List the sources of all records that are exported, with the group that each belongs to."""
    db.conn.execute("CREATE TEMP TABLE wanted (source INTEGER PRIMARY KEY, leader INTEGER, open INTEGER)")
    active = "SELECT 1 FROM records r WHERE r.source = s.id AND r.state = 'active'"
    unselected = "s.id IN (SELECT source FROM records WHERE state = 'unselected')"
    some = "(SELECT n FROM counters WHERE stage = 'records' AND recipe = 0 AND status = 'unselected')"
    leader = "CASE WHEN s.image IS NULL THEN s.id ELSE (SELECT min(x.id) FROM sources x WHERE x.image = s.image) END"
    db.conn.execute(
        f"INSERT INTO temp.wanted SELECT s.id, {leader}, EXISTS ({active} AND r.outcome = 'pending') "
        f"FROM sources s WHERE EXISTS ({active}) OR ({some} > 0 AND {unselected})"
    )


def _deal(db: "Database", parts: int) -> None:
    """Give each group of sources to a part: table ``dealt``."""
    db.conn.execute("CREATE TEMP TABLE dealt (leader INTEGER PRIMARY KEY, part INTEGER)")
    heaps = [[(0, number) for number in range(1, parts + 1)] for _ in range(2)]
    for heap in heaps:
        heapify(heap)
    groups = db.conn.execute("SELECT leader, count(*), max(open) FROM temp.wanted GROUP BY leader ORDER BY leader")
    while page := groups.fetchmany(PAGE):
        dealt = []
        for leader, size, is_open in page:
            heap = heaps[is_open]
            load, part = heappop(heap)
            heappush(heap, (load + size, part))
            dealt.append((leader, part))
        db.conn.executemany("INSERT INTO temp.dealt VALUES (?, ?)", dealt)


def note_made(connection: Connection, split: Split, number: int) -> None:
    """Note that the directory of a part is complete."""
    with connection.transaction() as db:
        db.conn.execute("UPDATE split_parts SET made = 1 WHERE split = ? AND number = ?", (split.id, number))


def identity(connection: Connection) -> tuple[str, int] | None:
    """Return ``(uid of the split, number)`` of a state that is a part; ``None`` for any other."""
    rows = connection.rows("SELECT uid, number FROM splits WHERE role = 'part'")
    return (rows[0][0], rows[0][1]) if rows else None


def fill_part(part: Connection, whole: Path, split: Split, number: int) -> None:
    """Copy what a part needs from the state directory ``whole`` into its own, new database, in one transaction.

    The caller holds the locks of both.
    """
    with attached(part, whole):
        # Rows are copied from a database whose own keys were checked.
        part.db.conn.execute("PRAGMA foreign_keys = OFF")
        try:
            with part.transaction() as db:
                db.conn.execute("INSERT INTO recipes SELECT * FROM other.recipes")
                with _without_triggers(db):
                    for sql in _FILL:
                        db.conn.execute(sql, (number,) if "?" in sql else ())
                    recount(db)
                db.conn.execute(
                    "INSERT INTO splits (uid, role, parts, number, at) VALUES (?, 'part', ?, ?, ?)",
                    (split.uid, split.of, number, now_ms()),
                )
        finally:
            part.db.conn.execute("PRAGMA foreign_keys = ON")


@contextmanager
def attached(connection: Connection, other: Path) -> Iterator[None]:
    """Let the writer's connection see the database of another state directory, as ``other``."""
    with connection.guard():
        execute = connection.db.conn.execute
        execute("ATTACH ? AS other", (str(other / DATABASE_NAME),))
        try:
            # Each database has a cache of its own, of 2 MB unless told; rows are looked up by hashes, all over it.
            execute("PRAGMA other.cache_size = -65536")
            execute("PRAGMA temp.cache_size = -65536")
            yield
        finally:
            connection.db.conn.execute("DETACH other")


_MINE = "SELECT source FROM other.split_sources WHERE part = ?"
_RECORDS = "INSERT INTO records SELECT r.* FROM other.records r WHERE"

# Each table after those that it points to; `?` is the part's number.  Records that have no source go to the first.
_FILL = (
    "INSERT INTO manifests SELECT * FROM other.manifests",
    f"INSERT INTO sources SELECT s.* FROM ({_MINE}) x JOIN other.sources s ON s.id = x.source",
    "INSERT INTO images SELECT i.* FROM other.images i WHERE i.id IN (SELECT image FROM sources)",
    f"{_RECORDS} r.state = 'active' AND r.source IN ({_MINE}) ORDER BY r.id",
    # Only where there are any: no index tells them.
    f"{_RECORDS} r.state = 'unselected' AND r.source IN ({_MINE}) AND (SELECT n FROM other.counters "
    "WHERE stage = 'records' AND recipe = 0 AND status = 'unselected') > 0",
    f"{_RECORDS} r.state = 'invalid' AND ? = 1",
    "INSERT INTO record_lines SELECT l.* FROM records r JOIN other.record_lines l ON l.record = r.id",
    # Also those of other parts, where a record has several: they stand in the same line.
    "INSERT INTO own_pictures SELECT p.* FROM other.own_pictures p WHERE p.url IN (SELECT s.url FROM records r "
    "JOIN other.records o ON (o.manifest, o.position) = (r.manifest, r.position) "
    "JOIN other.sources s ON s.id = o.source)",
    "INSERT INTO captions SELECT c.* FROM images i JOIN other.captions c ON c.image = i.id",
    "INSERT INTO earlier_captions SELECT e.* FROM captions c JOIN other.earlier_captions e ON e.caption = c.id",
    "INSERT INTO prompts SELECT p.* FROM other.prompts p WHERE p.id IN (SELECT prompt FROM records "
    "UNION SELECT prompt FROM captions)",
    "INSERT INTO attempts SELECT a.* FROM sources s JOIN other.attempts a ON a.stage = 'fetch' AND a.item = s.id",
    "INSERT INTO attempts SELECT a.* FROM captions c JOIN other.attempts a ON a.stage = 'caption' AND a.item = c.id",
    "INSERT INTO runs SELECT r.* FROM other.runs r WHERE r.id IN (SELECT run FROM attempts "
    "UNION SELECT run FROM captions UNION SELECT run FROM earlier_captions)",
    # What a host asked for holds for the parts too; what it gave is told by the state that asked it.
    "INSERT INTO hosts (host, state, reason, until, allowed, updated_at) "
    "SELECT host, state, reason, until, allowed, updated_at FROM other.hosts",
)


@contextmanager
def _without_triggers(db: "Database") -> Iterator[None]:
    """Take the triggers away during the block and bring them back at its end; the block does their work itself."""
    triggers = db.conn.execute("SELECT name, sql FROM main.sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.conn.execute(f"DROP TRIGGER main.{name}")
    yield
    for _, sql in triggers:
        db.conn.execute(sql)


def recount(db: "Database") -> None:
    """Set ``counters`` to what the tables hold, at once for all rows."""
    db.conn.execute("UPDATE counters SET n = 0")
    for sql in COUNTS.values():
        db.conn.execute(
            f"INSERT INTO counters (stage, recipe, status, n) SELECT * FROM ({sql}) WHERE true "
            "ON CONFLICT DO UPDATE SET n = excluded.n"
        )
