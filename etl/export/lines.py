"""What an export says of each record, whatever the format: the lines, their order, and which are chosen."""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from etl.clock import iso_utc
from etl.domain.statuses import FinishReason, RecordOutcome, RecordState
from etl.domain.views import ExportSummary
from etl.errors import ConfigError, StateError
from etl.export.pictures import Picture
from etl.redaction import redact_url
from etl.state.checks import counted
from etl.state.read.export_rows import ExportRow, export_rows
from etl.state.read.manifests import all_manifests
from etl.state.read.reader import Reader
from etl.state.read.recipes import RecipeRow, all_recipes
from etl.state.read.runs import run_began_at

STDOUT = "-"

CAPTION, CAPTIONED_AT, SOURCE, ERROR, PROVENANCE = (
    "vlm_caption", "vlm_captioned_at", "vlm_caption_source", "vlm_error", "vlm_provenance",
)  # fmt: skip
_EXPORTED = (RecordState.ACTIVE, RecordState.UNSELECTED, RecordState.INVALID)
FIELDS = (CAPTION, CAPTIONED_AT, SOURCE, ERROR, PROVENANCE)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an export holds.

    Attributes:
        recipe: beginning of a recipe's hash; ``None`` for the current one.
        provenance: add one object that tells how each caption came to be.
        only_captioned: leave out every record without a caption.
        since: a run; leave out what was not captioned, or did not fail for good, after it began.
        format: one of `etl.export.formats`; empty for what the name of the target says.
        shard_size: records in each file of a directory of files; 0 for one file, or the usual size of such a format.
        format_options: options of formats by name; those of another format than this one stand as they are by default.
    """

    recipe: str | None = None
    provenance: bool = False
    only_captioned: bool = False
    since: str = ""
    format: str = ""
    shard_size: int = 0
    format_options: Mapping[str, bool | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """One record as it is exported.

    Attributes:
        row: what the state knows of it.
        outcome: a `RecordOutcome`, or ``unselected``.
        line: its line of JSON Lines.
        place: manifest, position and number, by which the records behind it are found again.
        recipe: ``model@revision`` of the captions; empty where there are none yet.
        picture: its picture, for formats with pictures.
    """

    row: ExportRow
    outcome: str
    line: bytes
    place: tuple[int, int, int]
    recipe: str
    picture: Picture | None = None

    @property
    def is_given(self) -> bool:
        """Whether its caption came from a file, so that no model wrote it."""
        return self.row.finish_reason == FinishReason.FILE


def summary_of(path: str, counts: Counter[str], **more: Any) -> ExportSummary:
    """Return the summary of what was counted."""
    return ExportSummary(
        path=path,
        rows=counts["rows"],
        captioned=counts[RecordOutcome.CAPTIONED],
        failed=counts[RecordOutcome.FAILED],
        pending=counts[RecordOutcome.PENDING],
        skipped=counts[RecordOutcome.SKIPPED],
        unselected=counts[RecordState.UNSELECTED],
        invalid=counts[RecordState.INVALID],
        left_out=counts["left_out"],
        **more,
    )


@dataclass(frozen=True)
class Selected:
    """What an export is of, found in the state: the recipe, and the instant of ``since``."""

    options: ExportOptions
    recipe: RecipeRow | None
    since: int

    @classmethod
    def of(cls, reader: Reader, options: ExportOptions) -> "Selected":
        """Raises `ConfigError` for an unknown or ambiguous recipe or run."""
        since = 0
        if options.since:
            found = run_began_at(reader, options.since)
            if found is None:
                raise ConfigError(f"no run, or more than one, has the uid or number {options.since!r}; see `etl runs`")
            since = found
        return cls(options, _chosen_recipe(reader, options.recipe), since)

    def format_of(self, kind: str) -> str:
        """Return the format as it is recorded: one of a part of the records is told from a whole one."""
        return f"{kind}-since" if self.since else kind


def _chosen_recipe(reader: Reader, wanted: str | None) -> RecipeRow | None:
    recipes = all_recipes(reader)
    if wanted is None:
        return next((recipe for recipe in recipes if recipe.current), None)
    found = [recipe for recipe in recipes if recipe.sha256.startswith(wanted.lower())]
    if len(found) != 1:
        known = ", ".join(f"{recipe.sha256[:12]} ({recipe.model}@{recipe.revision[:12]})" for recipe in recipes)
        begin = f"{len(found)} recipes begin" if found else "no recipe begins"
        raise ConfigError(f"{begin} with {wanted!r}; known: {known or 'none'}")
    return found[0]


def joined(
    reader: Reader, selected: Selected, counts: Counter[str], after: tuple[int, int, int] = (0, 0, 0)
) -> Iterator[Joined]:
    """Yield the records that are exported, in order, behind the ``place`` of one that was yielded before.

    ``counts`` gains what becomes of every record that is passed, exported or not.
    """
    recipe = selected.recipe
    source = source_of(recipe) if recipe else ""
    for manifest, *_ in all_manifests(reader):
        if manifest < after[0]:
            continue
        begin = after[1:] if manifest == after[0] else (0, 0)
        for row in export_rows(reader, manifest, recipe.id if recipe else None, begin):
            counts["read"] += 1
            if selected.since and not is_new(row, selected.since):
                continue
            outcome, line = _line(row, recipe, selected.options, counts)
            if line is not None:
                counts["rows"] += 1
                yield Joined(
                    row=row,
                    outcome=outcome,
                    line=line,
                    place=(manifest, row.position, row.record),
                    recipe=_made_by(row, source),
                )


def check_counts(reader: Reader, selected: Selected, counts: Counter[str]) -> None:
    """Raise `StateError` where the records that were passed, all of them, are not those that the state has counted.

    Called within the snapshot that they were read from.
    """
    kept = counted(reader)
    pairs = {"records": (sum(kept.get(("records", state), 0) for state in _EXPORTED), counts["read"])}
    if not selected.since and (selected.recipe is None or selected.recipe.current):
        pairs["captions"] = (kept.get(("outcomes", RecordOutcome.CAPTIONED), 0), counts[RecordOutcome.CAPTIONED])
    for what, (expected, found) in pairs.items():
        if expected != found:
            raise StateError(
                f"the state counts {expected:,} {what} but {found:,} could be read, so nothing was exported: it is "
                "damaged; see `etl verify`, or restore a copy of it"
            )


def is_new(row: ExportRow, since: int) -> bool:
    """Return whether the record was captioned, or failed for good, after an instant."""
    if row.state != RecordState.ACTIVE:
        return False
    at = {RecordOutcome.CAPTIONED: row.done_at, RecordOutcome.FAILED: row.failed_at}.get(RecordOutcome(row.outcome))
    return at is not None and at >= since


def _line(
    row: ExportRow, recipe: RecipeRow | None, options: ExportOptions, counts: Counter[str]
) -> tuple[str, bytes | None]:
    """Return what became of the record, and its line; ``None`` for one that is left out."""
    if row.state == RecordState.INVALID:
        counts[RecordState.INVALID] += 1
        if row.error_class == "invalid_json":
            counts["left_out"] += 1
            return RecordOutcome.FAILED, None
        outcome: str = RecordOutcome.FAILED
    elif row.state == RecordState.UNSELECTED:
        counts[RecordState.UNSELECTED] += 1
        return row.state, None if options.only_captioned else row.line
    else:
        outcome = row.outcome
        counts[outcome] += 1
    if options.only_captioned and outcome != RecordOutcome.CAPTIONED:
        return outcome, None
    if outcome in (RecordOutcome.PENDING, RecordOutcome.SKIPPED):
        return outcome, row.line
    try:
        return outcome, with_fields(row.line, _added(row, outcome, recipe, options))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # Ingest lets no such row in, so something else has written it.
        raise StateError(
            f"the state database is damaged: a stored record or recipe makes no sense ({error})"
        ) from error


def flags_of(stored: str | None) -> list[str]:
    """Return flags as they are exported."""
    return sorted(filter(None, (stored or "").split(",")))


def _made_by(row: ExportRow, source: str) -> str:
    return FinishReason.FILE if row.finish_reason == FinishReason.FILE else source


def source_of(recipe: RecipeRow) -> str:
    """Return what made a caption: ``model@revision``."""
    return f"{recipe.model}@{recipe.revision}"


def _added(row: ExportRow, outcome: str, recipe: RecipeRow | None, options: ExportOptions) -> dict[str, Any]:
    if outcome == RecordOutcome.FAILED or recipe is None:
        return {CAPTION: None, ERROR: row.error_class}
    added: dict[str, Any] = {
        CAPTION: row.text,
        CAPTIONED_AT: iso_utc(row.done_at or 0),
        SOURCE: _made_by(row, source_of(recipe)),
    }
    if options.provenance:
        added[PROVENANCE] = {
            "recipe": recipe.sha256, "finish_reason": row.finish_reason, "tokens": row.tokens,
            "flags": flags_of(row.flags),
            "repetition_penalty": row.repetition_penalty or _usual_penalty(recipe.spec),
            "image_sha256": row.image_sha256,
            "image_flags": flags_of(row.image_flags),
            "mirror": redact_url(row.mirror) if row.mirror else None,
        }  # fmt: skip
    return added


@functools.lru_cache(maxsize=1)
def _usual_penalty(spec: str) -> float | None:
    """Return the repetition penalty that the recipe says; ``None`` where it says none."""
    value: float | None = json.loads(spec).get("generation", {}).get("repetition_penalty")
    return value


def with_fields(line: bytes, added: dict[str, Any]) -> bytes:
    """Return a JSON object's line with fields added at its end; ``vlm_*`` fields that it had are replaced.

    Everything else stays byte for byte: numbers are not rounded, escapes and white space not changed.
    """
    body = line.rstrip(b"\r\n \t")
    end = line[len(body) :]
    start = body.index(b"{") + 1
    inner = body[start:-1].rstrip()
    if b"vlm_" in inner or b"\\u" in inner:
        inner = ",".join(text for name, text in _members(inner.decode()) if name not in FIELDS).rstrip().encode()
    separator = b"," if inner.strip() else b""
    return body[:start] + inner + separator + _dump(added)[1:] + end


_DECODER = json.JSONDecoder()


def _members(inner: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each member of a JSON object, given what stands between its braces."""
    scan = _DECODER.raw_decode
    place = 0
    while _skip(inner, place) < len(inner):
        name, after = scan(inner, _skip(inner, place))
        _, after = scan(inner, _skip(inner, _skip(inner, after) + 1))
        comma = _skip(inner, after)
        yield name, inner[place:comma]
        place = comma + 1


def _skip(text: str, place: int) -> int:
    """Return the next place that is not JSON's white space."""
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place


def _dump(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair can only be written as the escape that it came in as.
        return json.dumps(value, separators=(",", ":")).encode()
