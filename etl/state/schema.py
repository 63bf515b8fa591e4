"""The state database as it was first released: tables, indexes and triggers as plain DDL.

What came later is in `etl.state.migrations`, in the order in which it came.  Statuses are words
(`etl.domain.statuses`), times Unix milliseconds, hashes lower-case hex unless said otherwise.  `done_at` of a queue is
when the item was last done or dead; whether it is now, its status tells.  `records.outcome` and `counters` are kept by
triggers alone, so no writer can forget them; the view `record_outcomes` is the one definition of what became of a
record.
"""

from collections.abc import Iterable

from etl.domain.statuses import QueueStatus, RecordState

_QUEUE = """
  status TEXT NOT NULL DEFAULT 'ready'
    CHECK (status IN ('ready', 'running', 'retry', 'done', 'dead', 'cancelled')),
  attempts INTEGER NOT NULL DEFAULT 0,
  crashes INTEGER NOT NULL DEFAULT 0,
  not_before INTEGER NOT NULL DEFAULT 0,
  lease_run INTEGER REFERENCES runs (id),
  error_class TEXT,
  error TEXT,
  done_at INTEGER"""

_TABLES = f"""
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  uid TEXT NOT NULL UNIQUE,
  stages TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'running',
  started_at INTEGER NOT NULL,
  heartbeat_at INTEGER NOT NULL,
  ended_at INTEGER,
  host TEXT NOT NULL,
  pid INTEGER NOT NULL,
  app_version TEXT NOT NULL,
  config TEXT NOT NULL,
  message TEXT
) STRICT;

CREATE TABLE manifests (
  id INTEGER PRIMARY KEY,
  path TEXT NOT NULL UNIQUE,
  spec TEXT NOT NULL,
  generation INTEGER NOT NULL,
  bytes INTEGER,
  sha256 TEXT,
  offset INTEGER NOT NULL DEFAULT 0,
  offset_sha256 TEXT,
  lines INTEGER NOT NULL DEFAULT 0,
  rows INTEGER NOT NULL DEFAULT 0,
  complete INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE prompts (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, text TEXT NOT NULL) STRICT;

CREATE TABLE recipes (
  id INTEGER PRIMARY KEY,
  sha256 TEXT NOT NULL UNIQUE,
  model TEXT NOT NULL,
  revision TEXT NOT NULL,
  spec TEXT NOT NULL,
  current INTEGER NOT NULL DEFAULT 0,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE images (
  id INTEGER PRIMARY KEY,
  sha256 TEXT NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  mime TEXT NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  working_sha256 TEXT NOT NULL,
  working_bytes INTEGER NOT NULL,
  working_width INTEGER NOT NULL,
  working_height INTEGER NOT NULL,
  longest_edge INTEGER NOT NULL,
  original_kept INTEGER NOT NULL,
  state TEXT NOT NULL DEFAULT 'present' CHECK (state IN ('present', 'missing', 'evicted'))
) STRICT;

CREATE TABLE sources (
  id INTEGER PRIMARY KEY,
  url TEXT NOT NULL UNIQUE,
  host TEXT NOT NULL,
  {_QUEUE},
  http_status INTEGER,
  etag TEXT,
  last_modified TEXT,
  final_url TEXT,
  image INTEGER REFERENCES images (id),
  CHECK (status <> 'done' OR image IS NOT NULL)
) STRICT;

CREATE TABLE records (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  manifest INTEGER NOT NULL REFERENCES manifests (id),
  position INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  line_sha256 BLOB NOT NULL,
  source INTEGER REFERENCES sources (id),
  prompt INTEGER REFERENCES prompts (id),
  state TEXT NOT NULL CHECK (state IN ('active', 'unselected', 'removed', 'invalid')),
  outcome TEXT NOT NULL DEFAULT 'pending' CHECK (outcome IN ('pending', 'captioned', 'failed')),
  error_class TEXT,
  error TEXT
) STRICT;

CREATE TABLE record_lines (record INTEGER PRIMARY KEY REFERENCES records (id), line BLOB NOT NULL) STRICT;

CREATE TABLE captions (
  id INTEGER PRIMARY KEY,
  image INTEGER NOT NULL REFERENCES images (id),
  prompt INTEGER NOT NULL REFERENCES prompts (id),
  recipe INTEGER NOT NULL REFERENCES recipes (id),
  {_QUEUE},
  text TEXT,
  finish_reason TEXT,
  tokens INTEGER,
  flags TEXT NOT NULL DEFAULT '',
  run INTEGER REFERENCES runs (id),
  UNIQUE (image, prompt, recipe),
  CHECK (status <> 'done' OR text IS NOT NULL)
) STRICT;

CREATE TABLE attempts (
  id INTEGER PRIMARY KEY,
  stage TEXT NOT NULL,
  item INTEGER NOT NULL,
  n INTEGER NOT NULL,
  run INTEGER NOT NULL REFERENCES runs (id),
  started_at INTEGER NOT NULL,
  ended_at INTEGER NOT NULL,
  error_class TEXT,
  message TEXT
) STRICT;

CREATE TABLE exports (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (id),
  path TEXT NOT NULL,
  recipe INTEGER REFERENCES recipes (id),
  rows INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  at INTEGER NOT NULL
) STRICT;

CREATE TABLE commands (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  arguments TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  acknowledged_at INTEGER,
  run INTEGER,
  result TEXT
) STRICT;

CREATE TABLE counters (
  stage TEXT NOT NULL,
  recipe INTEGER NOT NULL,
  status TEXT NOT NULL,
  n INTEGER NOT NULL,
  PRIMARY KEY (stage, recipe, status)
) STRICT, WITHOUT ROWID;

CREATE TABLE gpu_samples (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (id),
  at INTEGER NOT NULL,
  gpu INTEGER NOT NULL,
  load_percent INTEGER,
  memory_used INTEGER,
  memory_total INTEGER,
  power_w REAL
) STRICT;
"""

