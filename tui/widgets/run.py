"""The run: what it is doing, in a glyph, a word and a sentence; who it is; whether its heart beats."""

from textual.content import Content

from etl.clock import ago, now_ms, stops_at
from etl.domain.hints import hinted
from etl.domain.statuses import LIVE, RunState, Stage
from etl.domain.views import RunInfo
from etl.text import clean
from tui.format import NOTHING, duration, money
from tui.theme import ALERT, GOOD, QUIET, STRONG
from tui.widgets.panel import Panel, spread

LATE_S = 15
"""A run beats once a second; so long without a beat is worth a word, be it alive or not."""

SENTENCES = {
    RunState.NONE: "no run yet; start one with `etl run`",
    RunState.RUNNING: "",
    RunState.PAUSED: "nothing new is begun; p lets it go on",
    RunState.STOPPING: "what is in flight is still finished",
    RunState.CRASHED: "the process is gone; `etl run` resumes",
    RunState.DONE: "all its stages are done",
    RunState.PARTIAL: "finished, but some items have failed",
    RunState.INTERRUPTED: "not everything was done; `etl run` resumes",
    RunState.FAILED: "ended with an error",
}

_ALERTS = frozenset({RunState.PAUSED, RunState.STOPPING, RunState.CRASHED, RunState.PARTIAL, RunState.INTERRUPTED,
                     RunState.FAILED})  # fmt: skip


class RunPanel(Panel):
    """Two lines; drawn every second, because the age of a heartbeat changes without a new snapshot."""

    def on_mount(self) -> None:
        self.set_interval(1.0, self.redraw)

    def wanted(self) -> tuple[int, int]:
        return 2, 2

    def lines(self, width: int) -> list[Content]:
        run, now = self.snapshot.run, now_ms()
        state = run.state if run is not None else RunState.NONE
        colour = ALERT if state in _ALERTS else QUIET if run is None else GOOD
        sentence = clean(run.message, 500) if run is not None and run.message else hinted(SENTENCES[state])
        if run is not None and run.stops_at is not None and state in LIVE:
            sentence = "; ".join(filter(None, (sentence, stops_at(run.stops_at, now))))
        left = Content.assemble(
            (f"{self.glyphs.run[state]} {state}", f"bold {colour}"), "  " if sentence else "", (sentence, "$foreground")
        )
        ends = ((left, self._beat(now)), (self._identity(run, now), self._cost()))
        return [spread(*both, width, self.glyphs) for both in ends]

    def _beat(self, now: int) -> Content:
        run = self.snapshot.run
        if run is None:
            return Content("")
        age, when = (now - run.heartbeat_at) / 1000, ago(run.heartbeat_at, now, duration)
        if run.state is RunState.CRASHED:
            return Content.styled(f"last heartbeat {when}", QUIET)
        if not self.snapshot.live:
            # A run that ended did so with its last beat.
            return Content.styled(f"ended {when}", QUIET)
        words = f"heartbeat {when}"
        return Content.styled(words, f"bold {ALERT}" if age >= LATE_S else QUIET)

    def _identity(self, run: RunInfo | None, now: int) -> Content:
        if run is None:
            return Content("")
        end = run.heartbeat_at if run.ended_at is None and not self.snapshot.live else run.ended_at or now
        gap = f" {self.glyphs.dot} "
        return Content.assemble(
            ("  run ", QUIET),
            (clean(run.uid[:8]), STRONG),
            (
                f"{gap}{duration((end - run.started_at) / 1000)}{gap}{_stages(run)}{gap}pid {run.pid} on "
                f"{clean(run.host, 24)}",
                QUIET,
            ),
        )

    def _cost(self) -> Content:
        cost = self.snapshot.cost
        if cost is None:
            return Content("")
        total = f" of {money(cost.total)}" if cost.total - cost.run >= 0.005 else ""
        return Content.assemble(("cost ", QUIET), (money(cost.run), STRONG), (total, QUIET))


def _stages(run: RunInfo) -> str:
    return "all stages" if set(run.stages) == set(Stage) else clean(" + ".join(run.stages), 40) or NOTHING
