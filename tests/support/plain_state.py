"""What a state should be, as plain dicts: records, sources, captions, and the export that follows from them.

Written from the rules of docs/architecture.md, with none of the product's code; time is given, never taken.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.parse import urlsplit

MAX_ATTEMPTS, BACKOFF_S, CAP_S = 3, 60, 600
SUSPECT, GUILTY = 3, 5
"""Crashes after which a caption is tried alone, and after which it is dead."""

Caption = tuple[str, str, str]
"""Content of the image, prompt, recipe."""


@dataclass(frozen=True)
class Line:
    """One line of a manifest: its bytes, and what they mean.  Without a URL it is invalid with ``error``."""

    data: bytes
    key: str | None
    url: str | None
    prompt: str | None
    error: str | None = None


@dataclass
class Record:
    """A record; ``number`` is the order in which records came into the state."""

    number: int
    manifest: str
    position: int
    generation: int
    line: Line
    state: str


@dataclass
class Item:
    """A source or a caption in its queue; ``earliest`` and ``latest`` enclose the moment until which it waits."""

    status: str = "ready"
    attempts: int = 0
    crashes: int = 0
    earliest: float = 0
    latest: float = 0
    error: str | None = None
    image: str | None = None
    text: str | None = None
    done_at: float = 0

    def renew(self, status: str = "ready") -> None:
        """Forget what was charged."""
        self.status, self.attempts, self.crashes, self.error = status, 0, 0, None
        self.earliest = self.latest = 0

    def put_back(self) -> None:
        """Leave the hands of a run without a result."""
        self.status = "retry" if self.attempts else "ready"

    def fail(self, now: float, error: str, *, retryable: bool) -> bool:
        """Charge an attempt; return whether it was the last."""
        self.attempts += 1
        dead = not retryable or self.attempts >= MAX_ATTEMPTS
        wait = 0 if dead else min(CAP_S, BACKOFF_S * 2 ** (self.attempts - 1))
        self.status, self.error = "dead" if dead else "retry", error
        self.earliest, self.latest = now + wait / 2, now + wait
        return dead

    def is_due(self, now: float) -> bool:
        """Return whether it may be claimed."""
        assert not self.earliest <= now < self.latest, "the test's clock stands where nobody can tell"
        return self.status in ("ready", "retry") and self.latest <= now


@dataclass
class Manifest:
    """How far a manifest was read."""

    generation: int = 0
    read: list[bytes] = field(default_factory=list)
    complete: bool = False
    window: tuple[int, int | None] = (0, None)
    template: int = 0


class PlainState:
    """The whole state."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.manifests: dict[str, Manifest] = {}
        self.sources: dict[str, Item] = {}
        self.captions: dict[Caption, Item] = {}
        self.recipe = "one"

    # Ingest.

    def ingest(self, name: str, lines: Sequence[Line], template: int, stop_after: int | None) -> None:
        """Read a manifest, or only so many more lines of it."""
        known = self.manifests.get(name)
        same = known is not None and (known.template, known.window) == (template, (0, None))
        data = [line.data for line in lines]
        if known is not None and same and known.complete and known.read == data:
            return
        manifest = self.manifests.setdefault(name, Manifest())
        goes_on = same and not manifest.complete and data[: len(manifest.read)] == manifest.read
        if not goes_on:
            manifest.generation += 1
            manifest.read, manifest.complete, manifest.window, manifest.template = [], False, (0, None), template
        first = len(manifest.read)
        for position, line in list(enumerate(lines, 1))[first : None if stop_after is None else first + stop_after]:
            self._take(name, manifest, position, line)
        manifest.read = data if stop_after is None else data[: first + stop_after]
        # A stop is looked for behind each batch, and what has nothing more to read asks nobody.
        if stop_after is None or first >= len(data):
            manifest.complete = True
            for record in self.records.values():
                if record.manifest == name and record.generation != manifest.generation:
                    record.state = "removed"
            self._align()

    def _take(self, name: str, manifest: Manifest, position: int, line: Line) -> None:
        key = line.key or f"{name}.jsonl:{position}"
        if self._is_read(name, manifest, key):
            if line.url in (None, self.records[key].line.url):
                key, line = f"{key} (line {position})", Line(line.data, None, None, None, "duplicate_key")
            else:
                key = next(other for n in count(2) if not self._is_read(name, manifest, other := f"{key}#{n}"))
        old = self.records.get(key)
        number = old.number if old is not None else len(self.records)
        state = "active" if line.url is not None else "invalid"
        self.records[key] = Record(number, name, position, manifest.generation, line, state)
        if line.url is not None:
            source = self.sources.setdefault(line.url, Item())
            if source.status == "cancelled":
                source.renew("done" if source.image else "ready")

    def _is_read(self, name: str, manifest: Manifest, key: str) -> bool:
        """Return whether a line of the manifest as it is now has given a record this key."""
        old = self.records.get(key)
        return old is not None and (old.generation, old.manifest) == (manifest.generation, name)

    def select(self, offset: int, limit: int | None) -> None:
        """Caption only a window of each manifest; one that has it already changes nothing, not even what is needed."""
        others = {name: one for name, one in self.manifests.items() if one.window != (offset, limit)}
        if not others:
            return
        for name, manifest in others.items():
            manifest.window = (offset, limit)
            index, before = -1, 0
            for record in self.of_manifest(name):
                # What stands in one place is one, also where half an ingest has put a new line beside an old one.
                index, before = index + (record.position != before), record.position
                if record.state != "invalid":
                    inside = index >= offset and (limit is None or index < offset + limit)
                    record.state = "active" if inside else "unselected"
        self._align()

    def of_manifest(self, name: str) -> list[Record]:
        """Return the records that a manifest has, in its order."""
        there = [one for one in self.records.values() if one.manifest == name and one.state != "removed"]
        return sorted(there, key=lambda one: (one.position, one.number))

    def active(self) -> Iterator[Record]:
        """Yield what is to be captioned."""
        return (record for record in self.records.values() if record.state == "active")

    def _align(self) -> None:
        needed = {record.line.url for record in self.active()}
        for url, source in self.sources.items():
            if url not in needed and source.status in ("ready", "retry", "dead"):
                source.status = "cancelled"
            elif url in needed and source.status == "cancelled":
                source.renew("done" if source.image else "ready")

    # Queues.

    def wanted_captions(self, urls: Iterable[str]) -> set[Caption]:
        """Return what active records want of these sources' images under the current recipe."""
        chosen = set(urls)
        return {
            (image, record.line.prompt, self.recipe)
            for record in self.active()
            if record.line.url in chosen and record.line.prompt is not None
            if (image := self.sources[record.line.url].image) is not None
        }

    def enqueue(self) -> None:
        """Queue every caption that has become possible; cancel what nobody needs."""
        wanted = self.wanted_captions(self.sources)
        for caption, item in self.captions.items():
            if caption[2] == self.recipe and caption not in wanted and item.status in ("ready", "retry", "dead"):
                item.status = "cancelled"
        self.queue(wanted)

    def queue(self, captions: Iterable[Caption]) -> None:
        """Queue captions that are new or were cancelled."""
        for caption in captions:
            if self.captions.setdefault(caption, Item()).status == "cancelled":
                self.captions[caption].renew()

    def recover(self, now: float) -> None:
        """Take back what a dead run held."""
        for source in self.sources.values():
            if source.status == "running":
                source.put_back()
        for caption in self.captions.values():
            if caption.status == "running":
                caption.crashes += 1
                caption.put_back()
                if caption.crashes >= GUILTY:
                    caption.status, caption.error = "dead", "crashed"
        for item in (*self.sources.values(), *self.captions.values()):
            if item.status in ("ready", "retry"):
                item.earliest, item.latest = min(item.earliest, now + CAP_S), min(item.latest, now + CAP_S)

    def retry(self, stage: str | None, error: str | None, host: str | None, key: str | None) -> dict[str, int]:
        """Give dead items another chance; return how many per stage."""
        record = self.records.get(key or "")
        line = record.line if record is not None else None
        counts = {}
        if stage in (None, "fetch"):
            counts["fetch"] = 0
            for url, item in self.sources.items():
                if (
                    item.status == "dead" and error in (None, item.error) and host in (None, urlsplit(url).netloc)
                    and (key is None or (line is not None and line.url == url))
                ):  # fmt: skip
                    item.renew()
                    counts["fetch"] += 1
        if stage in (None, "caption"):
            counts["caption"] = 0
            for (image, prompt, recipe), item in self.captions.items():
                shown = {urlsplit(url).netloc for url, source in self.sources.items() if source.image == image}
                its = line is not None and line.url is not None and (self.sources[line.url].image, line.prompt)
                if (
                    item.status == "dead" and recipe == self.recipe and error in (None, item.error)
                    and (host is None or host in shown) and (key is None or its == (image, prompt))
                ):  # fmt: skip
                    item.renew()
                    counts["caption"] += 1
        return counts

    # Export.

    def export(self, recipe: str, *, only_captioned: bool = False) -> bytes:
        """Return the file that an export would write."""
        lines = [
            line
            for name in self.manifests
            for record in self.of_manifest(name)
            if (line := self._exported(record, recipe, only_captioned)) is not None
        ]
        # A line that ended its file without a line end gets one where more follow.
        return b"".join(line if line.endswith(b"\n") or n == len(lines) else line + b"\n"
                        for n, line in enumerate(lines, 1))  # fmt: skip

    def _exported(self, record: Record, recipe: str, only_captioned: bool) -> bytes | None:
        line = record.line
        if record.state == "invalid":
            if line.error == "invalid_json" or only_captioned:
                return None
            return with_fields(line.data, {"vlm_caption": None, "vlm_error": line.error})
        assert line.url is not None and line.prompt is not None
        source = self.sources[line.url]
        caption = self.captions.get((source.image or "", line.prompt, recipe), Item("none"))
        if record.state == "active" and caption.status == "done":
            at = datetime.fromtimestamp(caption.done_at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            return with_fields(
                line.data,
                {"vlm_caption": caption.text, "vlm_captioned_at": at, "vlm_caption_source": f"{recipe}@main"},
            )
        if only_captioned:
            return None
        if record.state == "active" and "dead" in (caption.status, source.status):
            error = caption.error if caption.status == "dead" else source.error
            return with_fields(line.data, {"vlm_caption": None, "vlm_error": error})
        return line.data


def with_fields(line: bytes, fields: dict[str, Any]) -> bytes:
    """Return a line of `json.dumps` with fields added behind the last."""
    text = line.rstrip(b"\r\n")
    added = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return text[:-1] + b"," + added[1:] + line[len(text) :]
