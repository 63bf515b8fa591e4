"""Whether the hosts of the state at hand can be reached: one request to each, or only a connection."""

import re
from collections.abc import Iterator

from etl.errors import BlockedAddressError, ConfigError, DnsError, FetchError, StateError
from etl.net.probe import Reached, probe, unreachable
from etl.run.checks.check import Check, failed
from etl.settings import Settings
from etl.state.read.hosts import due_hosts
from etl.state.read.reader import Reader
from etl.text import clean
from etl.units import count

MOST_HOSTS = 50
"""Hosts that are asked: those with the most pictures to come."""

LOOKED_AT = 20
"""Hosts that are looked at when a run begins."""

TOLD = 3
"""Of these, those that are told one by one."""


def network(settings: Settings) -> Iterator[Check]:
    """Yield how each host takes one request; only where all fail would a run fail."""
    try:
        with Reader(settings.state) as reader:
            urls = {host: url for host, (url, _) in due_hosts(reader, MOST_HOSTS).items()}
        found = probe(settings, urls)
    except StateError:
        yield Check("network", "note", f"there is no state in {settings.state}, so no host to ask")
        return
    except ConfigError as error:
        yield failed("network", error)
        return
    if not urls:
        yield Check("network", "ok", "there is nothing to fetch from other hosts")
    hopeless = all(reached.status is None for reached in found.values())
    for host, reached in found.items():
        yield _told(host, reached, hopeless=hopeless)


def _told(host: str, reached: Reached, *, hopeless: bool) -> Check:
    steps = ", ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in reached.steps.items())
    if reached.status is None:
        done = f" (after {steps})" if steps else ""
        cure = "look at the network, the proxy or the host, and ask again; a run gives its pictures several attempts"
        return Check("network", "fail" if hopeless else "note", f"{host}: {reached.error}{done}", cure)
    said = f"{host} answered {reached.status}: {steps}"
    if reached.status in (401, 403, 429) or reached.status >= 500:
        return Check("network", "note", said, "it may refuse this machine: try --contact and --host-rate")
    return Check("network", "ok", said)


def silent_hosts(settings: Settings) -> Check | None:
    """Return which hosts take no connection now, and how much waits for them; ``None`` where all take one.

    The hosts with the most pictures are looked at, for a few seconds in all.
    """
    with Reader(settings.state) as reader:
        due = due_hosts(reader, LOOKED_AT)
    found = unreachable(settings, {host: url for host, (url, _) in due.items()})
    # What may not be dialled fails at once, and says why.
    silent = {host: why for host, why in found.items() if not isinstance(why, BlockedAddressError)}
    if not silent:
        return None
    whys = {clean(host, 80): _why(error) for host, error in list(silent.items())[:TOLD]}
    pictures = sum(due[host][1] for host in silent)
    waiting = f"{count(pictures, 'picture')} {'waits' if pictures == 1 else 'wait'}"
    if len(silent) == 1:
        ((host, why),) = whys.items()
        said = f"{host} does not answer ({why}): {waiting} for it"
    else:
        more = f" and {count(len(silent) - TOLD, 'more host')}" if len(silent) > TOLD else ""
        named = ", ".join(f"{host} ({why})" for host, why in whys.items())
        said = f"{named}{more} do not answer: {waiting} for them"
    cure = "check names and network (`etl doctor --net`); meanwhile the others are fetched, and these asked again"
    if len(silent) == len(due):
        cure = (
            "no host answers: check this machine's network, names and proxy (`etl doctor --net`); they are asked again"
        )
    return Check("network", "note", said, cure)


def _why(error: FetchError) -> str:
    """Return the reason alone, without the host that it is about."""
    if isinstance(error, DnsError) and (inner := re.search(r"\((.+)\)", str(error))):
        return clean(inner[1], 80)
    return clean(str(error).partition(":")[0], 80)
