"""IIIF: the manifests that were ingested, with the captions as annotations and where a summary was missing."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from etl.clock import iso_utc
from etl.domain.statuses import RecordOutcome, RecordState
from etl.errors import ConfigError, StateError
from etl.export.format import FileFormat, Sink
from etl.export.lines import Joined

_STATEMENT = "Description by a machine"
"""Label of the canvas's metadata that says what wrote it, and when."""

_SOFTWARE_AGENT = "http://www.w3.org/ns/prov#SoftwareAgent"


class Iiif(FileFormat):
    """Each manifest on a line, as it came, Presentation 2 or 3; no more than one is held at a time."""

    name = "iiif"
    help = (
        "the IIIF manifests that were ingested, one on each line: on each canvas the caption as an annotation "
        "(`describing`) and, where there was none, as `summary` (in 2 `description`), with the model and the day"
    )
    shard_suffix = ".iiif.json"
    to_stdout = True

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write manifest after manifest.  Raises `ConfigError` for records of other lists, and where canvases lack."""
        try:
            self._write(stream, records)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            # Ingest lets no such record in, so something else has written it.
            raise StateError(f"the state database is damaged: a record of IIIF makes no sense ({error})") from error

    def _write(self, stream: Sink, records: Iterator[Joined]) -> None:
        head: dict[str, Any] = {}
        canvases: list[Any] = []
        for _, group in groupby(records, key=lambda record: record.place[:2]):
            pictures = list(group)
            inner = _of_iiif(pictures[0])
            if inner is None:
                continue
            if "manifest" in inner:
                _write(stream, head, canvases)
                head, canvases = inner, []
            canvases.append(_captioned(inner, pictures, is_2="sequences" in head.get("manifest", ())))
        if canvases and not head:
            raise _incomplete(0, len(canvases))
        _write(stream, head, canvases)


def _of_iiif(record: Joined) -> dict[str, Any] | None:
    """Return what ingest has kept of a canvas; ``None`` for what stands for a manifest that could not be had."""
    inner = json.loads(record.line.decode("utf-8-sig")).get("iiif")
    if isinstance(inner, dict) and "canvas" in inner:
        return inner
    if record.row.state == RecordState.INVALID:
        return None
    raise ConfigError(
        f"record {record.row.key[:80]!r} came from no manifest of IIIF, so it has none to go back into; "
        "choose another --format"
    )


def _write(stream: Sink, head: dict[str, Any], canvases: list[Any]) -> None:
    """Write a manifest with its canvases in their place, which ingest has left empty."""
    if not head:
        return
    if len(canvases) != head["canvases"]:
        raise _incomplete(head["canvases"], len(canvases))
    manifest = head["manifest"]
    if "sequences" in manifest:
        manifest["sequences"] = [
            {**one, "canvases": canvases} if "canvases" in one and one["canvases"] is None else one
            for one in manifest["sequences"]
        ]
    else:
        manifest["items"] = canvases
    try:
        data = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, UTF-8 cannot.
        data = json.dumps(manifest, separators=(",", ":")).encode()
    stream.write(data + b"\n")


def _incomplete(wanted: int, found: int) -> ConfigError:
    return ConfigError(
        f"a manifest has {found} of its {wanted or 'more'} canvases in this export; leave out --only-captioned, "
        "--since and --shard-size, and export the whole state, no part of it"
    )


def _captioned(inner: dict[str, Any], pictures: list[Joined], *, is_2: bool) -> Any:
    """Return a canvas with what was written about its pictures."""
    canvas = inner["canvas"]
    targets = [picture.get("target") for picture in inner.get("pictures", ())]
    done = [
        (record, target)
        for record, target in zip(pictures, targets, strict=False)
        # A caption that was there already came from the manifest itself, and no machine has written it.
        if record.outcome == RecordOutcome.CAPTIONED and record.row.text and not record.is_given
    ]
    if not done or not isinstance(canvas, dict):
        return canvas
    add = _add_to_2 if is_2 else _add_to_3
    return add(canvas, done)


_Done = list[tuple[Joined, Any]]


def _summary(done: _Done) -> str:
    return "\n".join(record.row.text or "" for record, _ in done)


def _origin(done: _Done) -> str:
    """Return what wrote the captions, and on which day."""
    record = done[0][0]
    return f"{record.recipe}, {iso_utc(record.row.done_at or 0)[:10]}"


def _add_to_3(canvas: dict[str, Any], done: _Done) -> dict[str, Any]:
    name = f"{canvas.get('id')}/vlm"
    annotations = [
        {
            "id": f"{name}/{number}", "type": "Annotation", "motivation": "describing",
            "creator": {"type": "Software", "name": record.recipe}, "created": iso_utc(record.row.done_at or 0),
            "body": {"type": "TextualBody", "value": record.row.text, "format": "text/plain"},
            "target": target or canvas.get("id"),
        }
        for number, (record, target) in enumerate(done, 1)
    ]  # fmt: skip
    page = {"id": name, "type": "AnnotationPage", "items": annotations}
    statement = {"label": {"en": [_STATEMENT]}, "value": {"none": [_origin(done)]}}
    return canvas | {
        "summary": canvas.get("summary") or {"none": [_summary(done)]},
        "metadata": [*_others(canvas.get("metadata"), "label", statement["label"]), statement],
        "annotations": [*_others(canvas.get("annotations"), "id", name), page],
    }


def _add_to_2(canvas: dict[str, Any], done: _Done) -> dict[str, Any]:
    name = f"{canvas.get('@id')}/vlm"
    annotations = [
        {
            "@id": f"{name}/{number}", "@type": "oa:Annotation", "motivation": "oa:describing",
            "oa:annotatedBy": {"@type": _SOFTWARE_AGENT, "foaf:name": record.recipe},
            "oa:annotatedAt": iso_utc(record.row.done_at or 0),
            "resource": {"@type": "cnt:ContentAsText", "format": "text/plain", "chars": record.row.text},
            "on": target or canvas.get("@id"),
        }
        for number, (record, target) in enumerate(done, 1)
    ]  # fmt: skip
    found = {"@id": name, "@type": "sc:AnnotationList", "resources": annotations}
    statement = {"label": _STATEMENT, "value": _origin(done)}
    return canvas | {
        "description": canvas.get("description") or _summary(done),
        "metadata": [*_others(canvas.get("metadata"), "label", _STATEMENT), statement],
        "otherContent": [*_others(canvas.get("otherContent"), "@id", name), found],
    }


def _others(there: Any, field: str, own: Any) -> list[Any]:
    """Return what a list has beside what an earlier export has put there."""
    values = there if isinstance(there, list) else [] if there is None else [there]
    return [value for value in values if not (isinstance(value, dict) and value.get(field) == own)]


FORMAT = Iiif
