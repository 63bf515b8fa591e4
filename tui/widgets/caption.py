"""How caption fares: images and tokens a second, a plot of the last minutes, slots of the engine, load of each GPU."""

from textual.content import Content

from etl.domain.statuses import Stage
from etl.domain.views import GpuSample
from etl.units import size
from tui.format import bar, count, per_second, spark
from tui.theme import GOOD, QUIET, STRONG
from tui.widgets.fetch import PLOT
from tui.widgets.panel import Panel

LOAD = 10
"""Cells of the bar of a GPU's load."""


class CaptionPanel(Panel):
    """A heading, a line on the engines, and one on each GPU that was sampled."""

    def wanted(self) -> tuple[int, int]:
        gpus = len(self.snapshot.caption.gpus)
        return 2 + min(1, gpus), 2 + gpus

    def lines(self, width: int) -> list[Content]:
        view = self.snapshot.caption
        right = Content.assemble(
            (spark(view.plot, min(PLOT, width - 50), self.glyphs), GOOD),
            "  " if view.plot else "",
            (per_second(view.per_s), STRONG),
            (" images/s  ", QUIET),
            (per_second(view.tokens_per_s), STRONG),
            (" tokens/s", QUIET),
        )
        return [self.heading("Caption", width, right), self._engines(), *(self._gpu(gpu) for gpu in view.gpus)]

    def _engines(self) -> Content:
        engines = self.snapshot.caption.engines
        if not engines:
            at_work = self.snapshot.live and self.snapshot.run and Stage.CAPTION in self.snapshot.run.stages
            words = "the engine has not told of its slots yet" if at_work else "no caption engine is at work"
            return Content.styled(f"  {words}", QUIET)
        slots, in_use, waiting = (
            sum(getattr(engine, name) for engine in engines) for name in ("slots", "in_use", "waiting")
        )
        reached, left = bar(in_use, slots, LOAD, self.glyphs)
        workers = f" of {len(engines)} workers" if len(engines) > 1 else ""
        return Content.assemble(
            "  ",
            (f"{'slots':<8}", QUIET),
            (reached, GOOD),
            (left, "$line"),
            (f" {in_use:>4}", STRONG),
            (f" of {slots} in use{workers}   {count(waiting)} prepared and waiting", QUIET),
        )

    def _gpu(self, gpu: GpuSample) -> Content:
        reached, left = bar(gpu.load_percent or 0, 100, LOAD, self.glyphs)
        load = "   -" if gpu.load_percent is None else f"{gpu.load_percent:>3}%"
        memory = power = ""
        if gpu.memory_used is not None and gpu.memory_total is not None:
            memory = f"   {size(gpu.memory_used)} of {size(gpu.memory_total)}"
        if gpu.power_w is not None:
            power = f"   {gpu.power_w:.0f} W"
        return Content.assemble(
            "  ",
            (f"{f'GPU {gpu.gpu}':<8}", QUIET),
            (reached, GOOD),
            (left, "$line"),
            (f" {load}", STRONG),
            (" busy", QUIET),
            (memory, "$foreground"),
            (power, "$foreground"),
        )
