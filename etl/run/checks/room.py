"""Whether the disk of the state takes what is still to be fetched."""

import shutil

from etl.domain.statuses import QueueStatus
from etl.errors import StateError
from etl.fetch.estimate import expected_copies
from etl.run.checks.check import Check
from etl.settings import Settings
from etl.state.file_systems import file_system_of, is_shared
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.units import size

MEASURED = 50
"""Pictures of the state from which the size of the others is known well enough to refuse a run for it."""


def disk(settings: Settings) -> Check:
    """Say whether the state's file system can hold one, and has room for the pictures to come.

    How large those are is known from the ones that are here; while there are few, too little room is only a note.
    """
    place = settings.state.absolute()
    while not place.exists():
        place = place.parent
    kind, free = file_system_of(place), shutil.disk_usage(place).free
    detail = f"{settings.state} on {kind or 'an unknown file system'}, {size(free)} free"
    if is_shared(kind):
        return Check(
            "disk", "fail", f"{detail}; a file system that others share cannot hold a state",
            "put it on a disk of this machine: --state DIR, or ETL_STATE",
        )  # fmt: skip
    room = free - settings.min_free
    if room <= 0:
        least = f"{detail}, and {size(settings.min_free)} are to stay free (min_free)"
        return Check("disk", "fail", least, "make room, or name another disk: --state DIR")
    needed, measured = _to_come(settings)
    if needed:
        detail += f", about {size(needed)} of pictures to come"
    if needed > room:
        bound = f"make room, or bound the cache so that captioned pictures go: --max-cache-size {room * 9 // 10}"
        return Check("disk", "fail" if measured >= MEASURED else "note", f"{detail}: NOT ENOUGH", bound)
    if settings.state.exists() and settings.state.stat().st_mode & 0o022:
        return Check("disk", "note", f"{detail}; other users may write to it", f"`chmod go-w {settings.state}`")
    return Check("disk", "ok", detail)


def _to_come(settings: Settings) -> tuple[int, int]:
    """Return the bytes that the cache is about to grow by, and how many pictures that is known from."""
    try:
        with Reader(settings.state) as reader:
            sources = read_progress(reader).sources
            open_ones = sum(sources.get(status, 0) for status in (QueueStatus.READY, QueueStatus.RETRY))
            return round(expected_copies(reader, settings, open_ones)), sources.get(QueueStatus.DONE, 0)
    except StateError:
        return 0, 0
