"""How ``etl why`` looks: the whole story of one record."""

import shlex
from collections.abc import Iterator
from typing import Any

from etl.clock import iso_utc, now_ms
from etl.domain.statuses import QueueStatus, RecordOutcome, RecordState, status_in_words
from etl.errors import first_of
from etl.net.iiif import Request
from etl.redaction import redact, redact_line, redact_url
from etl.text import clean
from etl.units import count, duration, size

MAX_THINKING = 300
"""Characters of a model's reasoning that are shown; ``--json`` has all."""


def redacted(story: dict[str, Any]) -> dict[str, Any]:
    """Return a record's story with every URL redacted, in its manifest line too, which is then no longer as it came."""
    return {name: redact_line(value) if name == "line" else redact(value) for name, value in story.items()}


def story_lines(story: dict[str, Any]) -> Iterator[str]:
    """Yield what ``etl why`` says to people about one record."""
    record, source, image = story["record"], story["source"], story["image"]
    yield f"{clean(record['key'])}: line {record['line']} of {clean(record['manifest'])}"
    outcome = f", {record['outcome']}" if record["state"] == RecordState.ACTIVE else ""
    yield f"state     {record['state']}{outcome}" + (f": {clean(record['error'])}" if record["error"] else "")
    if record["prompt"]:
        yield f"prompt    {clean(record['prompt'])}"
    if source:
        yield f"source    {clean(redact_url(source['url']))}: {status_in_words(source['status'])}" + _why_failed(source)
        if source.get("mirror"):
            yield f"mirror    {clean(redact_url(source['mirror']))}: the picture came from here"
        if (final := source.get("final_url") or "") != source["url"] and Request.of(final):
            yield f"asked     an image service, for {clean(redact_url(final))}"
    if image:
        yield (
            f"image     {image['mime']}, {image['width']}x{image['height']}, {size(image['bytes'])}, {image['state']}; "
            f"working copy {image['working_width']}x{image['working_height']}, {image['working_sha256'][:12]}"
            + (f"; flags: {clean(image['flags'])}" if image.get("flags") else "")
        )
    for caption in story["captions"]:
        mark = "" if caption["current"] else " (earlier recipe)"
        yield (
            f"caption   {clean(caption['model'])}@{clean(caption['revision'])}{mark}: "
            + status_in_words(caption["status"])
            + (f", skipped: the picture is {clean(caption['skipped'])}" if caption.get("skipped") else "")
            + _why_failed(caption)
        )
        if caption["text"] is not None:
            yield from _words(caption)
        elif caption["earlier"]:
            told = "could not" if caption["status"] == QueueStatus.DEAD else "is to"
            penalty = caption["repetition_penalty"]
            yield f"          {told} be made again with repetition penalty {penalty:g}; what counts:"
            yield from _words(caption["earlier"][-1])
        for earlier in reversed(caption["earlier"][: None if caption["text"] is not None else -1]):
            yield f"earlier   of {iso_utc(earlier['done_at'])}:"
            yield from _words(earlier)
    for attempt in story["attempts"]:
        took = max(0, attempt["ended_at"] - attempt["started_at"]) / 1000
        what = f"{attempt['error_class']}: {clean(attempt['message'])}" if attempt["error_class"] else "done"
        yield f"attempt   {iso_utc(attempt['ended_at'])} {attempt['stage']} {attempt['n']}, {took:.1f} s: {what}"
    if step := _next_step(story):
        yield f"next      {step}"


def _next_step(story: dict[str, Any]) -> str:
    """Return what can be done about the record; empty where nothing need be."""
    record, source = story["record"], story["source"]
    if record["state"] == RecordState.UNSELECTED:
        return "it is not selected: `etl run` with --all, or with another --limit and --offset, takes it"
    if record["state"] == RecordState.INVALID:
        manifest = clean(record["manifest"])
        return first_of(record["error_class"]) or f"mend line {record['line']} of {manifest}, `etl ingest {manifest}`"
    if record["state"] != RecordState.ACTIVE or record["outcome"] == RecordOutcome.CAPTIONED:
        return ""
    current = [caption for caption in story["captions"] if caption["current"]]
    if record["outcome"] == RecordOutcome.SKIPPED:
        return f"`etl run` without --skip-flag {clean(current[0]['skipped'])} captions it"
    dead = [item for item in (source, *current) if item and item["status"] == QueueStatus.DEAD]
    if not dead:
        return "`etl run` goes on with it"
    first = first_of(dead[0]["error_class"])
    return f"{first}; then " * bool(first) + f"`etl retry-failed --key {shlex.quote(clean(record['key']))}`, `etl run`"


def _words(caption: dict[str, Any]) -> Iterator[str]:
    """Yield the text of a caption, and how it was made."""
    yield f"          {clean(caption['text']) or '(no words)'}"
    if thinking := caption.get("thinking"):
        yield f"          before it, the model reasoned: {clean(thinking, MAX_THINKING)}"
    # A database that no newer version has written does not know penalties.
    penalty = caption.get("repetition_penalty")
    yield f"          {caption['tokens']} token{'s' * (caption['tokens'] != 1)}, {caption['finish_reason']}" + (
        (f", repetition penalty {penalty:g}" if penalty else "")
        + (f", flags: {caption['flags']}" if caption["flags"] else "")
    )


def _why_failed(item: dict[str, Any]) -> str:
    if not item["error_class"]:
        return ""
    due = (item["not_before"] - now_ms()) / 1000
    again = f"; next attempt in {duration(due)}" if item["status"] == QueueStatus.RETRY and due > 0 else ""
    return f", {item['error_class']} after {count(max(0, item['attempts']), 'attempt')}: {clean(item['error'])}{again}"
