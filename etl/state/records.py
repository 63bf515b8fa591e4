"""Writing the records of one batch of a manifest, with their lines, sources and prompts.

Ids are given out here: this is the only writer.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from etl.data_urls import line_hash
from etl.domain.items import SIGNED
from etl.domain.statuses import RecordState
from etl.errors import DuplicateKeyError
from etl.state.sqlite import Database

_WOKEN = (
    "status = CASE WHEN EXISTS (SELECT 1 FROM images i WHERE i.id = sources.image AND i.state = 'present') "
    "THEN 'done' ELSE 'ready' END, attempts = 0, crashes = 0, not_before = 0, error_class = NULL, error = NULL"
)


@dataclass(slots=True)
class NewRecord:
    """One manifest line, ready to store; not frozen, which would take a microsecond of each.

    Attributes:
        key: unique within the state.
        position: line number, from 1.
        line: the line as it stands in the manifest, its line end included.
        url, host, prompt: ``None`` for an invalid record.
        state: active, unselected or invalid.
        error_class, error: why it is invalid.
        data: the picture, where the record held it itself.
        is_taken_out_of: whether ``line`` has names in the place of pictures (`etl.data_urls`).
    """

    key: str
    position: int
    line: bytes
    url: str | None
    host: str
    prompt: str | None
    state: RecordState
    error_class: str | None = None
    error: str | None = None
    data: bytes | None = None
    is_taken_out_of: bool = False


@dataclass(slots=True)
class BatchCounts:
    """What storing one batch changed."""

    added: int = 0
    changed: int = 0


def write_batch(
    db: Database,
    manifest: int,
    generation: int,
    records: Sequence[NewRecord],
    *,
    strict: bool,
    beside: Collection[int] = (),
    name: str = "",
) -> BatchCounts:
    """Write one batch of a manifest's generation, with the sources and prompts that it names first.

    A record whose key belongs to one of the manifests ``beside`` gets a key of its own, with this one's ``name``
    behind it; from any other manifest it is taken over.  With ``strict`` a key that was seen before in this manifest
    raises `DuplicateKeyError`.
    """
    known = _known(db, [record.key for record in records])
    if beside:
        records = _told_apart(db, beside, name, records, known)
    records = _without_duplicates(db, manifest, generation, records, known, strict=strict)
    sources = _source_ids(db, records)
    prompts = _prompt_ids(db, records)
    return _write_records(db, manifest, generation, records, known, sources, prompts)


def align_sources(db: Database) -> None:
    """Cancel the sources that no active record needs any more, and wake those that are needed again."""
    needed = "EXISTS (SELECT 1 FROM records r WHERE r.source = sources.id AND r.state = 'active')"
    db.conn.execute(
        f"UPDATE sources SET status = 'cancelled' WHERE status IN ('ready', 'retry', 'dead') AND NOT {needed}"
    )
    db.conn.execute(f"UPDATE sources SET {_WOKEN} WHERE status = 'cancelled' AND {needed}")


class _Known(NamedTuple):
    """A record as the state has it; ``content`` is what a manifest line decides."""

    id: int
    manifest: int
    generation: int
    position: int
    content: tuple[object, ...]


_SOURCE, _STATE = 1, 3
"""Where the content has the record's source and its state."""


def _known(db: Database, keys: Sequence[str]) -> dict[str, _Known]:
    """Return the records that the state has under these keys."""
    return {
        key: _Known(number, manifest, generation, position, tuple(content))
        for key, number, manifest, generation, position, *content in db.conn.execute(
            "SELECT key, id, manifest, generation, position, line_sha256, source, prompt, state, error_class, error "
            "FROM records WHERE key IN (SELECT value FROM json_each(?))",
            (json.dumps(keys),),
        ).fetchall()
    }


def _told_apart(
    db: Database, beside: Collection[int], name: str, records: Sequence[NewRecord], known: dict[str, _Known]
) -> list[NewRecord]:
    """Give every record whose key another manifest has a longer one; ``known`` gains what the state has under it."""
    new: dict[str, str] = {}
    taken = {record.key: record.key for record in records}
    while taken := {
        key: f"{now} ({name})"
        for key, now in taken.items()
        if now in known and known[now].manifest in beside and known[now].content[_STATE] != RecordState.REMOVED
    }:
        new |= taken
        known |= _known(db, list(taken.values()))
    return [replace(record, key=new[record.key]) if record.key in new else record for record in records]


