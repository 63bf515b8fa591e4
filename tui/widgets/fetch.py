"""How fetch fares: bytes a second, a plot of the last minutes, and its hosts."""

from textual.content import Content

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo, HostProgress
from etl.text import clean
from etl.units import count, size
from tui.format import UNHEARD, duration, per_second, short, spark
from tui.theme import ALERT, GOOD, QUIET, STRONG
from tui.widgets.panel import Panel, cut

PLOT = 30
"""Cells of a plot at most: the last five minutes, ten seconds in each."""

HOST = 26


class FetchPanel(Panel):
    """A heading and one row per host, those in trouble first."""

    def on_mount(self) -> None:
        # A host's pause ends without a new snapshot.
        self.set_interval(1.0, self.redraw)

    def wanted(self) -> tuple[int, int]:
        view = self.snapshot.fetch
        flags = bool(view.flags)
        return 2 + flags, 1 + max(1, len(view.hosts) + bool(view.more_hosts[0])) + flags

    def lines(self, width: int) -> list[Content]:
        view = self.snapshot.fetch
        right = Content.assemble(
            (spark(view.plot, min(PLOT, width - 50), self.glyphs), GOOD),
            "  " if view.plot else "",
            (f"{size(view.bytes_per_s)}/s", STRONG),
            (f"  {size(view.bytes)} so far", QUIET),
        )
        head = self.heading("Fetch", width, right)
        room = max(1, self.content_size.height - 1)
        flags = [cut(self._flagged(view.flags), width, self.glyphs)] if view.flags and room > 1 else []
        if not view.hosts:
            return [head, Content.styled("  no host has been asked", QUIET), *flags]
        room -= len(flags)
        more, left = view.more_hosts
        shown = view.hosts if len(view.hosts) + bool(more) <= room else view.hosts[: room - 1]
        rows = [self._row(host, width) for host in shown]
        if hidden := view.hosts[len(shown) :]:
            more, left = more + len(hidden), left + sum(host.pending for host in hidden)
        if more:
            rows.append(Content.styled(f"  {count(more, 'more host')} with {short(left)} left", QUIET))
        return [head, *rows, *flags]

    def _flagged(self, flags: tuple[tuple[str, int], ...]) -> Content:
        """Return the suspicious pictures in words."""
        words = ", ".join(f"{short(n)} {clean(flag, 40)}" for flag, n in flags)
        return Content.assemble((f"  {self.glyphs.flag} {words}", f"bold {ALERT}"), ("  suspicious pictures", QUIET))

    def _row(self, host: HostProgress, width: int) -> Content:
        info = host.info
        fine, unheard = info.state is HostState.HEALTHY, _unheard(info)
        state = f"{self.glyphs.host[UNHEARD if unheard else info.state]} {unheard or info.state.shown}"
        busy = f"{info.in_flight} of {info.allowed}" if self.snapshot.live and info.allowed else ""
        name = max(12, min(HOST, width - 58))
        parts = [
            (f"  {clean(info.host, 200)}", STRONG),
            (state, QUIET if unheard else GOOD if fine else f"bold {ALERT}"),
            (f"{per_second(host.items_per_s)}/s", ""),
            (busy, QUIET),
            (f"{short(host.pending)} left", QUIET),
        ]
        widths = [name + 2, 9, 8, 9, 10]
        if unheard or info.state is HostState.NOT_ANSWERING:
            # Its words take the place of a rate, which it has not.
            del parts[2]
            widths[1:3] = [18]
        cells = [
            cut(Content.styled(words, style), cells, self.glyphs).truncate(cells, pad=True)
            for (words, style), cells in zip(parts, widths, strict=True)
        ]
        return cut(Content(" ").join([*cells, self._trouble(host)]), width, self.glyphs)

    def _trouble(self, host: HostProgress) -> Content:
        info = host.info
        words = clean(info.reason or "", 200) if info.state is not HostState.HEALTHY else ""
        left = 0 if info.until is None else info.until - now_ms()
        if left > 0 and info.state in (HostState.PAUSED, HostState.NOT_ANSWERING):
            how = "asked again in" if info.state is HostState.NOT_ANSWERING else "for"
            words = f"{how} {duration(left / 1000)}" + (f": {words}" if words else "")
        if not words and info.failed:
            words = f"{short(info.failed)} failed"
        return Content.styled(words, ALERT if info.state is not HostState.HEALTHY else QUIET)


def _unheard(info: HostInfo) -> str:
    """Return what is to be said of a host that has given no picture yet and is in no trouble; empty for others."""
    if info.done or info.state is not HostState.HEALTHY:
        return ""
    if info.failed:
        return "no picture yet"
    return "no answer yet" if info.in_flight or info.busy_ms else "not asked yet"
