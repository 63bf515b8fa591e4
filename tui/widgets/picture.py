"""A picture drawn in the terminal."""

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from tui.picture import HALF, Cells, Colour, shade


class Picture(Widget):
    """Draws `Cells`, in the middle of its space from left to right; or words where there is no picture."""

    def __init__(self, *, ascii_only: bool) -> None:
        super().__init__(id="picture")
        self._ascii = ascii_only
        self._words = ""
        self._strips: list[Strip] = []

    def show(self, cells: Cells | None, words: str = "") -> None:
        """Draw a picture, or the words."""
        self._words = words
        draw = self._shaded if self._ascii else self._halves
        self._strips = [Strip(draw(line)) for line in cells.lines] if cells is not None else []
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line."""
        width, ground = self.size.width, self.visual_style.rich_style
        if not self._strips:
            words = self._words if y == 1 else ""
            return Strip([Segment(words[:width], ground)]).extend_cell_length(width, ground)
        if y >= len(self._strips):
            return Strip.blank(width, ground)
        strip = self._strips[y]
        left = max(0, (width - strip.cell_length) // 2)
        return Strip([Segment(" " * left, ground), *strip]).adjust_cell_length(width, ground)

    @staticmethod
    def _halves(line: tuple[tuple[Colour, Colour], ...]) -> list[Segment]:
        return [
            Segment(HALF, Style.from_color(Color.from_rgb(*upper), Color.from_rgb(*lower))) for upper, lower in line
        ]

    @staticmethod
    def _shaded(line: tuple[tuple[Colour, Colour], ...]) -> list[Segment]:
        return [Segment("".join(shade(upper, lower) for upper, lower in line))]
