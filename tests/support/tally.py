"""The table of the fault soak: how much was tried, by kind and place, and what was lost or done twice."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from support.places import Place


@dataclass
class Tally:
    """Counts over all fault tests of one session.

    Attributes:
        begun: when, by `time.monotonic`.
        tried, survived: faults by kind and place.  A fault is counted as tried before, as survived after its check.
        records, lost, doubled: records of checked exports; those missing in one, and those in it more than once.
        downloaded_again, captioned_again: finished work that was done once more.
    """

    begun: float
    tried: dict[str, dict[str, int]] = field(default_factory=dict)
    survived: dict[str, dict[str, int]] = field(default_factory=dict)
    records: int = 0
    lost: int = 0
    doubled: int = 0
    downloaded_again: int = 0
    captioned_again: int = 0
    states: int = 0

    def add(self, kind: str, where: str, *, tried: int = 0, survived: int = 0) -> None:
        """Count faults of one kind at one place."""
        for table, number in ((self.tried, tried), (self.survived, survived)):
            row = table.setdefault(kind, {})
            row[where] = row.get(where, 0) + number

    def take(self, place: Place) -> None:
        """Count what became of a state that was run to its end."""
        there = place.exported_keys()
        self.states += 1
        self.records += len(place.world.keys)
        self.lost += len(set(place.world.keys) - set(there))
        self.doubled += len(there) - len(set(there))
        self.downloaded_again += place.ledger.downloaded_again()
        self.captioned_again += place.ledger.captioned_again()

    def lines(self, now: float) -> Iterator[str]:
        """Yield the table; nothing where nothing was counted."""
        if not self.tried:
            return
        yield f"{'':<34}{'tried':>8}{'survived':>10}"
        for kind, places in self.tried.items():
            survived = self.survived.get(kind, {})
            yield f"{kind:<34}{sum(places.values()):>8,}{sum(survived.values()):>10,}"
            if len(places) <= 20:
                for where, number in places.items():
                    yield f"  {where:<32}{number:>8,}{survived.get(where, 0):>10,}"
            else:
                yield f"  at {len(places)} different places"
        yield f"{'states run to their end':<34}{self.states:>8,}"
        for what, number in (
            ("records exported from them", self.records), ("records lost", self.lost),
            ("records doubled", self.doubled), ("pictures downloaded again", self.downloaded_again),
            ("captions made again", self.captioned_again),
        ):  # fmt: skip
            yield f"{what:<34}{number:>8,}"
        yield f"{'wall time':<34}{now - self.begun:>7.0f}s"
