"""States with pictures, failures and hostile text, to report on."""

import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path

from PIL import Image
from support.made_state import MadeState
from support.workbench import encoded

from etl.images.cache import ImageCache
from etl.state.database import DATABASE_NAME

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
"""What a stranger would put into a manifest to run a script in the page."""


def put_pictures(state: Path, edge: int = 320) -> None:
    """Give every image of a state a working copy of one colour, which a made state has not."""
    rng = random.Random(1)
    cache = ImageCache.of_state(state)
    with closing(sqlite3.connect(state / DATABASE_NAME)) as database, database:
        for (name,) in database.execute("SELECT DISTINCT working_sha256 FROM images ORDER BY 1").fetchall():
            data = encoded(Image.new("RGB", (edge, edge // 2), tuple(rng.randbytes(3))))
            database.execute(
                "UPDATE images SET working_sha256 = ?, working_bytes = ? WHERE working_sha256 = ?",
                (cache.put_working(data), len(data), name),
            )


def make_state(directory: Path, records: int = 12, **settings: float) -> MadeState:
    """Return a state with ``records``; of every twelve two share a picture, one is dead at
    fetch, one at caption and one is to be done."""
    state = MadeState(directory, **settings)
    pictures = [n // 12 * 12 if n % 12 == 1 else n for n in range(records)]
    lines = [
        {
            "id": f"r{n}",
            "url": f"http://{'ab'[picture % 2]}.example/{picture}.jpg?token=secret",
            "title": HOSTILE if n == 3 else f"Rue {n}",
            "date": f"19{n % 100:02}",
        }
        for n, picture in enumerate(pictures)
    ]
    state.ingest("".join(json.dumps(line) + "\n" for line in lines).encode() + b"no json\n")
    last = {9: "dead source", 10: "dead caption", 11: "to be done"}
    state.finish(
        {f"r{n}": f"A street with {n} trams.\n{HOSTILE}" for n in range(records) if n % 12 not in last},
        dead_sources={f"r{n}": "http_404" for n in range(9, records, 12)},
        dead_captions={f"r{n}": "generation" for n in range(10, records, 12)},
        flags=("repetition", "truncated"),
    )
    put_pictures(state.settings.state)
    return state
