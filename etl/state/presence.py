"""Whether the image cache is there at all: a disk that is not mounted is not ten thousand bad pictures."""

import shlex
from pathlib import Path

from etl import files
from etl.errors import CacheMissingError, StateError
from etl.images.cache import ImageCache
from etl.state.images import counted, some_working_copies
from etl.state.read.reader import Reader
from etl.units import count

SAMPLE = 64
"""Working copies looked for; a look at each costs some microseconds."""

FEW = 4
"""Of fewer pictures than these all may be gone one by one."""

MANY = 16
"""Of a sample of so many, most must be there: a copy that was cut short lacks the rest."""


def require_cache(reader: Reader) -> None:
    """Raise `CacheMissingError` when the database counts pictures and the cache, as a whole, has not got them.

    Pictures that were evicted, or are known to be missing, are not counted.  Raises `StateError` when the cache may not
    be looked at.
    """
    cache = ImageCache.of_state(reader.state)
    wanted = some_working_copies(reader, SAMPLE)
    if wanted and (what := _what_is_missing(cache, wanted)):
        # A part that is to be merged is not the state that hints speak of.
        its = f" --state {shlex.quote(str(reader.state))}"
        raise CacheMissingError(
            f"{what}, and the database counts {count(counted(reader), 'picture')} in {cache.root}; nothing was "
            "charged: mount or copy that directory back and run the same command again, or, if they are really gone, "
            f"have them fetched again by `etl verify --accept-missing{its}` and `etl fetch{its}`"
        )


def require_directory(cache: ImageCache) -> None:
    """Raise `CacheMissingError` when the directory of working copies has gone in the midst of a run."""
    if not _is_there(working := cache.root / "working"):
        raise CacheMissingError(
            f"{working} was taken away during the run; what was committed is safe: mount or move it back, and run the "
            "same command again"
        )


def _what_is_missing(cache: ImageCache, wanted: list[str]) -> str | None:
    """Return why this cannot be the cache that the database speaks of; ``None`` where it can."""
    working = cache.root / "working"
    paths = [cache.working_path(sha256) for sha256 in wanted]
    if not _is_there(working):
        return f"there is no directory {working}"
    gone = sum(not _is_there(path) for path in paths)
    # Fetch makes all directories before the first picture, so a cache without them was emptied, or is another one.
    if gone == len(paths) and not any(_is_there(path.parent) for path in paths):
        return f"{working} is empty"
    if gone == len(paths) >= FEW or (len(paths) >= MANY and 2 * gone > len(paths)):
        return f"{gone} of {len(paths)} pictures that were looked for are not in {working}"
    return None


def _is_there(path: Path) -> bool:
    try:
        return files.look_at(path) is not None
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
