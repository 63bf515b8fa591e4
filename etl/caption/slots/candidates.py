"""Ways to caption faster that change no words.  None has been measured on a GPU, so all are off until one has been.

A benchmark switches them on by name, one at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Candidates:
    """Which of them are on.

    Attributes:
        decode_first: decoding goes before the prefills beside it, on a stream of higher priority.
        tight_rows: slots are as long as the longest request so far, without room for longer ones.
        by_length: prompts of like length are prefilled together, which pads less.
    """

    decode_first: bool = False
    tight_rows: bool = False
    by_length: bool = False

    @classmethod
    def of(cls, names: Iterable[str]) -> "Candidates":
        """Return those of these names.  Raises `TypeError` for one that there is not."""
        return cls(**dict.fromkeys(names, True))


NAMES = tuple(field.name for field in fields(Candidates))
"""All that there are."""
