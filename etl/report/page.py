"""The page: a template that is filled in once, and the records as JSON behind it, written as they are read."""

import base64
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
from markupsafe import Markup

from etl.domain.statuses import RecordOutcome, RecordState
from etl.images.cache import ImageCache
from etl.output_file import checked, replaced, resolved
from etl.redaction import redact_url
from etl.report.summary import summarise
from etl.report.thumbnails import thumbnails
from etl.state.presence import require_cache
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.state.read.report_rows import CAPTION, LINE, ReportRow, count_reported, report_rows
from etl.state.recognise import spare_own_files
from etl.text import ELLIPSIS, clean

BLOCK = 200
"""Records of one block of JSON."""


@dataclass(frozen=True)
class ReportOptions:
    """What the page holds.

    Attributes:
        limit: most records; of more, every second, third, ... is taken.
        edge: longest edge of the pictures, in pixels; 0 for a page without pictures.
    """

    limit: int = 20_000
    edge: int = 160


@dataclass(frozen=True)
class ReportSummary:
    """What was written: records, pictures among them, and bytes."""

    path: Path
    records: int
    pictures: int
    size: int


def write_report(reader: Reader, path: Path, options: ReportOptions) -> ReportSummary:
    """Write the page to a file, which appears whole or not at all.

    Raises `ConfigError` for a directory, `TargetLockedError` while another command writes it, `CacheMissingError` for a
    page with pictures where there are none, `DiskFullError` or `EtlError` when it cannot be written; an existing file
    is then untouched.
    """
    if options.edge:
        require_cache(reader)
    # No snapshot: making pictures takes a minute, and beside a live run the write-ahead log would grow all the while.
    spare_own_files(reader.state, resolved(str(path)))
    with replaced(str(path)) as stream:
        records, pictures = write_page(reader, stream, options)
    path = checked(str(path))
    return ReportSummary(path, records, pictures, path.stat().st_size)


def write_page(reader: Reader, stream: BinaryIO, options: ReportOptions) -> tuple[int, int]:
    """Write the page; return the numbers of records and of pictures in it."""
    total = count_reported(reader)
    every = max(1, -(-total // options.limit))
    stream.write(_head(reader, total, every).encode())
    recipe = next((recipe.id for recipe in all_recipes(reader) if recipe.current), None)
    rows = itertools.islice(report_rows(reader, recipe), 0, None, every)
    records = pictures = 0
    known: dict[str, int] = {}
    while block := list(itertools.islice(rows, BLOCK)):
        shown = (row.record.working_sha256 for row in block if options.edge)
        new = list(dict.fromkeys(filter(None, shown)))
        new = [sha256 for sha256 in new if sha256 not in known]
        known |= {sha256: pictures + n for n, sha256 in enumerate(new)}
        made = list(thumbnails([_working_copy(reader, sha256) for sha256 in new], options.edge))
        stream.write(_block({"rows": [_row(row, known) for row in block], "pictures": made}))
        records, pictures = records + len(block), pictures + len(new)
    stream.write(f"<script>{_part('page.js')}</script>\n</body>\n</html>\n".encode())
    return records, pictures


def _head(reader: Reader, total: int, every: int) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    sampled = ""
    if every > 1:
        shown = -(-total // every)
        sampled = f"One record in {every:,} is shown: {shown:,} of {total:,}. The figures above are of all."
    return environment.from_string(_part("page.html")).render(
        style=Markup(_part("page.css")),
        style_hash=_hash(_part("page.css")),
        script_hash=_hash(_part("page.js")),
        sampled=sampled,
        **summarise(reader),
    )


def _row(row: ReportRow, pictures: dict[str, int]) -> list[Any]:
    """Return a record's fields in the order that the script knows; text of strangers made visible throughout."""
    record = row.record
    invalid = record.state == RecordState.INVALID
    failed = invalid or record.outcome == RecordOutcome.FAILED
    return [
        clean(record.key, LINE), clean(row.title, LINE), clean(row.date, LINE),
        RecordState.INVALID if invalid else clean(record.outcome, LINE), clean(record.host, LINE),
        clean(redact_url(record.url or ""), LINE),
        clean(record.error_class or "", LINE) if failed else "", clean(record.error, LINE) if failed else "",
        _caption(record.text or ""),
        [*_flags(record.flags), *(f"picture {flag}" for flag in _flags(record.image_flags))],
        record.done_at if record.text is not None else 0,
        pictures.get(record.working_sha256 or ""),
    ]  # fmt: skip


def _flags(stored: str | None) -> list[str]:
    return [clean(flag) for flag in (stored or "")[:LINE].split(",") if flag]


def _caption(text: str) -> str:
    """Return a caption with its lines, each of them clean."""
    if len(text) > CAPTION:
        text = text[: CAPTION - len(ELLIPSIS)] + ELLIPSIS
    return "\n".join(map(clean, text.splitlines()))


def _block(values: dict[str, Sequence[Any]]) -> bytes:
    """Return values as a block of JSON that no text in it can end."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>\n'.encode()


def _working_copy(reader: Reader, sha256: str) -> Path:
    return ImageCache.of_state(reader.state).working_path(sha256)


def _part(name: str) -> str:
    return resources.files("etl.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what a Content-Security-Policy calls a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
