"""What failed, by stage and class; the most frequent first, as many as fit."""

from textual.content import Content

from etl import units
from etl.text import clean
from tui.format import count
from tui.snapshot import ClassView
from tui.theme import ALERT, QUIET, STRONG
from tui.widgets.panel import Panel


class ClassesPanel(Panel):
    """A heading and one row per class."""

    def wanted(self) -> tuple[int, int]:
        return 2, 1 + max(1, len(self.snapshot.classes))

    def lines(self, width: int) -> list[Content]:
        classes = self.snapshot.classes
        head = self.heading("Failures", width)
        if not classes:
            return [head, Content.styled("  none", QUIET)]
        room = self.content_size.height - 1
        shown = classes if len(classes) <= room else classes[: max(0, room - 1)]
        rows = [self._row(view) for view in shown]
        if len(shown) < len(classes):
            rest = classes[len(shown) :]
            items = sum(view.items for view in rest)
            counted = f"{units.count(len(rest), 'more kind')}, {units.count(items, 'item')}"
            more = f"  {counted if shown else _total(classes)}"
            rows.append(Content.styled(f"{more}; f shows them", QUIET))
        return [head, *rows]

    def _row(self, view: ClassView) -> Content:
        glyph, words = (self.glyphs.failed, "failed") if view.failed else (self.glyphs.will_retry, "will retry")
        return Content.assemble(
            (f"{count(view.items):>9}", STRONG),
            f"  {view.stage:<9}",
            f"{clean(view.error_class, 20):<21}",
            (f"{glyph} {words}", ALERT if view.failed else QUIET),
        )


def _total(classes: tuple[ClassView, ...]) -> str:
    return f"{units.count(sum(view.items for view in classes), 'item')} of {units.count(len(classes), 'kind')}"
