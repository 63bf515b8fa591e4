"""The latest lines of the log."""

from textual.content import Content

from etl.state.log import LogLine
from tui.theme import ALERT, QUIET
from tui.widgets.panel import Panel

ALERTS = frozenset({"WARNING", "ERROR", "CRITICAL"})


class LogPanel(Panel):
    """A heading and as many of the latest lines as fit."""

    def wanted(self) -> tuple[int, int]:
        return 2, 1 + max(1, len(self.snapshot.log))

    def lines(self, width: int) -> list[Content]:
        head = self.heading("Log", width, "UTC" if self.snapshot.log else "")
        room = max(1, self.content_size.height - 1)
        if not self.snapshot.log:
            return [head, Content.styled("  nothing was logged yet", QUIET)]
        return [head, *(log_line(line) for line in self.snapshot.log[-room:])]


def log_line(line: LogLine) -> Content:
    """Return a line of the log: the time of day, the part of the program, the words."""
    alert = line.level in ALERTS
    return Content.assemble(
        (f"  {line.at[11:19]} ", QUIET),
        (f"{line.level.lower()} " if alert else "", f"bold {ALERT}"),
        (f"{line.origin}: " if line.origin not in ("run", "") else "", QUIET),
        (line.words, ALERT if alert else ""),
    )