def _without_duplicates(
    db: Database,
    manifest: int,
    generation: int,
    records: Sequence[NewRecord],
    known: dict[str, _Known],
    *,
    strict: bool,
) -> list[NewRecord]:
    """Give every record whose key was already seen in this generation one of its own: ``KEY#2`` and so on.

    One that also has the same picture as the first becomes an invalid record instead.  ``known`` gains what the state
    has under the keys that are given.  With ``strict`` raises `DuplicateKeyError` for any.
    """
    this = (manifest, generation)
    seen = {key: old.position for key, old in known.items() if (old.manifest, old.generation) == this}
    pictures = {record.key: record.url for record in reversed(records)}
    if not seen and len(pictures) == len(records):
        return list(records)
    following: dict[str, int] = {}
    result = []
    for record in records:
        first = seen.setdefault(record.key, record.position)
        if first == record.position:
            result.append(record)
            continue
        earlier = known.get(record.key)
        if earlier is not None and (earlier.manifest, earlier.generation) == this:
            is_same = record.url is None or _has_picture(db, earlier, record.url)
        else:
            is_same = record.url is None or pictures[record.key] == record.url
        if not (strict or is_same):
            number = following.get(record.key) or _free_number(db, record.key, this)
            while (key := f"{record.key}#{number}") in seen:
                number += 1
            following[record.key] = number + 1
            known |= _known(db, [key])
            seen[key] = record.position
            result.append(replace(record, key=key))
            continue
        message = f"line {first} has the same key {record.key!r}"
        if strict:
            raise DuplicateKeyError(f"line {record.position}: {message}")
        key = record.key
        # A manifest may hold the very key that a duplicate would get; then that is lengthened until it is free.
        while seen.get(key, record.position) != record.position:
            key = f"{key} (line {record.position})"
            if key not in seen:
                found = _known(db, [key])
                known |= found
                seen |= {key: old.position for key, old in found.items() if (old.manifest, old.generation) == this}
        seen[key] = record.position
        bad = replace(record, key=key, url=None, host="", prompt=None, state=RecordState.INVALID)
        result.append(replace(bad, error_class="duplicate_key", error=message))
    return result


def _has_picture(db: Database, first: _Known, url: str) -> bool:
    """Return whether a record of an earlier batch has this picture."""
    found = db.conn.execute("SELECT id FROM sources WHERE url = ?", (url,)).fetchone()
    return found is not None and found[0] == first.content[_SOURCE]


def _free_number(db: Database, key: str, this: tuple[int, int]) -> int:
    """Return a number from 2 that is not behind the key in this generation; few questions find it behind many."""

    def is_taken(number: int) -> bool:
        old = _known(db, [f"{key}#{number}"]).get(f"{key}#{number}")
        return old is not None and (old.manifest, old.generation) == this

    taken, free = 1, 2
    while is_taken(free):
        taken, free = free, 2 * free
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if is_taken(middle) else (taken, middle)
    return free


def _source_ids(db: Database, records: Sequence[NewRecord]) -> dict[str, int]:
    """Return the id of every source in the batch, adding new ones and waking cancelled ones."""
    hosts = {record.url: record.host for record in records if record.url is not None}
    wanted = {record.url for record in records if record.url is not None and record.state is RecordState.ACTIVE}
    ids: dict[str, int] = {}
    asleep = []
    for number, url, status in db.conn.execute(
        "SELECT id, url, status FROM sources WHERE url IN (SELECT value FROM json_each(?))", (json.dumps(list(hosts)),)
    ).fetchall():
        ids[url] = number
        if status == "cancelled" and url in wanted:
            asleep.append((number,))
    db.conn.executemany(f"UPDATE sources SET {_WOKEN} WHERE id = ?", asleep)
    following = db.conn.execute("SELECT coalesce(max(id), 0) + 1 FROM sources").fetchone()[0]
    new = []
    for number, url in enumerate((url for url in hosts if url not in ids), start=following):
        ids[url] = number
        new.append((number, url, hosts[url], "ready" if url in wanted else "cancelled"))
    _insert(db, "sources", "id, url, host, status", new)
    return ids


