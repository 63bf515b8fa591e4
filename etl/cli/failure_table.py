"""How ``etl failures`` looks, and whether a filter of failed items can mean anything."""

import dataclasses
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import StrEnum

from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.errors import UsageError, first_of, item_error_classes
from etl.redaction import redact_url
from etl.state.read.failures import Failure, FailureGroup, failure_classes
from etl.state.read.hosts import source_hosts
from etl.state.read.match import keys_like
from etl.state.read.reader import Reader
from etl.state.read.search import is_record
from etl.text import clean, did_you_mean, nearest
from etl.units import count

SHOWN_NAMES = 10
"""Names that are listed for one that is not there."""

SHOWN_GROUPS = 30
"""Rows of the table unless more are asked for."""


SHOWN_FIRSTS = 3
"""Orders on what must be done before another attempt can help."""


class By(StrEnum):
    """What a row of the table is."""

    CLASS = "class"
    HOST = "host"
    ITEM = "item"


_THINGS = {Stage.INGEST: "manifest line", Stage.FETCH: "picture", Stage.CAPTION: "caption"}


def columns() -> int:
    """Return the width of a table: the terminal's, or 80."""
    return shutil.get_terminal_size().columns


def check_filter(reader: Reader, chosen: FailureFilter) -> None:
    """Raise `UsageError` for a class, host or key that there is not, with the nearest one or those that there are."""
    if chosen.stage is Stage.EXPORT:
        raise UsageError("no item fails in export: --stage is ingest, fetch or caption")
    if chosen.error_class is not None:
        here = sorted({slug for _, slug, _ in failure_classes(reader)})
        slugs = {cls.slug for cls in item_error_classes()} | set(here)
        if chosen.error_class not in slugs:
            known = f"classes of what failed here: {_listed(here)}" if here else "nothing failed here"
            raise _unknown("error class", chosen.error_class, slugs, known)
    if chosen.host is not None and chosen.host not in (hosts := source_hosts(reader)):
        named = [host for host in hosts if host]
        raise _unknown("host", chosen.host, named, f"hosts here: {_listed(named)}")
    if chosen.key is not None and not is_record(reader, chosen.key):
        raise UsageError(no_record(reader, chosen.key))


def no_record(reader: Reader, key: str) -> str:
    """Return what is said of a key that no record has."""
    some = keys_like(reader, key)
    if not some:
        return f"there is no record with the key {_quoted(key)}: the state holds no records; run `etl ingest` first"
    near = len(some) == 1 and nearest(key, some)
    hint = did_you_mean(clean(near, 80)).strip() if near else f"keys here look like {_listed(some)}"
    return f"there is no record with the key {_quoted(key)}; {hint}"


def _unknown(what: str, name: str, names: Iterable[str], known: str) -> UsageError:
    near = nearest(name, names)
    return UsageError(f"there is no {what} {_quoted(name)}; {did_you_mean(clean(near, 80)) if near else ''}{known}")


def _quoted(name: str) -> str:
    return repr(clean(name, 80))


def _listed(names: list[str]) -> str:
    more = f" and {count(len(names) - SHOWN_NAMES, 'other')}" if len(names) > SHOWN_NAMES else ""
    return ", ".join(clean(name, 60) for name in names[:SHOWN_NAMES]) + more or "none"


def nothing_line(chosen: FailureFilter, everything: list[FailureGroup]) -> str:
    """Return what is said where a filter, or none, means no failed item."""
    if not everything:
        return "nothing has failed"
    given = {
        "stage": chosen.stage, "class": chosen.error_class, "host": chosen.host, "key": chosen.key,
    }  # fmt: skip
    filters = " ".join(f"--{name} {clean(value, 80)}" for name, value in given.items() if value is not None)
    return f"nothing that failed has {filters}; {total_line(everything)}"


