"""One row per stage."""

from textual.content import Content

from etl.domain.statuses import Stage
from tui.format import NOTHING, bar, count, duration, rate, short
from tui.snapshot import StageState, StageView
from tui.theme import ALERT, GOOD, QUIET, STRONG
from tui.widgets.panel import Panel

NAME, STATE, DONE, QUEUED, FAILED, RETRY, RATE, ETA = 9, 9, 17, 7, 7, 11, 7, 8
"""Widths of the columns in cells, the gap at their left included; the bar takes the rest."""

NARROWEST_BAR, WIDEST_BAR = 4, 80
"""Cells; where there is room for fewer, done and total say as much."""

_COLOURS = {StageState.RUNNING: GOOD, StageState.WAITING: GOOD, StageState.DONE: GOOD, StageState.PAUSED: ALERT}


class StagesPanel(Panel):
    """Name, state, bar, done and total, waiting for it, failed, those that will retry, items a minute, time left."""

    def wanted(self) -> tuple[int, int]:
        return 5, 5

    def lines(self, width: int) -> list[Content]:
        cells = max(0, min(WIDEST_BAR, width - NAME - STATE - DONE - QUEUED - FAILED - RETRY - RATE - ETA - 2))
        titles = Content.styled(
            f"{'done/total ':>{DONE}}{'queued':>{QUEUED}}{'failed':>{FAILED}}{'will retry':>{RETRY}}{'/min':>{RATE}}"
            f"{'ETA':>{ETA}}",
            QUIET,
        )
        head = self.heading("Stages", NAME + STATE + 2 + cells)
        return [head + titles, *(self._row(stage, cells) for stage in self.snapshot.stages)]

    def _row(self, stage: StageView, cells: int) -> Content:
        reached, left = bar(stage.done, stage.total, cells, self.glyphs)
        if stage.stage == Stage.INGEST and stage.growing:
            # Nobody knows how long a manifest is before its end.
            reached, left = "", self.glyphs.empty * cells
        if cells < NARROWEST_BAR:
            reached, left = "", " " * cells
        total = count(stage.total) + ("+" if stage.growing else " ")
        colour = _COLOURS.get(stage.state, QUIET)
        return Content.assemble(
            "  ",
            (f"{stage.stage:<{NAME - 1}}", STRONG),
            (f"{self.glyphs.stage[stage.state]} {stage.state:<{STATE - 1}}", colour),
            (reached, GOOD),
            (left, "$line"),
            (f"{count(stage.done):>{DONE - 1 - len(total)}}", STRONG),
            (f"/{total}", QUIET),
            (_number(stage.queued, QUEUED), QUIET),
            (_number(stage.failed, FAILED), ALERT if stage.failed else QUIET),
            (_number(stage.retrying, RETRY), ALERT if stage.retrying else QUIET),
            f"{rate(stage.per_minute):>{RATE}}",
            (f"{duration(stage.eta_s):>{ETA}}", STRONG if stage.eta_s is not None else QUIET),
        )


def _number(number: int, width: int) -> str:
    return f"{short(number) if number else NOTHING:>{width}}"
