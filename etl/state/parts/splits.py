"""What is known of the parts that a state has given its work to."""

from dataclasses import dataclass
from pathlib import Path

from etl.errors import StateMissingError, StateSplitError
from etl.state.database import SPLIT_VERSION
from etl.state.read.reader import Reader


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a split.

    Attributes:
        number: from 1.
        sources: that were given to it.
        made: whether its directory is complete.
        merged_at: when it was last merged, Unix milliseconds.
        closed: it came back with nothing left to do, or what it left is done elsewhere.
    """

    number: int
    sources: int
    made: bool
    merged_at: int | None
    closed: bool


@dataclass(frozen=True, slots=True)
class Split:
    """How the work of a state was dealt out.

    Attributes:
        id: row in ``splits``.
        uid: the name that the state and its parts know it by.
        directory: where the parts were made; empty where another state was split.
        parts: as far as this state knows them, in order.
        of: how many parts there are.
    """

    id: int
    uid: str
    directory: str
    of: int
    parts: tuple[Part, ...]

    @property
    def is_open(self) -> bool:
        """Whether parts are still at work on what this state holds."""
        return any(not part.closed for part in self.parts)

    @property
    def is_made(self) -> bool:
        """Whether every part is complete."""
        return all(part.made for part in self.parts)


def latest_split(reader: Reader) -> Split | None:
    """Return the latest split of this state itself; ``None`` where it was never split."""
    return _split(reader, "role = 'given' ORDER BY id DESC")


def refuse_split(directory: Path) -> None:
    """Raise `StateSplitError` where the work of a state is with its parts."""
    try:
        with Reader(directory) as reader:
            found = latest_split(reader)
    except StateMissingError:
        # The run itself says so, or makes one.
        return
    if found is not None and found.is_open:
        back = sum(part.closed for part in found.parts)
        raise StateSplitError(
            f"this state is split into {found.of} parts in {found.directory}, of which {back} have come back finished: "
            "work on those, then `etl merge` them; --force works here too, and may do their work twice"
        )


def _split(reader: Reader, where: str) -> Split | None:
    if reader.version < SPLIT_VERSION:
        return None
    found = reader.rows(f"SELECT id, uid, directory, parts FROM splits WHERE {where} LIMIT 1")
    if not found:
        return None
    number, uid, directory, of = found[0]
    rows = reader.rows(
        "SELECT number, sources, made, merged_at, closed FROM split_parts WHERE split = ? ORDER BY number", (number,)
    )
    parts = tuple(Part(part, sources, bool(made), at, bool(closed)) for part, sources, made, at, closed in rows)
    return Split(number, uid, directory or "", of, parts)
