"""What a worker has in hand, and how its outcomes come back."""

import json

import pytest

from etl.caption.ledger import AHEAD, Ledger, Outcome, from_wire, to_wire
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason

RESULT = CaptionResult(1, "A red ball.", 4, FinishReason.LENGTH, ("truncated",))
FAILURE = ItemFailure(
    id=1, slug="generation", message="it failed", retryable=True, started_at=5, crashed=True, stops=True
)


@pytest.mark.parametrize("outcome", [RESULT, FAILURE])
def test_outcomes_come_back_as_they_were(outcome: Outcome) -> None:
    """Through JSON, enumerations and tuples included."""
    assert from_wire(*json.loads(json.dumps(to_wire(outcome)))) == outcome


def test_only_what_is_in_hand_counts() -> None:
    """An outcome of an item that was taken back, or is told twice, is nobody's, and room follows what is in hand."""
    ledger = Ledger(3)
    ledger.slots, ledger.in_use = 2, 2
    for number in (1, 2):
        ledger.give(CaptionItem(number, "", ""))
    assert ledger.room == 2 + AHEAD - 2
    assert [ledger.settle(RESULT), ledger.settle(RESULT), ledger.settle(FAILURE)] == [True, False, False]
    sample = ledger.sample()
    assert (sample.in_use, sample.waiting, sample.captions, sample.tokens) == (1, 0, 1, 4)
    assert [item.id for item, _ in ledger.take_back()] == [2]
    assert (ledger.room, ledger.take_back()) == (2 + AHEAD, [])
