"""Verify: database and image cache against each other, and the database against itself.

A picture that is gone or damaged goes back into the fetch queue; nothing that is right is touched.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etl.imaging.cache import ImageCache
from etl.state.integrity import kept_originals, problems
from etl.state.queries import Reader
from etl.state.store import Store


@dataclass(frozen=True)
class VerifySummary:
    """What was found.

    Attributes:
        images: working copies that the database knows.
        missing, damaged: of those, files that are gone or whose content is not what their name says.
        requeued: sources that will be fetched again because of that.
        orphans: files in the cache that no image owns, or ``deleted`` ones.
        problems: what is wrong with the database itself; empty for a sound one.
    """

    images: int
    missing: int
    damaged: int
    requeued: int
    orphans: int
    deleted: bool
    problems: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield the findings for people."""
        yield f"images    {self.images:,} in the database, {self.missing:,} missing, {self.damaged:,} damaged"
        if self.requeued:
            yield f"          {self.requeued:,} sources are ready to be fetched again: run `etl fetch`"
        yield f"orphans   {self.orphans:,} files" + (" deleted" if self.deleted and self.orphans else "")
        yield from (f"problem   {problem}" for problem in self.problems)
        if not self.problems:
            yield "database  sound"


def verify(store: Store, *, delete_orphans: bool = False) -> VerifySummary:
    """Check everything.  Removes damaged working copies, which are worth nothing; orphans only when asked."""
    cache = ImageCache.of_state(store.directory)
    lost, images, damaged, known = list[int](), 0, 0, set[Path]()
    with Reader(store.directory) as reader:
        wrong = tuple(problems(reader))
        known.update(cache.original_path(sha256) for sha256 in kept_originals(reader))
        for image, sha256, _ in reader.working_copies():
            path = cache.working_path(sha256)
            known.add(path)
            images += 1
            if not path.exists():
                lost.append(image)
            elif not _is_sound(path, sha256):
                # Were it left, the next fetch would take it for the finished file of its name.
                path.unlink()
                lost.append(image)
                damaged += 1
    requeued = store.requeue_missing_images(lost)
    # Unfinished downloads are no orphans: the next fetch resumes or removes them.
    orphans = [
        path for path in cache.root.rglob("*") if path.is_file() and path not in known and not cache.is_part(path)
    ]
    if delete_orphans:
        for path in orphans:
            path.unlink(missing_ok=True)
    return VerifySummary(images, len(lost) - damaged, damaged, requeued, len(orphans), delete_orphans, wrong)


def _is_sound(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
