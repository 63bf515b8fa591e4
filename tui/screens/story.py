"""The whole story of one record, as `etl why` tells it."""

from collections.abc import Iterable
from typing import Any

from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Static

from etl.clock import iso_utc, now_ms
from etl.domain.statuses import QueueStatus, RecordState, status_in_words
from etl.domain.views import FailureFilter
from etl.redaction import redact_line, redact_url
from etl.state.read.story import record_story
from etl.text import clean
from etl.units import count, size
from tui.format import breaks, duration
from tui.retry_selection import RetrySelection
from tui.screens.base import StateScreen
from tui.snapshot import Snapshot
from tui.theme import ALERT, GOOD, QUIET, STRONG

LABEL = 10

MAX_TEXT = 20_000
"""Characters of one text that are shown: a manifest line may be a megabyte long."""

GONE = "There is no record with this key any more."

_GOOD = frozenset({"done", "captioned", "present"})
_BAD = frozenset({"dead", "failed", "invalid", "missing"})


class StoryScreen(StateScreen):
    """One text that scrolls; read again with every snapshot of a live run."""

    def __init__(self, key: str, tab: str) -> None:
        super().__init__()
        self.tab = tab
        self._key = key
        self._story: dict[str, Any] | None = None
        self._text = Content("")

    def parts(self) -> Iterable[Widget]:
        with VerticalScroll(id="scroll"):
            yield Static("Reading.", id="story", markup=False)

    def on_mount(self) -> None:
        self.query_one("#scroll").focus()

    def draw(self, snapshot: Snapshot) -> None:  # noqa: ARG002 (what it shows is read apart)
        self.ask("story", lambda reader: record_story(reader, self._key), self._tell_story)

    def _tell_story(self, story: dict[str, Any] | None) -> None:
        if story == self._story and story and not _waits(story):
            return
        self._story = story
        width = self.query_one("#scroll").scrollable_content_region.width or 80
        text = (
            story_text(story, width) if story else Content.styled("There is no record with this key any more.", ALERT)
        )
        if not text.is_same(self._text):
            self._text = text
            self.query_one("#story", Static).update(text)

    def on_resize(self, _: Resize) -> None:
        story, self._story = self._story, None
        if story:
            self._tell_story(story)

    def retry_selection(self) -> RetrySelection | None:
        story = self._story or {}
        items = [story.get("source") or {}, *(each for each in story.get("captions", ()) if each["current"])]
        failed = sum(item.get("status") == QueueStatus.DEAD for item in items)
        if not failed:
            return RetrySelection(problem="Nothing of this record has failed for good.")
        return RetrySelection(FailureFilter(key=self._key), failed, f"failed items of {clean(self._key, 40)}")

    def copied(self) -> str:
        return "\n".join(line.rstrip() for line in self._text.plain.splitlines())


def story_text(story: dict[str, Any], width: int) -> Content:
    """Return the story as lines of labels and words, at most ``width`` cells wide."""
    record, source, image = story["record"], story["source"], story["image"]
    parts = [
        Content.styled(clean(record["key"], MAX_TEXT), STRONG),
        _line("from", f"line {record['line']} of {clean(record['manifest'], MAX_TEXT)}"),
        _record_line(record),
        *([_line("prompt", clean(record["prompt"], MAX_TEXT))] if record["prompt"] else []),
    ]
    if source:
        parts += [Content(""), _line("source", clean(redact_url(source["url"]), MAX_TEXT)), *_fate(source)]
        if source.get("mirror"):
            mirror = clean(redact_url(source["mirror"]), MAX_TEXT)
            parts.append(_line("mirror", f"{mirror}: the picture came from here"))
    if image:
        parts += [Content(""), *_image_lines(image)]
    for caption in story["captions"]:
        parts += [Content(""), *_caption_lines(caption)]
    if story["attempts"]:
        parts += [Content(""), Content.styled("Attempts", STRONG), *map(_attempt, story["attempts"])]
    parts += [
        Content(""),
        Content.styled("Manifest line", STRONG),
        Content(clean(redact_line(story["line"]), MAX_TEXT)),
    ]
    return Content("\n").join(line for part in parts for line in _folded(part, width))


def _waits(story: dict[str, Any]) -> bool:
    """Return whether the story changes with the clock alone."""
    return any(item and item["status"] == QueueStatus.RETRY for item in (story["source"], *story["captions"]))


