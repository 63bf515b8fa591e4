"""The books on one worker, a GPU's process or an actor of a cluster, and the form in which outcomes travel from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason
from etl.domain.views import EngineSample
from etl.errors import CrashedError

AHEAD = 16
"""Items that a worker is given at least beyond its slots, so that its pictures are open when a slot is free."""

Outcome = CaptionResult | ItemFailure


class Ledger:
    """What a worker was given and has not finished, and what it has done; kept by whoever gives it items.

    Attributes:
        slots, in_use: slots, and those in use, at its last word.
        in_hand: the unfinished items by id, with when they were given (Unix milliseconds).
    """

    def __init__(self, number: int) -> None:
        self.slots = self.in_use = 0
        self.in_hand: dict[int, tuple[CaptionItem, int]] = {}
        self._number = number
        self._captions = self._tokens = 0

    @property
    def room(self) -> int:
        """Items that it could be given."""
        return self.slots + max(AHEAD, self.slots // 2) - len(self.in_hand)

    def give(self, item: CaptionItem) -> None:
        """Note that it was given an item."""
        self.in_hand[item.id] = (item, now_ms())

    def settle(self, outcome: Outcome) -> bool:
        """Note what came of an item; return whether it was in hand, so that anybody waits for it."""
        if self.in_hand.pop(outcome.id, None) is None:
            return False
        if isinstance(outcome, CaptionResult):
            self._captions += 1
            self._tokens += outcome.tokens
        return True

    def take_back(self) -> list[tuple[CaptionItem, int]]:
        """Return what was in hand, oldest first, and expect nothing of it any more."""
        lost, self.in_hand = list(self.in_hand.values()), {}
        return lost

    def sample(self) -> EngineSample:
        """Return how busy it was at its last word."""
        in_use = min(self.in_use, len(self.in_hand))
        waiting = len(self.in_hand) - in_use
        return EngineSample(
            worker=self._number,
            slots=self.slots,
            in_use=in_use,
            waiting=waiting,
            captions=self._captions,
            tokens=self._tokens,
        )


def crashed(item: CaptionItem, started_at: int, message: str) -> ItemFailure:
    """Return the failure of an item that a worker had in hand when it died: it is tried again, and alone at last."""
    return ItemFailure(
        id=item.id, slug=CrashedError.slug, message=message, retryable=True, started_at=started_at, crashed=True
    )


def to_wire(outcome: Outcome) -> tuple[str, dict[str, Any]]:
    """Return an outcome as a kind and fields that JSON and pickle carry."""
    return "result" if isinstance(outcome, CaptionResult) else "failure", dataclasses.asdict(outcome)


def from_wire(kind: str, fields: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `to_wire` has described."""
    if kind == "failure":
        return ItemFailure(**fields)
    plain = {**fields, "finish_reason": FinishReason(fields["finish_reason"]), "flags": tuple(fields["flags"])}
    return CaptionResult(**plain)
