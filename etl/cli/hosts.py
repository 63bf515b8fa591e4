"""How a fetch looks from outside: its hosts, its errors, and what is to come, as text and as plain values."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostProgress, Progress
from etl.state.read.hosts import in_trouble
from etl.text import clean
from etl.units import count, duration, size

if TYPE_CHECKING:
    from etl.fetch.estimate import FetchEstimate, HostEstimate

SHOWN_ERRORS = 4
"""Error classes on one line: the most frequent ones."""

SHOWN_HOSTS = 20
"""Hosts of an estimate: those with the most pictures."""


def host_json(host: HostProgress) -> dict[str, Any]:
    """Return one host of ``etl status --json``."""
    info = host.info
    return {
        "host": info.host,
        "state": info.state.value,
        "reason": info.reason,
        "until": info.until,
        "allowed": info.allowed,
        "in_flight": info.in_flight,
        "pending": host.pending,
        "done": info.done,
        "failed": info.failed,
        "bytes": info.bytes,
        "items_per_s": round(host.items_per_s, 3),
        "bytes_per_s": round(host.bytes_per_s),
    }


def is_news(host: HostProgress) -> bool:
    """Return whether there is anything to say of a host: work, speed or trouble."""
    return host.pending > 0 or host.items_per_s > 0 or in_trouble(host)


def host_line(host: HostProgress) -> str:
    """Return how one host fares, in words."""
    parts = []
    if host.items_per_s:
        parts.append(f"{host.items_per_s:.1f}/s {size(host.bytes_per_s)}/s")
    if host.info.in_flight:
        parts.append(f"{host.info.in_flight} at once")
    if host.pending:
        parts.append(f"{host.pending:,} to come")
    if host.info.state is not HostState.HEALTHY:
        parts.append(_trouble(host))
    return f"{clean(host.info.host)} {', '.join(parts) or 'nothing to come'}"


def _trouble(host: HostProgress) -> str:
    info = host.info
    left = (info.until - now_ms()) / 1000 if info.until is not None else 0
    how = ", asked again in" if info.state is HostState.NOT_ANSWERING else " for"
    until = f"{how} {duration(left)}" if left > 0 and info.state is not HostState.SLOWED else ""
    return f"{info.state.shown}{until}" + (f": {clean(info.reason)}" if info.reason else "")


def errors_text(progress: Progress) -> str:
    """Return the most frequent error classes of fetch with their counts; empty when there are none."""
    most = sorted(progress.fetch_errors.items(), key=lambda pair: (-pair[1], pair[0]))
    more = sum(n for _, n in most[SHOWN_ERRORS:])
    return ", ".join(f"{n:,} {slug}" for slug, n in most[:SHOWN_ERRORS]) + (f", {count(more, 'other')}" if more else "")


def estimate_lines(estimate: "FetchEstimate", *, refresh: bool) -> Iterator[str]:
    """Yield what ``etl fetch --dry-run`` says to people."""
    if not estimate.sources:
        yield "nothing to fetch"
        return
    again = "to fetch or to ask for again" if refresh else "to fetch"
    yield f"{count(estimate.sources, 'picture')} {again}, {_bytes(estimate.bytes, estimate.unknown, estimate.sources)}"
    for host in estimate.hosts[:SHOWN_HOSTS]:
        yield f"host      {_host_line(host)}"
    if others := estimate.hosts[SHOWN_HOSTS:]:
        yield f"hosts     {len(others):,} more: {count(sum(host.sources for host in others), 'picture')}"
    if all(not host.host for host in estimate.hosts):
        yield "time      not estimated for local files, which take what decoding them takes"
    elif estimate.seconds is not None:
        yield f"time      about {duration(estimate.seconds)}, at the rates seen so far"
    else:
        rest = [host for host in estimate.hosts if host.seconds is None]
        known = max((host.seconds for host in estimate.hosts if host.seconds), default=None)
        begun = "" if known is None else f"about {duration(known)} for the others; "
        names = ", ".join(clean(host.host) for host in rest[:SHOWN_ERRORS])
        names += f" and {len(rest) - SHOWN_ERRORS:,} more" if len(rest) > SHOWN_ERRORS else ""
        yield f"time      {begun}not known for {names}: fetch for a minute, stop, and ask again"
    fits = "" if estimate.disk_bytes <= estimate.disk_free else ": NOT ENOUGH"
    yield f"disk      {size(estimate.disk_bytes)} needed at most, {size(estimate.disk_free)} free{fits}"


def _host_line(host: "HostEstimate") -> str:
    text = f"{clean(host.host) or 'local files'}: {count(host.sources, 'picture')}"
    if host.retries:
        text += f", {host.retries:,} of them after a failure"
    text += f", {_bytes(host.bytes, host.unknown, host.sources)}"
    if host.seconds:
        text += f", about {duration(host.seconds)}"
    return text + ("" if host.state is HostState.HEALTHY else f"; {host.state.shown}: {clean(host.reason or '')}")


def _bytes(known: int, unknown: int, of: int) -> str:
    if unknown == of:
        return "sizes not known"
    return size(known) + (f" and {unknown:,} of unknown size" if unknown else "")
