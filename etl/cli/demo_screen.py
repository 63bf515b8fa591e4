"""How the demo looks: lines on stderr, bars, and on a terminal with colours a picture."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager

from etl.cli.options import Context
from etl.cli.progress import progress
from etl.cli.render import note
from etl.domain.views import Progress
from etl.text import clean

COLUMNS = 16
"""Of a drawn picture; half as many lines."""

_ENOUGH = ("256", "truecolor", "windows")
"""What rich calls terminals with colours enough for a picture."""


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
        """Draw the middle of a picture, which is what the model sees of it, beside its caption.

        Return whether the terminal has the colours for it.
        """
        from PIL import Image, ImageOps
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(stderr=True)
        if self._context.quiet or console.color_system not in _ENOUGH or console.no_color:
            return False
        with Image.open(io.BytesIO(picture)) as image:
            data = ImageOps.fit(image.convert("RGB"), (COLUMNS, COLUMNS)).tobytes()
        colours = [f"#{data[at : at + 3].hex()}" for at in range(0, len(data), 3)]
        drawn = Text(no_wrap=True)
        for begin in range(0, len(colours), 2 * COLUMNS):
            drawn.append("\n" if begin else "")
            # Two pixels in each cell: the upper one in the letter's colour, the lower one in the ground's.
            for upper in range(begin, begin + COLUMNS):
                drawn.append("▀", f"{colours[upper]} on {colours[upper + COLUMNS]}")
        side = Table.grid(padding=(0, 2))
        side.add_row(drawn, Text(clean(caption)))
        console.print(side)
        return True