def total_line(groups: list[FailureGroup]) -> str:
    """Return how many items failed, in words."""
    of_stage: dict[str, int] = defaultdict(int)
    for group in groups:
        of_stage[group.stage] += group.items
    parts = [count(n, _THINGS[Stage(stage)]) for stage, n in of_stage.items()]
    return f"{sum(of_stage.values()):,} failed: {', '.join(parts)}"


def merged(groups: list[FailureGroup], by: By | None) -> list[FailureGroup]:
    """Return the groups put together by class or host alone; what they do not share is counted."""
    if by is None:
        return groups
    together: dict[tuple[str, ...], list[FailureGroup]] = defaultdict(list)
    for group in groups:
        together[(group.stage, group.error_class) if by is By.CLASS else (group.host,)].append(group)
    rows = [
        FailureGroup(
            stage=_shared([group.stage for group in rows], "stages"),
            error_class=_shared([group.error_class for group in rows], "classes"),
            host=_shared([group.host for group in rows], "hosts"),
            items=sum(group.items for group in rows),
            key=rows[0].key,
        )
        for rows in together.values()
    ]
    return sorted(rows, key=lambda group: -group.items)


def _shared(values: list[str], many: str) -> str:
    different = set(values)
    return values[0] if len(different) == 1 else f"{len(different):,} {many}"


def group_lines(groups: list[FailureGroup], limit: int | None) -> Iterator[str]:
    """Yield the table of groups, as wide as the terminal; at most ``limit``, or a screen of them."""
    limit = limit or SHOWN_GROUPS
    width = columns()
    room = max((len(_host(group)) for group in groups), default=0)
    room = max(5, min(room, width - 53))
    yield f"{'failed':>7}  {'stage':<8} {'class':<16} {'host':<{room}}  for example"
    for group in groups[:limit]:
        host = clean(_host(group), room)
        yield clean(f"{group.items:>7,}  {group.stage:<8} {group.error_class:<16} {host:<{room}}  {group.key}", width)
    if len(groups) > limit:
        rest = sum(group.items for group in groups[limit:])
        yield f"{rest:>7,}  in {count(len(groups) - limit, 'row')} more: raise --limit"


def _host(group: FailureGroup) -> str:
    return group.host or ("local files" if group.stage != Stage.INGEST else "")


def item_lines(failures: Iterable[Failure], width: int | None) -> Iterator[str]:
    """Yield the table of items, cut off at a terminal's width."""
    yield f"{'stage':<8} {'class':<16} key: reason, address"
    for failure in failures:
        more = f" (+{count(failure.records - 1, 'record')})" if failure.records > 1 else ""
        yield clean(
            f"{failure.stage:<8} {failure.error_class:<16} {failure.key}{more}: {failure.message}  "
            f"{redact_url(failure.url)}".rstrip(),
            width,
        )


def failure_json(failure: Failure) -> dict[str, object]:
    """Return the object of one failed item."""
    values = dataclasses.asdict(failure)
    names = ("stage", "error_class", "key", "url", "attempts", "message", "records")
    return {name: values[name] for name in names} | {"url": redact_url(failure.url)}


def next_lines(groups: list[FailureGroup], *, items: bool) -> Iterator[str]:
    """Yield what to do about the failed items: of a few classes what must come first, then how to go on."""
    classes = [group.error_class for group in merged(groups, By.CLASS)]
    firsts: dict[str, list[str]] = defaultdict(list)
    for slug in classes:
        firsts[first_of(slug)].append(slug)
    firsts.pop("", None)
    again = any(group.stage != Stage.INGEST for group in groups)
    if len(classes) == len(firsts) == 1:
        yield f"next      {next(iter(firsts))}" + (
            f"; then `etl retry-failed --class {classes[0]}`, `etl run`" if again else ""
        )
        return
    lines = [f"{', '.join(slugs)}: {first}" for first, slugs in firsts.items()][:SHOWN_FIRSTS]
    look = "`etl why KEY` tells all of one" if items else "`etl failures --by item` lists each"
    for line in (*lines, look + ("; `etl retry-failed` tries again" if again else "")):
        yield f"next      {line}"
