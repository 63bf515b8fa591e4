"""How a database comes to the newest schema: named migrations, each in one transaction."""

from collections.abc import Iterable

from etl.data_urls import line_hash
from etl.failpoints import failpoint
from etl.state.database import SCHEMA_VERSION, check_version
from etl.state.schema import first_schema
from etl.state.sqlite import Database, Migrations

migrations = Migrations("etl")


def _execute(db: Database, statements: Iterable[str]) -> None:
    """Run the statements of one migration, inside the transaction that `Migrations.apply` commits."""
    for statement in statements:
        db.conn.execute(statement)
    failpoint("schema.before_commit")


@migrations(name="0001_initial")
def _initial(db: Database) -> None:
    _execute(db, first_schema())


_HOSTS = """
CREATE TABLE hosts (
  host TEXT PRIMARY KEY,
  state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'slowed', 'paused', 'parked')),
  reason TEXT,
  until INTEGER,
  allowed INTEGER NOT NULL DEFAULT 0,
  in_flight INTEGER NOT NULL DEFAULT 0,
  done INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,
  busy_ms INTEGER NOT NULL DEFAULT 0,
  run INTEGER REFERENCES runs (id),
  updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""


@migrations(name="0002_hosts_and_mirrors")
def _hosts_and_mirrors(db: Database) -> None:
    _execute(db, ["ALTER TABLE sources ADD COLUMN mirror TEXT", _HOSTS])


# A caption that is to be made again counts as it was until the new one is there, whatever becomes of the attempt.
_CAPTIONS_AGAIN = """
ALTER TABLE captions ADD COLUMN repetition_penalty REAL;

CREATE TABLE earlier_captions (
  id INTEGER PRIMARY KEY,
  caption INTEGER NOT NULL REFERENCES captions (id),
  text TEXT NOT NULL,
  finish_reason TEXT,
  tokens INTEGER,
  flags TEXT NOT NULL,
  repetition_penalty REAL,
  run INTEGER REFERENCES runs (id),
  done_at INTEGER
) STRICT;
CREATE INDEX earlier_captions_by_caption ON earlier_captions (caption);
CREATE INDEX captions_flagged ON captions (recipe, flags) WHERE flags <> '';

DROP VIEW record_outcomes;
CREATE VIEW record_outcomes AS
SELECT r.id AS record, s.id AS source, c.id AS caption, CASE
    WHEN c.status = 'done' OR EXISTS (SELECT 1 FROM earlier_captions e WHERE e.caption = c.id) THEN 'captioned'
    WHEN s.status = 'dead' OR c.status = 'dead' THEN 'failed'
    ELSE 'pending' END AS outcome
FROM records r
LEFT JOIN sources s ON s.id = r.source
LEFT JOIN recipes p ON p.current = 1
LEFT JOIN captions c ON c.image = s.image AND c.prompt = r.prompt AND c.recipe = p.id;

CREATE TABLE engine_samples (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (id),
  at INTEGER NOT NULL,
  worker INTEGER NOT NULL,
  slots INTEGER NOT NULL,
  in_use INTEGER NOT NULL,
  waiting INTEGER NOT NULL,
  captions INTEGER NOT NULL,
  tokens INTEGER NOT NULL
) STRICT
"""


@migrations(name="0003_captions_again_and_engine_samples")
def _captions_again(db: Database) -> None:
    _execute(db, _CAPTIONS_AGAIN.split(";"))


_WAITING = """
CREATE INDEX sources_waiting ON sources (error_class, id)
  WHERE status IN ('ready', 'retry') AND error_class IS NOT NULL;
CREATE INDEX captions_waiting ON captions (recipe, error_class, id)
  WHERE status IN ('ready', 'retry') AND error_class IS NOT NULL;
DROP INDEX captions_dead;
CREATE INDEX captions_dead ON captions (recipe, error_class, id) WHERE status = 'dead';
CREATE INDEX captions_flagged_in_order ON captions (id) WHERE flags <> ''
"""


@migrations(name="0004_looking")
def _looking(db: Database) -> None:
    """What the dashboard looks at: failures by class, once a second, and flagged captions one after the other."""
    _execute(db, _WAITING.split(";"))


# What a state has handed out to parts, what it is a part of, and of what kind its exports are.
_SPLITS = """
CREATE TABLE splits (
  id INTEGER PRIMARY KEY,
  uid TEXT NOT NULL UNIQUE,
  role TEXT NOT NULL CHECK (role IN ('given', 'part', 'gathered')),
  parts INTEGER NOT NULL,
  number INTEGER,
  directory TEXT,
  at INTEGER NOT NULL
) STRICT;