def _prompt_ids(db: Database, records: Sequence[NewRecord]) -> dict[str, int]:
    """Return the id of every prompt text in the batch, adding new ones."""
    # In the order of the records: a set would number them differently each time.
    texts = dict.fromkeys(record.prompt for record in records if record.prompt is not None)
    hashes = {hashlib.sha256(text.encode()).hexdigest(): text for text in texts}
    known = db.conn.execute(
        "SELECT sha256, id FROM prompts WHERE sha256 IN (SELECT value FROM json_each(?))", (json.dumps(list(hashes)),)
    ).fetchall()
    ids = {hashes[digest]: number for digest, number in known}
    following = db.conn.execute("SELECT coalesce(max(id), 0) + 1 FROM prompts").fetchone()[0]
    new = [(digest, text) for digest, text in hashes.items() if text not in ids]
    for number, (_, text) in enumerate(new, start=following):
        ids[text] = number
    db.conn.executemany(
        "INSERT INTO prompts (id, sha256, text) VALUES (?, ?, ?)", [(ids[text], digest, text) for digest, text in new]
    )
    return ids


def _write_records(
    db: Database,
    manifest: int,
    generation: int,
    records: Sequence[NewRecord],
    known: Mapping[str, _Known],
    sources: Mapping[str, int],
    prompts: Mapping[str, int],
) -> BatchCounts:
    """Insert new records, update changed ones, and mark unchanged ones as seen in this generation."""
    following = db.conn.execute("SELECT coalesce(max(id), 0) + 1 FROM records").fetchone()[0]
    added, lines, changed, changed_lines, seen, signed_anew = [], [], [], [], [], []
    for record in records:
        content = (
            line_hash(record.line, is_taken_out_of=record.is_taken_out_of),
            sources.get(record.url or ""),
            prompts.get(record.prompt or ""),
            record.state.value,
            record.error_class,
            record.error,
        )
        place = (manifest, record.position, generation)
        old = known.get(record.key)
        if old is None:
            added.append((following, record.key, *place, *content))
            lines.append((following, record.line))
            following += 1
        elif old.content == content:
            seen.append((*place, old.id))
            continue
        else:
            changed.append((*place, *content, old.id))
            changed_lines.append((record.line, old.id))
        if record.url and record.url.endswith(SIGNED) and record.state is RecordState.ACTIVE:
            # The line has a signature that may open what the last one did not.
            signed_anew.append((sources[record.url],))
    _insert(db, "records", _RECORD_COLUMNS, added)
    execute = db.conn.executemany
    execute("INSERT INTO record_lines (record, line) VALUES (?, ?)", lines)
    execute("UPDATE records SET manifest = ?, position = ?, generation = ? WHERE id = ?", seen)
    execute(
        "UPDATE records SET manifest = ?, position = ?, generation = ?, line_sha256 = ?, source = ?, prompt = ?, "
        "state = ?, error_class = ?, error = ? WHERE id = ?",
        changed,
    )
    execute("UPDATE record_lines SET line = ? WHERE record = ?", changed_lines)
    execute(f"UPDATE sources SET {_WOKEN} WHERE id = ? AND status = 'dead'", signed_anew)
    return BatchCounts(len(added), len(changed))


_RECORD_COLUMNS = "id, key, manifest, position, generation, line_sha256, source, prompt, state, error_class, error"


def _insert(db: Database, table: str, columns: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert many rows by one statement, by way of a temporary table.

    A statement on a table with triggers opens a journal of its own; one for each row costs as much as the row.
    """
    execute = db.conn.execute
    execute(f"CREATE TEMP TABLE IF NOT EXISTS new_{table} ({columns})")
    db.conn.executemany(f"INSERT INTO temp.new_{table} VALUES ({','.join('?' * (columns.count(',') + 1))})", rows)
    execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM temp.new_{table}")
    execute(f"DELETE FROM temp.new_{table}")
