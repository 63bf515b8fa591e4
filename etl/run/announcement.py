"""What the webhook is told of a run, where there is one."""

from contextlib import nullcontext
from typing import Any

from etl.domain.statuses import RecordOutcome, RunState
from etl.errors import EtlError
from etl.run.plan import Report
from etl.settings import Settings
from etl.state.log import RunLog


def announce_end(settings: Settings, report: Report) -> None:
    """Tell how a run has ended."""
    _announce(settings, *_told(report))


def announce_failure(settings: Settings, error: EtlError) -> None:
    """Tell that a run has failed."""
    _announce(settings, {"state": RunState.FAILED, "error": str(error)}, f"failed: {error}")


def _told(report: Report) -> tuple[dict[str, Any], str]:
    """Return what a webhook is told of a run, for programs and for people."""
    outcomes, run = report.progress.outcomes, report.progress.run
    counts = {str(outcome): outcomes.get(outcome, 0) for outcome in RecordOutcome}
    # An invalid line of the manifest is a failure too.
    counts[RecordOutcome.FAILED] = report.failed
    spent = report.cost.total if report.cost else None
    text = f"{report.state}: " + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    facts = {
        "run": run.uid if run else None, "state": report.state, "signal": report.signal, "records": counts,
        "cost": spent,
    }  # fmt: skip
    return facts, text if spent is None else f"{text}; {spent:,.2f} spent"


def _announce(settings: Settings, facts: dict[str, Any], text: str) -> None:
    if settings.webhook:
        from etl.telemetry.webhook import announce

        with RunLog(settings.state) if settings.state.is_dir() else nullcontext():
            announce(settings, facts, text)
