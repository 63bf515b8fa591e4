"""One finding about this machine, the state at hand, or what lies between them."""

from dataclasses import dataclass
from typing import Literal

from etl.errors import EtlError

Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        verdict: ``fail`` where a run would fail, ``note`` for what costs time or is not known.
        detail: what was found, one sentence.
        cure: what to do about it, where there is anything.
    """

    name: str
    verdict: Verdict
    detail: str
    cure: str = ""


def failed(name: str, error: EtlError, *, verdict: Verdict = "fail") -> Check:
    """Return the finding that an error is."""
    return Check(name, verdict, str(error), error.cure)
