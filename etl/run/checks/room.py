"""Whether the disk of the state takes what is still to be fetched."""

import shutil
from pathlib import Path

from etl.domain.statuses import QueueStatus
from etl.errors import DiskFullError, StateError
from etl.fetch.estimate import expected_copies
from etl.run.checks.check import Check
from etl.settings import Settings
from etl.state.file_systems import file_system_of, is_shared
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.units import BYTES, size, written

MB = 10**6

MEASURED = 50
"""Pictures of the state from which the size of the others is known well enough to refuse a run for it."""


def disk(settings: Settings) -> Check:
    """Say whether the state's file system can hold one, and has room for the pictures to come.

    How large those are is known from the ones that are here; while there are few, too little room is only a note.
    """
    place = _existing(settings.state)
    kind = file_system_of(place)
    where = f"{settings.state} on {kind or 'an unknown file system'}"
    if is_shared(kind):
        return Check(
            "disk", "fail", f"{where}; a file system that others share cannot hold a state",
            "put it on a disk of this machine: --state DIR, or ETL_STATE",
        )  # fmt: skip
    found = _room(settings, where)
    if found.verdict == "ok" and settings.state.exists() and settings.state.stat().st_mode & 0o022:
        said = f"{found.detail}; other users may write to it"
        return Check("disk", "note", said, f"`chmod go-w {settings.state}`")
    return found


def require_room(settings: Settings) -> None:
    """Raise `DiskFullError`, before a run begins, where its disk cannot take what is to be fetched."""
    sources = _sources(settings)
    if sources is not None and not _due(sources):
        return
    found = _room(settings, f"the disk of {settings.state}")
    if found.verdict == "fail":
        raise DiskFullError(found.detail).with_cure(found.cure)


def _room(settings: Settings, where: str) -> Check:
    free = shutil.disk_usage(_existing(settings.state)).free
    room = free - settings.min_free
    if room <= 0:
        return Check(
            "disk", "fail", f"{where}: {size(free)} free, of which {size(settings.min_free)} are to stay so (min_free)",
            "free some space and run again, lower min_free, or name another disk: --state DIR",
        )  # fmt: skip
    sources = _sources(settings) or {}
    needed = _bytes(settings, _due(sources)) if _due(sources) else 0
    said = f"{where}: {size(free)} free" + (f", about {size(needed)} of pictures to come" if needed else "")
    if needed <= room:
        return Check("disk", "ok", said)
    measured = sources.get(QueueStatus.DONE, 0) >= MEASURED
    bound = written(room * 9 // 10 // MB * MB, BYTES)
    return Check(
        "disk", "fail" if measured else "note", f"{said}: NOT ENOUGH",
        f"free some space, or bound the cache so that captioned pictures go: --max-cache-size {bound}",
    )  # fmt: skip


def _existing(place: Path) -> Path:
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place


def _sources(settings: Settings) -> dict[str, int] | None:
    """Return the counts of the state's sources; ``None`` where there is no state yet, or none that can be read."""
    try:
        with Reader(settings.state) as reader:
            return read_progress(reader).sources
    except StateError:
        return None


def _due(sources: dict[str, int]) -> int:
    return sum(sources.get(status, 0) for status in (QueueStatus.READY, QueueStatus.RETRY))


def _bytes(settings: Settings, sources: int) -> int:
    with Reader(settings.state) as reader:
        return round(expected_copies(reader, settings, sources))
