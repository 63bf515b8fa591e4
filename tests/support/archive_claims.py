"""What must be true of a fetch stage that worked on a `SmallArchive`: one sentence with its figures for each claim."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from support.small_archive import PERMANENT, Notes, Visit, behaviour_of, picture_of

ON_ITS_WAY_S = 0.1
"""A request that comes so soon after a refusal was sent before the client, busy on the same cores, had read it."""

EARLY_S = 0.05
"""Tolerance at the end of a wait."""


@dataclass(frozen=True)
class Claim:
    """One sentence, and whether it holds."""

    holds: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok     ' if self.holds else 'BROKEN '}{self.text}"


def first_round(notes: Notes, urls: Collection[str], failures: Mapping[str, str], *, per_host: int) -> list[Claim]:
    """Judge the run before the healing; ``failures`` gives the error class of each URL that failed."""
    return [
        _asked_for(notes.visits, urls),
        _once(notes.visits, [url for url in urls if behaviour_of(url) not in PERMANENT]),
        _bytes(notes.visits, urls),
        _permanent_once(notes.visits, urls),
        _bounded(notes, per_host),
        _patient(notes),
        _classes(urls, failures),
    ]


def second_round(visits: Sequence[Visit], urls: Collection[str], sources: Mapping[str, int]) -> list[Claim]:
    """Judge the run after the healing from its own visits; ``sources`` counts the sources by status."""
    wanted = Counter(url for url in urls if behaviour_of(url) in PERMANENT)
    found = Counter(visit.url for visit in visits if visit.whole)
    # Cancelled ones belong to records that the limit left out.
    done = {status: count for status, count in sources.items() if count and status != "cancelled"}
    return [
        Claim(
            found == wanted and len(visits) == len(wanted),
            f"healed: {len(visits)} requests for the {len(wanted)} sources that had failed, one each",
        ),
        Claim(done == {"done": len(urls)}, f"healed: every source is done ({done})"),
    ]


def _asked_for(visits: Sequence[Visit], urls: Collection[str]) -> Claim:
    asked = {visit.url for visit in visits}
    return Claim(asked == set(urls), f"{len(asked)} sources asked for, of {len(set(urls))}; {len(visits)} requests")


def _once(visits: Sequence[Visit], urls: Collection[str]) -> Claim:
    whole = Counter(visit.url for visit in visits if visit.whole)
    wrong = [url for url in urls if whole[url] != 1]
    return Claim(
        not wrong and whole.total() == len(urls),
        f"{whole.total()} bodies sent to their end for {len(urls)} good URLs: "
        + ("each exactly once" if not wrong else f"{len(wrong)} not once, {wrong[0]} among them"),
    )


def _bytes(visits: Sequence[Visit], urls: Collection[str]) -> Claim:
    """No byte twice, but for what a reset took away before the client had read it."""
    by_url: dict[str, list[Visit]] = defaultdict(list)
    for visit in visits:
        by_url[visit.url].append(visit)
    resumed = lost = wrong = total = 0
    for url in urls:
        if behaviour_of(url) in PERMANENT:
            continue
        mine = [visit for visit in by_url[url] if visit.sent > 0 and (visit.whole or behaviour_of(url)[:5] == "reset")]
        gone = sum(max(0, earlier.start + earlier.sent - later.start) for earlier, later in itertools.pairwise(mine))
        sent = sum(visit.sent for visit in mine)
        resumed += sum(visit.start > 0 for visit in mine)
        lost, total = lost + gone, total + sent
        resets = len(mine) - 1
        wrong += sent != len(picture_of(url)[0]) + gone or gone > resets * 65536
    return Claim(
        not wrong,
        f"{total} bytes of good bodies sent, {lost} of them again after a reset ({resumed} requests for the rest); "
        f"{wrong} URLs with more",
    )


def _permanent_once(visits: Sequence[Visit], urls: Collection[str]) -> Claim:
    counts = Counter(visit.url for visit in visits)
    failing = [url for url in urls if behaviour_of(url) in PERMANENT]
    wrong = [url for url in failing if counts[url] != 1]
    return Claim(not wrong, f"{len(failing)} permanent failures, {len(wrong)} of them asked for more than once")


def _bounded(notes: Notes, per_host: int) -> Claim:
    peaks = ", ".join(f"{host} {peak}" for host, peak in sorted(notes.peak.items()))
    return Claim(max(notes.peak.values(), default=0) <= per_host, f"requests at once: {peaks}; the limit is {per_host}")


def _patient(notes: Notes) -> Claim:
    """No request to a host between a refusal and the end of the wait."""
    early: list[float] = []
    on_their_way: list[float] = []
    by_host: dict[str, list[float]] = defaultdict(list)
    for visit in notes.visits:
        by_host[visit.host].append(visit.at)
    for refusal in notes.refusals:
        inside = [at for at in by_host[refusal.host] if refusal.at < at < refusal.until - EARLY_S]
        on_their_way += [at - refusal.at for at in inside if at <= refusal.at + ON_ITS_WAY_S]
        early += [at - refusal.at for at in inside if at > refusal.at + ON_ITS_WAY_S]
    text = f"{len(notes.refusals)} refusals with Retry-After, {len(early)} requests before their end"
    if early:
        text += f" ({min(early):.3f} to {max(early):.3f} s after it)"
    if on_their_way:
        text += f"; {len(on_their_way)} were on their way, at most {1000 * max(on_their_way):.0f} ms"
    return Claim(not early, text)


def _classes(urls: Collection[str], failures: Mapping[str, str]) -> Claim:
    wanted = {url: PERMANENT[behaviour_of(url)] for url in urls if behaviour_of(url) in PERMANENT}
    wrong = {url for url in wanted.keys() | failures.keys() if wanted.get(url) != failures.get(url)}
    example = next(iter(sorted(wrong)), None)
    counts = ", ".join(f"{count} {slug}" for slug, count in sorted(Counter(failures.values()).items()))
    text = f"failures: {counts}; {len(wrong)} of the wrong class"
    if example:
        text += f" ({example}: {failures.get(example)} instead of {wanted.get(example)})"
    return Claim(not wrong, text)