CREATE TABLE split_parts (
  split INTEGER NOT NULL REFERENCES splits (id),
  number INTEGER NOT NULL,
  sources INTEGER NOT NULL,
  made INTEGER NOT NULL DEFAULT 0,
  merged_at INTEGER,
  closed INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (split, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE split_sources (
  part INTEGER NOT NULL,
  source INTEGER NOT NULL,
  PRIMARY KEY (part, source)
) STRICT, WITHOUT ROWID;

ALTER TABLE exports ADD COLUMN format TEXT NOT NULL DEFAULT 'jsonl'
"""


@migrations(name="0005_splits_and_formats")
def _splits(db: Database) -> None:
    _execute(db, _SPLITS.split(";"))


@migrations(name="0006_local_roots")
def _local_roots(db: Database) -> None:
    """Which directory a manifest's pictures lie in, and what proves that the user has opened it."""
    _execute(db, ["ALTER TABLE manifests ADD COLUMN root TEXT", "ALTER TABLE manifests ADD COLUMN root_seal TEXT"])


@migrations(name="0007_thinking")
def _thinking(db: Database) -> None:
    """What a reasoning model wrote before a caption, and is no part of it."""
    _execute(db, [f"ALTER TABLE {table} ADD COLUMN thinking TEXT" for table in ("captions", "earlier_captions")])


# What earlier versions kept tells of pictures that are tiny or stand in for others, but not which are blank.
_IMAGE_FLAGS = """
ALTER TABLE images ADD COLUMN flags TEXT NOT NULL DEFAULT '';
UPDATE images SET flags = 'tiny' WHERE width * height < 1024;
UPDATE images SET flags = iif(flags = '', 'placeholder', 'placeholder,' || flags) WHERE id IN
  (SELECT image FROM sources WHERE image IS NOT NULL GROUP BY image, host HAVING count(*) >= 5);
CREATE INDEX images_flagged ON images (flags) WHERE flags <> '';
ALTER TABLE captions ADD COLUMN skipped TEXT;
CREATE INDEX captions_skipped ON captions (recipe, skipped) WHERE skipped IS NOT NULL
"""


@migrations(name="0008_image_flags")
def _image_flags(db: Database) -> None:
    """What is suspicious about pictures, and for which of these flags a caption was left out."""
    _execute(db, _IMAGE_FLAGS.split(";"))


_SKIPPED = """
DROP VIEW record_outcomes;
ALTER TABLE records RENAME COLUMN outcome TO outcome_before;
ALTER TABLE records ADD COLUMN outcome TEXT NOT NULL DEFAULT 'pending'
  CHECK (outcome IN ('pending', 'captioned', 'failed', 'skipped'));
UPDATE records SET outcome = outcome_before WHERE outcome_before <> 'pending';
ALTER TABLE records DROP COLUMN outcome_before;
INSERT INTO counters (stage, recipe, status, n) VALUES ('outcomes', 0, 'skipped', 0);
CREATE VIEW record_outcomes AS
SELECT r.id AS record, s.id AS source, c.id AS caption, CASE
    WHEN c.status = 'done' OR EXISTS (SELECT 1 FROM earlier_captions e WHERE e.caption = c.id) THEN 'captioned'
    WHEN s.status = 'dead' OR c.status = 'dead' THEN 'failed'
    WHEN c.skipped IS NOT NULL THEN 'skipped'
    ELSE 'pending' END AS outcome
FROM records r
LEFT JOIN sources s ON s.id = r.source
LEFT JOIN recipes p ON p.current = 1
LEFT JOIN captions c ON c.image = s.image AND c.prompt = r.prompt AND c.recipe = p.id
"""


@migrations(name="0009_skipped")
def _skipped(db: Database) -> None:
    """A record whose caption is left out for a flag of its image is neither pending nor failed."""
    # SQLite changes no column that a trigger names; and what is skipped settles as what is done or dead does.
    triggers = db.conn.execute(
        "SELECT name, replace(sql, 'UPDATE OF status ON captions WHEN', 'UPDATE OF status, skipped ON captions "
        "WHEN old.skipped IS NOT new.skipped OR') FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%outcome%'"
    ).fetchall()
    gone = [f"DROP TRIGGER {name}" for name, _ in triggers]
    _execute(db, [*gone, *_SKIPPED.split(";"), *(sql for _, sql in triggers)])


@migrations(name="0010_own_pictures")
def _own_pictures(db: Database) -> None:
    """The pictures that stood in their records' lines; those of earlier versions still do."""
    _execute(db, ["CREATE TABLE own_pictures (url TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT"])


@migrations(name="0011_lines_with_own_pictures")
def _lines_with_own_pictures(db: Database) -> None:
    """Make the lines that pictures were taken out of known as such; before, any that named one was taken for one."""
    rows = db.conn.execute(
        "SELECT r.id, l.line FROM records r JOIN record_lines l ON l.record = r.id "
        "WHERE EXISTS (SELECT 1 FROM own_pictures) AND instr(l.line, CAST('etl-picture-sha256=' AS BLOB))"
    )
    hashes = [(line_hash(line, is_taken_out_of=True), record) for record, line in rows]
    db.conn.executemany("UPDATE records SET line_sha256 = ? WHERE id = ?", hashes)
    failpoint("schema.before_commit")


def migrate(db: Database) -> None:
    """Bring the database up to date; the caller holds the writer lock.

    Raises `StateNewerError` for a database of a newer version, which is left untouched.
    """
    check_version(db.conn)
    if migrations.pending(db):
        failpoint("schema.before_migrations")
        migrations.apply(db)
        failpoint("schema.migrated")
    # Not only after a migration: a process that died between the two left the number behind.
    if db.conn.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
        db.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        failpoint("schema.versioned")
        # So that the database has its tables even where its log is lost: without them it is taken for a lost one.
        db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