# Partial indexes hold the open work alone, so they stay small however much is done.  SQLite uses them only
# where a query repeats the predicate literally; tests/state/test_plans.py asserts that ours do.
_INDEXES = """
CREATE INDEX records_by_source ON records (source, prompt) WHERE state = 'active';
CREATE INDEX records_in_order ON records (manifest, position);
CREATE INDEX records_invalid ON records (error_class, id) WHERE state = 'invalid';
CREATE INDEX sources_ready ON sources (host, not_before, id) WHERE status IN ('ready', 'retry');
CREATE INDEX sources_running ON sources (id) WHERE status = 'running';
CREATE INDEX sources_dead ON sources (error_class, id) WHERE status = 'dead';
CREATE INDEX sources_done_at ON sources (done_at) WHERE status = 'done';
CREATE INDEX sources_by_image ON sources (image) WHERE image IS NOT NULL;
CREATE INDEX captions_ready ON captions (recipe, not_before, id) WHERE status IN ('ready', 'retry');
CREATE INDEX captions_running ON captions (id) WHERE status = 'running';
CREATE INDEX captions_dead ON captions (error_class, id) WHERE status = 'dead';
CREATE INDEX captions_done_at ON captions (done_at) WHERE status = 'done';
CREATE INDEX attempts_by_item ON attempts (stage, item, id);
CREATE INDEX images_by_working_copy ON images (working_sha256);
CREATE INDEX commands_open ON commands (id) WHERE acknowledged_at IS NULL;
"""

# A caption wins over a dead source: the picture was there once, and its caption stays true.
_OUTCOMES = """
CREATE VIEW record_outcomes AS
SELECT r.id AS record, s.id AS source, c.id AS caption, CASE
    WHEN c.status = 'done' THEN 'captioned'
    WHEN s.status = 'dead' OR c.status = 'dead' THEN 'failed'
    ELSE 'pending' END AS outcome
FROM records r
LEFT JOIN sources s ON s.id = r.source
LEFT JOIN recipes p ON p.current = 1
LEFT JOIN captions c ON c.image = s.image AND c.prompt = r.prompt AND c.recipe = p.id;
"""

_SETTLE = "UPDATE records SET outcome = (SELECT outcome FROM record_outcomes v WHERE v.record = records.id)"


def _counter_rows() -> list[str]:
    """Return what makes every counter exist from the start, so that counting is never more than an update."""
    outcomes = ("pending", "captioned", "failed")
    known: dict[str, Iterable[str]] = {"records": RecordState, "outcomes": outcomes, "sources": QueueStatus}
    rows = ", ".join(f"('{stage}', 0, '{status}', 0)" for stage, statuses in known.items() for status in statuses)
    of_recipe = ", ".join(f"('captions', new.id, '{status}', 0)" for status in QueueStatus)
    return [
        f"INSERT INTO counters (stage, recipe, status, n) VALUES {rows}",
        "CREATE TRIGGER recipes_inserted AFTER INSERT ON recipes BEGIN "
        f"INSERT INTO counters (stage, recipe, status, n) VALUES {of_recipe}; END",
    ]


