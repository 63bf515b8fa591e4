"""Going on with a broken download where it stopped, instead of from its beginning.

Beside an unfinished part lies a small note of what the server said about the whole file.  The next attempt asks for
the rest with ``Range`` and ``If-Range`` (RFC 9110, 13.1.5 and 14.2): a server whose file has changed sends it whole.
A note counts only since the machine was started: after a power cut a part may have the right length and hold zeros.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from etl import files
from etl.errors import NotPlainError
from etl.failpoints import failpoint
from etl.net.responses import sendable

NOTE_SUFFIX = ".note"

SMALLEST = 64 * 1024
"""Bytes of a file below which a note is not worth its own write."""

MOST_NOTE = 64 * 1024
"""Bytes of a note that are read; one has some hundred."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rest:
    """What is still to come of a file.

    Attributes:
        validator: strong ETag or Last-Modified of the version that the part belongs to.
        total: bytes of the whole file.
        received: bytes that the part holds.
    """

    validator: str
    total: int
    received: int

    @property
    def headers(self) -> dict[str, str]:
        """The request headers that ask for the rest."""
        return {"Range": f"bytes={self.received}-", "If-Range": self.validator}

    def fits(self, headers: Mapping[str, str]) -> bool:
        """Return whether a 206 answer is exactly the rest that was asked for, and of the same version.

        Servers that do not know ``If-Range`` send the rest of whatever the file is by now.
        """
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
        wanted = (self.received, self.total - 1, self.total)
        name = "etag" if self.validator.startswith('"') else "last-modified"
        same = headers.get(name, self.validator).strip() == self.validator
        return same and match is not None and tuple(map(int, match.groups())) == wanted


def take_note(part: Path, headers: Mapping[str, str]) -> bool:
    """Note the version of a file whose body begins to come, where it could be resumed; return whether that was so.

    There must be no part yet: one of an older version would be taken for this one's beginning.
    """
    validator = _validator(headers)
    length = headers.get("content-length", "")
    whole = not headers.get("content-encoding") and headers.get("accept-ranges", "").strip().lower() != "none"
    # A note is a convenience: where it cannot be written, the part's own writer finds out what is wrong.
    with suppress(OSError, NotPlainError):
        if validator and whole and length.isdecimal() and int(length) >= SMALLEST:
            failpoint("part.before_note")
            note = {"validator": validator, "total": int(length), "boot": _boot()}
            files.write(Path(_note(part)), json.dumps(note).encode())
            failpoint("part.noted")
            return True
    return False


def rest_of(part: Path) -> Rest | None:
    """Return what is still to come of the file that ``part`` begins; ``None`` where it must begin anew."""
    # Nearly always, and a tenth of what it costs to open one without following links.
    if not os.path.lexists(note_path := _note(part)):
        return None
    try:
        with files.reading(Path(note_path)) as file:
            note = json.loads(file.read(MOST_NOTE))
        received = files.plain_size(part) or 0
        validator, total = note["validator"], note["total"]
        known = note["boot"] == _boot() and sendable(validator) and type(total) is int
        if known and 0 < received < total:
            return Rest(validator, total, received)
    except (NotPlainError, OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # No part, no note, or a note that was itself cut off: all mean the same.
    return None


def is_resumable(path: Path) -> bool:
    """Return whether a file among the parts is a part that can be resumed, or the note of one."""
    part = path.with_suffix("") if path.suffix == NOTE_SUFFIX else path
    return rest_of(part) is not None


def forget(part: Path, *, note_only: bool = False) -> None:
    """Remove a part and its note, or the note of a finished part alone."""
    failpoint("part.before_forget")
    if os.path.lexists(note := _note(part)):
        files.remove(Path(note))
    # Never a device or a directory that somebody named as the part.
    if not note_only and os.path.lexists(part) and (entry := files.look_at(part)) and entry.is_file:
        files.remove(part)


def _note(part: Path) -> str:
    return f"{part}{NOTE_SUFFIX}"


def _validator(headers: Mapping[str, str]) -> str | None:
    etag = headers.get("etag", "").strip()
    # A weak ETag promises the same meaning, not the same bytes.
    if etag.startswith('"') and sendable(etag):
        return etag
    modified = headers.get("last-modified")
    return modified if sendable(modified) else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"process {os.getpid()}"
