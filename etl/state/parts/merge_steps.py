"""The statements of a merge, inside its one transaction; what they obey is said in `etl.state.parts.merge`."""

from collections.abc import Sequence

from etl.state.images import IS_PLACEHOLDER, PLACEHOLDER_URLS, plus_placeholder, wake_evicted
from etl.state.sqlite import Database


def one(db: Database, sql: str, *arguments: object) -> int:
    row = db.conn.execute(sql, arguments).fetchone()
    return int(row[0]) if row else 0


_RUN = "uid, stages, state, started_at, heartbeat_at, ended_at, host, pid, app_version, config, message"
_WORKING = "working_sha256, working_bytes, working_width, working_height, longest_edge"
_IMAGE = f"sha256, bytes, mime, width, height, {_WORKING}, flags"
_WORDS = "text, finish_reason, tokens, flags, repetition_penalty, thinking"
_QUEUE = "status, attempts, crashes, not_before, error_class, error, done_at"


def _of(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{name}" for name in columns.split(", "))


def _excluded(columns: str) -> str:
    return ", ".join(f"{name} = excluded.{name}" for name in columns.split(", "))


_THEIRS_WINS = (
    "(coalesce(o.repetition_penalty, 0), o.done_at, o.text) > "
    "(coalesce(captions.repetition_penalty, 0), captions.done_at, captions.text)"
)
_WAS_REPLACED = (
    "EXISTS (SELECT 1 FROM main.earlier_captions e WHERE e.caption = captions.id AND e.text = o.text "
    "AND e.done_at IS o.done_at)"
)
_DONE_HERE = (
    f"o.status = 'done' AND NOT {_WAS_REPLACED} AND CASE captions.status WHEN 'done' THEN {_THEIRS_WINS} "
    "ELSE coalesce(o.repetition_penalty, 0) >= coalesce(captions.repetition_penalty, 0) END"
)


def _failed_later(table: str) -> str:
    return (
        f"o.status = 'dead' AND {table}.status NOT IN ('done', 'cancelled') "
        f"AND coalesce(o.done_at, 0) > coalesce({table}.done_at, -1)"
    )


def _waits_longer(table: str) -> str:
    waiting = "IN ('ready', 'retry')"
    return f"o.status {waiting} AND {table}.status {waiting} AND o.attempts > {table}.attempts"


class Steps:
    """The steps of one merge, inside its transaction.

    Tables ``temp.of_...`` translate the part's numbers (``theirs``) to this state's (``ours``).

    Attributes:
        changed: rows changed so far in this state.
    """

    def __init__(self, db: Database) -> None:
        self.db = db
        self.execute = db.conn.execute
        self.changed = 0
        self._maps: list[str] = []

    def change(self, sql: str, arguments: Sequence[object] = ()) -> int:
        """Run one statement; return how many rows it changed."""
        count = max(0, self.execute(sql, arguments).rowcount)
        self.changed += count
        return count

    def match(self, kind: str, name: str) -> None:
        """Make the map of one kind of row, which both states know by the column ``name``."""
        self._maps.append(f"of_{kind}")
        self.execute(f"CREATE TEMP TABLE of_{kind} (theirs INTEGER PRIMARY KEY, ours INTEGER)")
        self.execute(
            f"INSERT INTO temp.of_{kind} SELECT o.id, m.id FROM other.{kind}s o JOIN main.{kind}s m "
            f"ON m.{name} = o.{name}"
        )

    def drop(self) -> None:
        """Remove the maps."""
        for table in self._maps:
            self.execute(f"DROP TABLE temp.{table}")

    def take_runs(self) -> int:
        taken = self.change(
            f"INSERT INTO runs ({_RUN}) SELECT {_RUN} FROM other.runs o "
            "WHERE NOT EXISTS (SELECT 1 FROM main.runs m WHERE m.uid = o.uid) ORDER BY started_at, id"
        )
        self.match("run", "uid")
        return taken

    def take_recipes(self) -> tuple[int, bool]:
        """Take recipes; return how many are new, and whether another one has become the current."""
        before = one(self.db, "SELECT count(*) FROM recipes")
        self.change(
            "INSERT INTO recipes (sha256, model, revision, spec, created_at) "
            "SELECT sha256, model, revision, spec, created_at FROM other.recipes WHERE true ORDER BY id "
            "ON CONFLICT (sha256) DO UPDATE SET created_at = excluded.created_at "
            "WHERE excluded.created_at > recipes.created_at"
        )
        self.match("recipe", "sha256")
        theirs = self.execute("SELECT sha256, created_at FROM other.recipes WHERE current = 1").fetchone()
        ours = self.execute("SELECT sha256, created_at FROM recipes WHERE current = 1").fetchone()
        chosen = theirs is not None and (ours is None or (theirs[1], theirs[0]) > (ours[1], ours[0]))
        if chosen and (ours is None or theirs[0] != ours[0]):
            self.change("UPDATE recipes SET current = (sha256 = ?)", (theirs[0],))
        else:
            chosen = False
        return one(self.db, "SELECT count(*) FROM recipes") - before, chosen

    def take_sources(self) -> None:
        """Add the sources that are not known yet, as if nothing had been done."""
        self.change(
            "INSERT INTO sources (url, host, status) SELECT url, host, iif(status = 'cancelled', status, 'ready') "
            "FROM other.sources WHERE true ORDER BY id ON CONFLICT DO NOTHING"
        )

    def take_images(self, which: str) -> None:
        """Add images, and working copies and originals to those that had lost theirs."""
        theirs = (
            f"SELECT {_of('o', _IMAGE)}, o.original_kept AND o.id NOT IN (SELECT image FROM temp.lost_original), "
            "CASE WHEN o.state = 'present' AND o.id IN (SELECT image FROM temp.lost_working) THEN 'missing' "
            f"ELSE o.state END FROM other.images o WHERE {which} ORDER BY o.id"
        )
        self.change(
            f"INSERT INTO images ({_IMAGE}, original_kept, state) {theirs} ON CONFLICT (sha256) DO UPDATE "
            f"SET {_excluded(_WORKING)}, state = 'present' WHERE excluded.state = 'present' "
            "AND images.state <> 'present'"
        )
        self.match("image", "sha256")
        self.change(
            "UPDATE images SET original_kept = 1 FROM temp.of_image x JOIN other.images o ON o.id = x.theirs "
            "WHERE images.id = x.ours AND images.original_kept = 0 AND o.original_kept = 1 "
            "AND o.id NOT IN (SELECT image FROM temp.lost_original)"
        )

    def take_flags(self) -> None:
        """Take what the part knows of images; of several parts' URLs only here is seen that one is a placeholder."""
        for image, ours, theirs in self.execute(
            "SELECT m.id, m.flags, o.flags FROM temp.of_image x JOIN main.images m ON m.id = x.ours "
            "JOIN other.images o ON o.id = x.theirs WHERE m.flags <> o.flags"
        ).fetchall():
            both = ",".join(sorted({*ours.split(","), *theirs.split(",")} - {""}))
            self.change("UPDATE images SET flags = ? WHERE id = ? AND flags <> ?", (both, image, both))
        self.change(
            f"UPDATE images SET flags = {plus_placeholder('flags')} WHERE NOT {IS_PLACEHOLDER} AND id IN "
            "(SELECT s.image FROM temp.of_image x JOIN main.sources s ON s.image = x.ours "
            f"GROUP BY s.image, s.host HAVING count(*) >= {PLACEHOLDER_URLS})"
        )

    def take_captions(self) -> tuple[int, int, int]:
        """Take captions; return how many are done or dead because of it, and how many had different texts."""
        self._maps.append("of_caption")
        self.execute(
            "CREATE TEMP TABLE of_caption (theirs INTEGER PRIMARY KEY, ours INTEGER, image INTEGER, prompt INTEGER, "
            "recipe INTEGER)"
        )
        self.execute(
            "INSERT INTO temp.of_caption SELECT o.id, m.id, i.ours, p.ours, r.ours FROM other.captions o "
            "JOIN temp.of_image i ON i.theirs = o.image JOIN temp.of_prompt p ON p.theirs = o.prompt "
            "JOIN temp.of_recipe r ON r.theirs = o.recipe LEFT JOIN main.captions m "
            "ON m.image = i.ours AND m.prompt = p.ours AND m.recipe = r.ours"
        )
        different = self._different()
        both = "temp.of_caption x JOIN other.captions o ON o.id = x.theirs"
        done = self._replace_captions(both, _DONE_HERE)
        dead = self._replace_captions(both, _failed_later("captions"))
        self._replace_captions(both, _waits_longer("captions"))
        self._replace_captions(both, "o.skipped IS NOT NULL AND captions.status IN ('ready', 'retry')")
        new = "x.ours IS NULL AND o.status"
        done += one(self.db, f"SELECT count(*) FROM {both} WHERE {new} = 'done'")
        dead += one(self.db, f"SELECT count(*) FROM {both} WHERE {new} = 'dead'")
        # Ready without its picture, it would only be claimed and fail.
        status = "CASE WHEN o.status IN ('ready', 'retry') AND i.state <> 'present' THEN 'cancelled' ELSE o.status END"
        self.change(
            f"INSERT INTO captions (image, prompt, recipe, {_QUEUE}, {_WORDS}, skipped, run) "
            f"SELECT x.image, x.prompt, x.recipe, {_of('o', _QUEUE).replace('o.status', status)}, {_of('o', _WORDS)}, "
            f"o.skipped, r.ours FROM {both} JOIN main.images i ON i.id = x.image "
            "LEFT JOIN temp.of_run r ON r.theirs = o.run "
            f"WHERE {new} <> 'cancelled' OR x.ours IS NULL AND o.skipped IS NOT NULL ORDER BY o.id"
        )
        self.execute(
            "UPDATE temp.of_caption SET ours = (SELECT m.id FROM main.captions m WHERE m.image = of_caption.image "
            "AND m.prompt = of_caption.prompt AND m.recipe = of_caption.recipe) WHERE ours IS NULL"
        )
        self._take_earlier()
        return done, dead, different

    def _replace_captions(self, both: str, where: str) -> int:
        """Replace captions of ours by theirs; return how many."""
        return self.change(
            f"UPDATE captions SET ({_QUEUE}, {_WORDS}, skipped, run, lease_run) = ({_of('o', _QUEUE)}, "
            f"{_of('o', _WORDS)}, o.skipped, (SELECT r.ours FROM temp.of_run r WHERE r.theirs = o.run), NULL) "
            f"FROM {both} WHERE captions.id = x.ours AND {where}"
        )

    def _different(self) -> int:
        """Count the captions that both states have with different texts, though neither was made again for that."""
        return one(
            self.db,
            "SELECT count(*) FROM temp.of_caption x JOIN other.captions o ON o.id = x.theirs "
            "JOIN main.captions ON captions.id = x.ours WHERE o.status = 'done' AND captions.status = 'done' "
            f"AND o.text <> captions.text AND NOT {_WAS_REPLACED} "
            "AND NOT EXISTS (SELECT 1 FROM other.earlier_captions e WHERE e.caption = o.id "
            "AND e.text = captions.text AND e.done_at IS captions.done_at)",
        )

    def _take_earlier(self) -> None:
        """Take what captions of the part were before they were made again, but for what still counts here."""
        self.change(
            f"INSERT INTO earlier_captions (caption, {_WORDS}, done_at, run) SELECT x.ours, {_of('o', _WORDS)}, "
            "o.done_at, r.ours FROM other.earlier_captions o JOIN temp.of_caption x ON x.theirs = o.caption "
            "JOIN main.captions c ON c.id = x.ours LEFT JOIN temp.of_run r ON r.theirs = o.run "
            "WHERE NOT (c.text IS o.text AND c.done_at IS o.done_at) AND NOT EXISTS (SELECT 1 "
            "FROM main.earlier_captions e WHERE e.caption = x.ours AND e.text = o.text AND e.done_at IS o.done_at) "
            "ORDER BY o.id"
        )

    def take_fetches(self) -> tuple[int, int]:
        """Take what became of sources; return how many are done or dead because of it."""
        both = (
            "temp.of_source x JOIN other.sources o ON o.id = x.theirs LEFT JOIN temp.of_image y ON y.theirs = o.image "
            "LEFT JOIN main.images i ON i.id = y.ours"
        )
        answer = "http_status, etag, last_modified, final_url, mirror"

        def replaced(where: str) -> int:
            return self.change(
                f"UPDATE sources SET ({_QUEUE}, {answer}, image, lease_run) = "
                f"({_of('o', _QUEUE)}, {_of('o', answer)}, coalesce(y.ours, sources.image), NULL) FROM {both} "
                f"WHERE sources.id = x.ours AND {where}"
            )

        # A picture that was lost is to be fetched again, but what was captioned of it counts.
        self.change(
            f"UPDATE sources SET image = y.ours, status = 'ready' FROM {both} WHERE sources.id = x.ours "
            "AND o.status = 'done' AND i.state = 'missing' AND sources.status IN ('ready', 'retry', 'dead') "
            "AND sources.image IS NULL"
        )
        done = replaced(
            "o.status = 'done' AND CASE WHEN sources.status = 'done' THEN i.state <> 'missing' "
            "AND o.done_at > sources.done_at ELSE i.state = 'present' OR i.state = 'evicted' "
            "AND sources.image IS NOT y.ours END"
        )
        dead = replaced(_failed_later("sources"))
        replaced(_waits_longer("sources"))
        return done, dead

    def take_attempts(self) -> int:
        """Take the history of every item: its failures, and the later of two successes."""
        before = one(self.db, "SELECT coalesce(max(id), 0) FROM attempts")
        # The success on record is that of the caption that counts; a source's is simply the later one.
        counts = "SELECT 1 FROM main.captions c WHERE c.id = x.ours AND c.run = r.ours AND c.done_at = o.ended_at"
        later = (
            "NOT EXISTS (SELECT 1 FROM main.attempts a WHERE a.stage = o.stage AND a.item = x.ours "
            "AND a.error_class IS NULL AND a.ended_at >= o.ended_at)"
        )
        taken = 0
        for stage, mapped, success in (("fetch", "of_source", later), ("caption", "of_caption", f"EXISTS ({counts})")):
            taken += self.change(
                "INSERT INTO attempts (stage, item, n, run, started_at, ended_at, error_class, message) "
                "SELECT o.stage, x.ours, o.n, r.ours, o.started_at, o.ended_at, o.error_class, o.message "
                f"FROM other.attempts o JOIN temp.{mapped} x ON x.theirs = o.item JOIN temp.of_run r "
                f"ON r.theirs = o.run WHERE o.stage = '{stage}' AND x.ours IS NOT NULL "
                f"AND (o.error_class IS NOT NULL OR {success}) AND NOT EXISTS (SELECT 1 FROM main.attempts a "
                "WHERE a.stage = o.stage AND a.item = x.ours AND a.error_class IS o.error_class AND a.run = r.ours "
                "AND a.started_at = o.started_at AND a.ended_at = o.ended_at) ORDER BY o.id"
            )
        self.execute(
            "DELETE FROM attempts WHERE id IN (SELECT a.id FROM attempts b JOIN attempts a ON a.stage = b.stage "
            "AND a.item = b.item AND a.id < b.id AND a.error_class IS NULL WHERE b.id > ? AND b.error_class IS NULL)",
            (before,),
        )
        return taken

    def take_hosts(self) -> None:
        """Take what the part knows of hosts, where it is newer."""
        columns = "state, reason, until, allowed, done, failed, bytes, busy_ms, updated_at"
        self.change(
            f"INSERT INTO hosts (host, {columns}) SELECT host, {columns} FROM other.hosts WHERE true "
            f"ON CONFLICT (host) DO UPDATE SET {_excluded('state, reason, until, allowed, updated_at')} "
            "WHERE excluded.updated_at > hosts.updated_at"
        )

    def settle(self, *, everything: bool) -> None:
        """Give the records of the part's images the outcome that they have now; of all records under a new recipe."""
        if not self.changed:
            return
        among = " AND source IN (SELECT s.id FROM temp.of_image x JOIN sources s ON s.image = x.ours)"
        self.execute(
            "UPDATE records SET outcome = (SELECT outcome FROM record_outcomes v WHERE v.record = records.id) "
            f"WHERE state = 'active'{'' if everything else among}"
        )
        wake_evicted(self.db)