def _counting_triggers(table: str, recipe: str) -> list[str]:
    """Return the triggers that keep ``counters`` for one queue table."""
    new, old = ("0", "0") if recipe == "0" else (f"new.{recipe}", f"old.{recipe}")
    up = f"UPDATE counters SET n = n + 1 WHERE stage = '{table}' AND recipe = {new} AND status = new.status;"
    down = f"UPDATE counters SET n = n - 1 WHERE stage = '{table}' AND recipe = {old} AND status = old.status;"
    return [
        f"CREATE TRIGGER {table}_inserted AFTER INSERT ON {table} BEGIN {up} END",
        f"CREATE TRIGGER {table}_deleted AFTER DELETE ON {table} BEGIN {down} END",
        f"CREATE TRIGGER {table}_moved AFTER UPDATE OF status ON {table} WHEN old.status <> new.status "
        f"BEGIN {down} {up} END",
    ]


def _record_triggers() -> list[str]:
    """Return the triggers that count records by state, active ones by outcome, and settle re-pointed ones."""
    up = (
        "UPDATE counters SET n = n + 1 WHERE stage = 'records' AND recipe = 0 AND status = new.state; "
        "UPDATE counters SET n = n + 1 WHERE stage = 'outcomes' AND recipe = 0 AND status = new.outcome "
        "AND new.state = 'active';"
    )
    down = (
        "UPDATE counters SET n = n - 1 WHERE stage = 'records' AND recipe = 0 AND status = old.state; "
        "UPDATE counters SET n = n - 1 WHERE stage = 'outcomes' AND recipe = 0 AND status = old.outcome "
        "AND old.state = 'active';"
    )
    settled = "EXISTS (SELECT 1 FROM sources WHERE id = new.source AND status IN ('done', 'dead'))"
    return [
        f"CREATE TRIGGER records_inserted AFTER INSERT ON records BEGIN {up} END",
        f"CREATE TRIGGER records_settled AFTER INSERT ON records WHEN {settled} BEGIN {_SETTLE} WHERE id = new.id; END",
        f"CREATE TRIGGER records_deleted AFTER DELETE ON records BEGIN {down} END",
        "CREATE TRIGGER records_moved AFTER UPDATE OF state, outcome ON records "
        f"WHEN old.state <> new.state OR old.outcome <> new.outcome BEGIN {down} {up} END",
        "CREATE TRIGGER records_repointed AFTER UPDATE OF source, prompt, state ON records "
        "WHEN old.source IS NOT new.source OR old.prompt IS NOT new.prompt OR old.state <> new.state "
        f"BEGIN {_SETTLE} WHERE id = new.id; END",
    ]


def _image_triggers() -> list[str]:
    """Return the trigger that sums up the bytes of the distinct originals; image rows are never deleted."""
    return [
        "CREATE TRIGGER images_inserted AFTER INSERT ON images BEGIN INSERT INTO counters VALUES "
        "('images', 0, 'bytes', new.bytes) ON CONFLICT DO UPDATE SET n = n + excluded.n; END"
    ]


def _outcome_triggers() -> list[str]:
    """Return the triggers that settle the records of a source or caption whose fate changed."""
    final = "('done', 'dead')"
    changed = f"old.status <> new.status AND (old.status IN {final} OR new.status IN {final})"
    return [
        "CREATE TRIGGER sources_settle AFTER UPDATE OF status, image ON sources "
        f"WHEN ({changed}) OR old.image IS NOT new.image "
        f"BEGIN {_SETTLE} WHERE source = new.id AND state = 'active'; END",
        f"CREATE TRIGGER captions_settle AFTER UPDATE OF status ON captions WHEN {changed} "
        f"BEGIN {_SETTLE} WHERE state = 'active' AND prompt = new.prompt "
        "AND source IN (SELECT id FROM sources WHERE image = new.image); END",
    ]


def first_schema() -> list[str]:
    """Return the statements that make the first schema."""
    statements = [part for part in (_TABLES + _INDEXES + _OUTCOMES).split(";") if part.strip()]
    statements += _record_triggers() + _counting_triggers("sources", "0") + _counting_triggers("captions", "recipe")
    return statements + _counter_rows() + _image_triggers() + _outcome_triggers()
