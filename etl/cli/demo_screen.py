"""How the demo looks: lines on stderr, bars, and on a terminal with colours a picture."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager

from etl.cli.options import Context
from etl.cli.progress import progress
from etl.cli.render import note
from etl.domain.views import Progress
from etl.text import clean

COLUMNS = 24
"""Of a drawn picture; half as many lines."""


class DemoScreen:
    """Tells the demo on the terminal."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def write(self, line: str) -> None:
        """Say one line on stderr."""
        note(self._context, line)

    def watch(self) -> AbstractContextManager[Callable[[Progress], None]]:
        """Yield what shows the progress of one run."""
        return progress(self._context)

    def draw(self, picture: bytes, caption: str) -> bool:
        """Draw a picture beside its caption where the terminal has colours; return whether it has."""
        from PIL import Image
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(stderr=True)
        if self._context.quiet or console.color_system is None or console.no_color:
            return False
        with Image.open(io.BytesIO(picture)) as image:
            lines = COLUMNS * image.height // image.width // 2
            data = image.convert("RGB").resize((COLUMNS, 2 * lines)).tobytes()
        colours = [f"#{data[at : at + 3].hex()}" for at in range(0, len(data), 3)]
        drawn = Text(no_wrap=True)
        for line in range(lines):
            drawn.append("\n" if line else "")
            # Two pixels in each cell: the upper one in the letter's colour, the lower one in the ground's.
            for upper in range(2 * line * COLUMNS, (2 * line + 1) * COLUMNS):
                drawn.append("▀", f"{colours[upper]} on {colours[upper + COLUMNS]}")
        side = Table.grid(padding=(0, 2))
        side.add_row(drawn, Text(clean(caption)))
        console.print(side)
        return True
