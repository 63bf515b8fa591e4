"""What one run is to do, and what it did."""

from dataclasses import dataclass, field

from etl.domain.statuses import RecordOutcome, RunState, Stage
from etl.domain.views import ExportSummary, IngestSummary, Progress, StageSummary
from etl.export.stage import ExportOptions
from etl.ingest.options import IngestOptions, LeftOut
from etl.state.read.cost import Cost


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run does.

    Attributes:
        fetch, caption: the stages to run.
        sources: the manifests to ingest first, in this order.
        options: how to read them.
        reselect: apply ``options.selection`` to the manifests that the state holds already.
        refresh: ask again for the sources that were fetched before.
        output: where to export at the end.
        export: what the export holds.
        force: fetch and caption although the work was given to parts.
    """

    fetch: bool = False
    caption: bool = False
    sources: tuple[str, ...] = ()
    options: IngestOptions = field(default_factory=IngestOptions)
    reselect: bool = False
    refresh: bool = False
    output: str | None = None
    export: ExportOptions = field(default_factory=ExportOptions)
    force: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in their order."""
        wanted = {
            Stage.INGEST: bool(self.sources), Stage.FETCH: self.fetch, Stage.CAPTION: self.caption,
            Stage.EXPORT: self.output is not None,
        }  # fmt: skip
        return tuple(stage for stage, yes in wanted.items() if yes)

    @property
    def counted(self) -> str:
        """What the work that is left is counted in: one of them."""
        return "record" if self.caption else "picture"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one run did.

    Attributes:
        state: how it ended.
        signal: the signal that stopped it, if one did.
        stages: per stage, what it did in this run.
        progress: the counts at its end.
        failed: records that are failed or invalid, over the whole state.
        ingested: what was read, source by source.
        exported: what was written, if anything was.
        cost: what this run and all runs have cost; ``None`` when no price is known.
        deadline: whether its time was over before its work was done.
        failures: ``(stage, error class, items)`` of what has failed or is invalid, over the whole state.
        left_out: records that are not needed, and why.
        unreachable: ``(host, error class, pictures)`` of hosts that could not be reached, a few of them.
    """

    state: RunState
    signal: int | None
    stages: dict[Stage, StageSummary]
    progress: Progress
    failed: int
    ingested: tuple[IngestSummary, ...] = ()
    exported: ExportSummary | None = None
    cost: Cost | None = None
    deadline: bool = False
    failures: tuple[tuple[str, str, int], ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    unreachable: tuple[tuple[str, str, int], ...] = ()

    @property
    def without_pictures(self) -> int:
        """What caption, at work without fetch, could not do: captions whose picture was lost, else records whose
        picture is not there, where it had nothing to do but those."""
        alone = Stage.CAPTION in self.stages and Stage.FETCH not in self.stages
        if not alone or self.deadline or self.state is RunState.INTERRUPTED:
            return 0
        did = self.stages[Stage.CAPTION]
        return did.lost or (0 if did.done else self.progress.outcomes.get(RecordOutcome.PENDING, 0))
