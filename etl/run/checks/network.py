"""Whether the hosts of the state at hand can be reached: one request to each."""

from collections.abc import Iterator

from etl.errors import ConfigError, StateError
from etl.net.probe import Reached, probe
from etl.run.checks.check import Check, failed
from etl.settings import Settings
from etl.state.read.hosts import one_url_by_host
from etl.state.read.reader import Reader

MOST_HOSTS = 50
"""Hosts that are asked: those with the most pictures to come."""


def network(settings: Settings) -> Iterator[Check]:
    """Yield how each host takes one request; only where all fail would a run fail."""
    try:
        with Reader(settings.state) as reader:
            urls = one_url_by_host(reader, MOST_HOSTS)
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