def _folded(part: Content, width: int) -> list[Content]:
    """Break a part into lines; those that follow the first begin below its words."""
    if part.cell_length <= width:
        return [part]
    indent = LABEL if part.plain[:LABEL].rstrip().isalpha() or part.plain[:LABEL].isspace() else 0
    words = part[indent:]
    lines = [words[begin:end] for begin, end in breaks(words.plain, width - indent)]
    return [part[:indent] + lines[0], *(Content(" " * indent) + line for line in lines[1:])]


def _line(label: str, words: Content | str) -> Content:
    return Content.assemble((f"{label:<{LABEL}}", QUIET), words)


def _status(word: str) -> Content:
    style = GOOD if word in _GOOD else f"bold {ALERT}" if word in _BAD else ""
    return Content.styled(clean(status_in_words(word), 40), style)


def _record_line(record: dict[str, Any]) -> Content:
    active = record["state"] == RecordState.ACTIVE
    why = f": {clean(record['error'], MAX_TEXT)}" if record["error"] else ""
    return _line("state", _status(record["outcome"] if active else record["state"]) + why)


def _fate(item: dict[str, Any]) -> list[Content]:
    """Return what became of an item of a queue, and when it is tried again."""
    lines = [_line("", _status(item["status"]) + f", {count(item['attempts'], 'attempt')}")]
    if item["error_class"]:
        words = f"{clean(item['error_class'], 40)}: {clean(item['error'] or '', MAX_TEXT)}"
        lines.append(_line("", Content.styled(words, ALERT)))
    due = (item["not_before"] - now_ms()) / 1000
    if item["status"] == QueueStatus.RETRY:
        lines.append(
            _line("", f"next attempt in {duration(due)}" if due > 0 else "next attempt as soon as there is room")
        )
    return lines


def _image_lines(image: dict[str, Any]) -> list[Content]:
    what = f"{clean(image['mime'], 40)}, {image['width']} x {image['height']} pixels, {size(image['bytes'])}, "
    copy = f"working copy {image['working_width']} x {image['working_height']}, {clean(image['working_sha256'], 12)}"
    lines = [_line("image", what + _status(image["state"])), _line("", Content.styled(copy, QUIET))]
    if image.get("flags"):
        lines.append(_line("", Content.styled(f"flags: {clean(image['flags'], 200)}", ALERT)))
    return lines


def _caption_lines(caption: dict[str, Any]) -> list[Content]:
    mark = "" if caption["current"] else "  (an earlier recipe)"
    made_by = f"{clean(caption['model'], 200)}@{clean(caption['revision'], 12)}{mark}"
    lines = [_line("caption", Content.styled(made_by, QUIET)), *_fate(caption)]
    if caption.get("skipped"):
        lines.append(_line("", Content.styled(f"skipped: the picture is {clean(caption['skipped'], 40)}", ALERT)))
    if caption["text"] is not None:
        flags = f", flags: {clean(caption['flags'], 200)}" if caption["flags"] else ""
        lines.append(_line("", Content.styled(clean(caption["text"], MAX_TEXT) or "(no words)", STRONG)))
        if caption.get("thinking"):
            lines.append(_line("reasoned", Content.styled(clean(caption["thinking"], MAX_TEXT), QUIET)))
        tokens = f"{caption['tokens']} token{'s' * (caption['tokens'] != 1)}"
        words = f"{tokens}, ended by {clean(caption['finish_reason'] or '-', 40)}"
        lines.append(_line("", Content.assemble((words, QUIET), (flags, ALERT))))
    for earlier in caption["earlier"]:
        flags = f"  flags: {clean(earlier['flags'], 200)}" if earlier["flags"] else ""
        lines.append(_line("before", Content.assemble((clean(earlier["text"], MAX_TEXT), QUIET), (flags, ALERT))))
    return lines


def _attempt(attempt: dict[str, Any]) -> Content:
    took = max(0, attempt["ended_at"] - attempt["started_at"]) / 1000
    what: tuple[str, str] = ("done", GOOD)
    if attempt["error_class"]:
        what = (f"{clean(attempt['error_class'], 40)}: {clean(attempt['message'] or '', MAX_TEXT)}", ALERT)
    when = iso_utc(attempt["ended_at"])
    return Content.assemble(
        (f"  {when[:10]} {when[11:19]}  ", QUIET),
        f"{attempt['stage']} {attempt['n']}",
        (f"  {took:.1f} s  ", QUIET),
        what,
    )
