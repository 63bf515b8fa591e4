"""Merging a part into a state: what the part has done is taken over by URL, hash and key, in one transaction.

What wins does not depend on the order in which parts are merged, and merging one again changes nothing:

- a fetched picture wins over none, the later one over the earlier; a failure counts where it came later;
- of two captions for the same (image, prompt, recipe) the one with the higher repetition penalty wins (it was made
  again on purpose), then the later one, then the greater text; the other stays where it was made;
- the current recipe is the one that was first used last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from etl.clock import now_ms
from etl.errors import ConfigError, StateError
from etl.state.database import Connection
from etl.state.parts.merge_steps import Steps, one


class PartRelation(StrEnum):
    """What a part is to the state that it is merged into."""

    OWN = "own"
    """It was split off from this very state."""
    GATHERED = "gathered"
    """The state is put together from the parts of another one: records come along."""
    FOREIGN = "foreign"
    """A state of the same manifest: what it has done counts for the records that both know."""


class WantedFile(NamedTuple):
    """Files of one image that the part may have and the state has not; ``image`` is the part's number of it."""

    image: int
    sha256: str
    size: int
    working_sha256: str
    working_size: int
    working: bool
    original: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What one merge changed in the database.

    Attributes:
        number: of the part; 0 for a state that is none.
        records: that came along, into a state that had none of its own.
        unknown: records of the part that this state does not know.
        fetched, fetch_failed: sources that are done or dead because of it.
        captioned, caption_failed: the same of captions.
        different: captions that both had, with different texts; which one counts says the module.
        recipes: that this state did not know.
        other_recipe: captions of the part that were made under another recipe than this state's current one.
        runs, attempts: taken into the history.
        changed: rows changed in all; 0 for a part that has nothing new.
        pending: records that the part had not finished.
        closed: the part counts as finished.
    """

    number: int
    records: int
    unknown: int
    fetched: int
    fetch_failed: int
    captioned: int
    caption_failed: int
    different: int
    recipes: int
    other_recipe: int
    runs: int
    attempts: int
    changed: int
    pending: int
    closed: bool


_UNKNOWN = (
    "SELECT count(*) FROM other.records o WHERE o.state <> 'removed' "
    "AND NOT EXISTS (SELECT 1 FROM main.records m WHERE m.key = o.key)"
)
_OTHER_RECIPE = (
    "SELECT coalesce(sum(n), 0) FROM other.counters WHERE stage = 'captions' AND status = 'done' AND recipe IN "
    "(SELECT theirs FROM temp.of_recipe x JOIN recipes r ON r.id = x.ours WHERE r.current = 0)"
)


class Merge:
    """One part, attached as ``other`` to the writer's connection (`etl.state.parts.split.attached`).

    Attributes:
        relation: what the part is to this state.
        number: of the part; 0 for a state that is none.

    Raises `ConfigError` for a part that does not belong here, `StateError` for one that is not whole.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        found = connection.rows("SELECT uid, number, parts FROM other.splits WHERE role = 'part'")
        self._uid, self.number, self._of = found[0] if found else ("", 0, 0)
        self.relation, self._split = self._related()
        self._check()
        with connection.guard():
            for table in ("lost_working", "lost_original"):
                connection.db.conn.execute(f"DROP TABLE IF EXISTS temp.{table}")
                connection.db.conn.execute(f"CREATE TEMP TABLE {table} (image INTEGER PRIMARY KEY)")

    def _related(self) -> tuple[PartRelation, int | None]:
        rows = self._connection.rows
        known = rows("SELECT id, role FROM splits WHERE uid = ? AND role <> 'part'", (self._uid,))
        if known:
            return (PartRelation.OWN if known[0][1] == "given" else PartRelation.GATHERED), known[0][0]
        if self._uid and not rows("SELECT 1 FROM manifests LIMIT 1"):
            return PartRelation.GATHERED, None
        if not rows("SELECT 1 FROM other.records o JOIN main.records m ON m.key = o.key LIMIT 1"):
            raise ConfigError("it has no record in common with this state: it is of another manifest")
        return PartRelation.FOREIGN, None

    def _check(self) -> None:
        rows = self._connection.rows
        ours, theirs = (
            {row[0] for row in rows(f"SELECT DISTINCT longest_edge FROM {db}.images WHERE state = 'present'")}
            for db in ("main", "other")
        )
        if ours and theirs - ours:
            raise ConfigError(
                f"its working copies have a longest edge of {min(theirs - ours)}, those of this state {min(ours)}; "
                "captions of the two cannot be compared: fetch the part anew with the same --longest-edge"
            )
        latest = rows("SELECT max(id) FROM splits WHERE role = 'given'")[0][0]
        if self.relation is PartRelation.OWN and self._split == latest:
            lacking = rows(
                "SELECT count(*) FROM split_sources x JOIN sources s ON s.id = x.source WHERE x.part = ? "
                "AND NOT EXISTS (SELECT 1 FROM other.sources o WHERE o.url = s.url)",
                (self.number,),
            )[0][0]
            if lacking:
                raise StateError(f"{lacking} of the sources that part {self.number} was given are not in it any more")

    def wanted_files(self, after: int, limit: int) -> list[WantedFile]:
        """Return the next images, behind the part's image ``after``, of which this state lacks a file."""
        rows = self._connection.rows(
            "SELECT * FROM (SELECT o.id, o.sha256, o.bytes, o.working_sha256, o.working_bytes, "
            "o.state = 'present' AND m.state IS NOT 'present' AS working, "
            "o.original_kept > coalesce(m.original_kept, 0) AS original "
            f"FROM other.images o LEFT JOIN main.images m ON m.sha256 = o.sha256 WHERE {self._of_ours('o.id')}) "
            "WHERE id > ? AND (working OR original) ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [WantedFile(*row) for row in rows]

    def _of_ours(self, image: str) -> str:
        """Return the condition that one of our sources has, or will have, this image of the part."""
        if self.relation is not PartRelation.FOREIGN:
            return "true"
        return f"EXISTS (SELECT 1 FROM other.sources x JOIN main.sources y ON y.url = x.url WHERE x.image = {image})"

    def note_lost(self, working: Sequence[int], originals: Sequence[int]) -> None:
        """Note the part's images whose files are missing or damaged, so that the rows do not promise them."""
        with self._connection.guard():
            conn = self._connection.db.conn
            conn.executemany("INSERT INTO temp.lost_working VALUES (?)", [(image,) for image in working])
            conn.executemany("INSERT INTO temp.lost_original VALUES (?)", [(image,) for image in originals])

    def take(self, *, final: bool) -> Merged:
        """Take over all that the part has done; its files are in the cache already.  ``final``: it counts as finished.

        One transaction: a merge that was killed has changed nothing.
        """
        with self._connection.transaction() as db:
            steps = Steps(db)
            runs = steps.take_runs()
            recipes, current = steps.take_recipes()
            steps.change(
                "INSERT INTO prompts (sha256, text) SELECT sha256, text FROM other.prompts WHERE true "
                "ON CONFLICT DO NOTHING"
            )
            if self.relation is PartRelation.GATHERED:
                steps.take_sources()
            steps.match("source", "url")
            steps.match("prompt", "sha256")
            records = self._take_records(steps) if self.relation is PartRelation.GATHERED else 0
            steps.take_images(self._of_ours("o.id"))
            captioned, caption_failed, different = steps.take_captions()
            fetched, fetch_failed = steps.take_fetches()
            steps.take_flags()
            attempts = steps.take_attempts()
            steps.take_hosts()
            steps.settle(everything=current)
            pending = one(db, "SELECT n FROM other.counters WHERE stage = 'outcomes' AND status = 'pending'")
            closed = self._close(steps, is_over=final or not pending)
            merged = Merged(
                number=self.number,
                records=records,
                unknown=one(db, _UNKNOWN),
                fetched=fetched,
                fetch_failed=fetch_failed,
                captioned=captioned,
                caption_failed=caption_failed,
                different=different,
                recipes=recipes,
                other_recipe=one(db, _OTHER_RECIPE),
                runs=runs,
                attempts=attempts,
                changed=steps.changed,
                pending=pending,
                closed=closed,
            )
            steps.drop()
            return merged

    def _take_records(self, steps: Steps) -> int:
        """Take records with their lines and manifests; a manifest is complete when the last part has come."""
        if self._split is None:
            sql = "INSERT INTO splits (uid, role, parts, at) VALUES (?, 'gathered', ?, ?) RETURNING id"
            self._split = int(steps.execute(sql, (self._uid, self._of, now_ms())).fetchall()[0][0])
        steps.change(
            "INSERT INTO manifests (path, spec, generation, offset_sha256, root, root_seal) "
            "SELECT path, spec, generation, '', root, root_seal FROM other.manifests ORDER BY id ON CONFLICT DO NOTHING"
        )
        steps.match("manifest", "path")
        taken = steps.change(
            "INSERT INTO records (key, manifest, position, generation, line_sha256, source, prompt, state, "
            "error_class, error) SELECT o.key, m.ours, o.position, o.generation, o.line_sha256, s.ours, p.ours, "
            "o.state, o.error_class, o.error FROM other.records o JOIN temp.of_manifest m ON m.theirs = o.manifest "
            "LEFT JOIN temp.of_source s ON s.theirs = o.source LEFT JOIN temp.of_prompt p ON p.theirs = o.prompt "
            "WHERE true ORDER BY o.id ON CONFLICT DO NOTHING"
        )
        steps.change(
            "INSERT INTO record_lines SELECT m.id, l.line FROM other.records o JOIN main.records m ON m.key = o.key "
            "JOIN other.record_lines l ON l.record = o.id WHERE true ON CONFLICT DO NOTHING"
        )
        steps.change("INSERT INTO own_pictures SELECT * FROM other.own_pictures WHERE true ON CONFLICT DO NOTHING")
        steps.change(
            "INSERT INTO split_parts (split, number, sources, made) SELECT ?, ?, (SELECT count(*) FROM other.sources), "
            "1 WHERE true ON CONFLICT DO NOTHING",
            (self._split, self.number),
        )
        if one(steps.db, "SELECT count(*) FROM split_parts WHERE split = ?", self._split) == self._of:
            steps.change(
                "UPDATE manifests SET (bytes, sha256, offset, offset_sha256, lines, rows, complete) = "
                "(o.bytes, o.sha256, o.offset, o.offset_sha256, o.lines, o.rows, o.complete) "
                "FROM other.manifests o WHERE o.path = manifests.path AND manifests.complete < o.complete"
            )
        return taken

    def _close(self, steps: Steps, *, is_over: bool) -> bool:
        if self._split is None:
            return is_over
        if steps.changed or is_over:
            # A part that brings nothing new is not noted again.
            steps.change(
                "UPDATE split_parts SET merged_at = ?1, closed = max(closed, ?2) WHERE (split, number) = (?3, ?4) "
                "AND (?5 OR merged_at IS NULL OR closed < ?2)",
                (now_ms(), int(is_over), self._split, self.number, steps.changed),
            )
        sql = "SELECT closed FROM split_parts WHERE (split, number) = (?, ?)"
        return bool(one(steps.db, sql, self._split, self.number))
