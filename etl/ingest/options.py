"""How a manifest is read: which of its records are captioned, and what a record's key and image are called."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from etl.errors import ConfigError, StateError
from etl.ingest.manifest_formats.directory import SIDECARS
from etl.ingest.prompts import PromptTemplate
from etl.state.read.manifests import unselected_records
from etl.state.read.reader import Reader
from etl.text import clean, did_you_mean, nearest


@dataclass(frozen=True)
class Selection:
    """Which records of a manifest are captioned.

    Attributes:
        synthetic: ``True``: only those whose ``description_source`` contains "synthetic"; ``False``: all;
            ``None``: only those, where the field exists.
        offset, limit: a window over the records of the file, counted before the rule above.
    """

    synthetic: bool | None = None
    offset: int = 0
    limit: int | None = None

    def __contains__(self, row: tuple[int, Mapping[str, Any]]) -> bool:
        index, record = row
        if index < self.offset or (self.limit is not None and index >= self.offset + self.limit):
            return False
        if self.synthetic is False or (self.synthetic is None and "description_source" not in record):
            return True
        return "synthetic" in str(record.get("description_source") or "")

    def why(self) -> tuple[str, str]:
        """Return why records are left out, in words, and what takes them."""
        reasons, cures = [], []
        if self.offset or self.limit is not None:
            reasons.append(
                "outside --offset and --limit"
                if self.offset and self.limit is not None
                else "behind --limit"
                if self.limit is not None
                else "before --offset"
            )
            cures.append("without it" if len(reasons[0].split("--")) == 2 else "without them")
        if self.synthetic is not False:
            reasons.append("description_source is not synthetic")
            cures.insert(0, "--all")
        return " or ".join(reasons), " ".join(cures)


@dataclass(frozen=True)
class LeftOut:
    """Records of a manifest that are not needed.

    Attributes:
        records: how many.
        why: in words.
        cure: what takes them, as flags of `etl run` and `etl ingest`.
    """

    records: int
    why: str
    cure: str

    def line(self) -> str:
        """Return it as one line for people."""
        return f"{self.records:,} not selected: {self.why}" + (f"; {self.cure} takes them" if self.cure else "")


def left_out(reader: Reader) -> tuple[LeftOut, ...]:
    """Return what the manifests of a state leave out, reason by reason."""
    found: dict[tuple[str, str], int] = {}
    for spec, records in unselected_records(reader):
        with suppress(ValueError, LookupError, TypeError):
            values = json.loads(spec)
            why = Selection(values["synthetic"], values["offset"], values["limit"]).why()
            found[why] = found.get(why, 0) + records
    return tuple(LeftOut(records, *why) for why, records in found.items())


@dataclass(frozen=True)
class IngestOptions:
    """How a manifest is read; a change of any of them reads it anew.

    Attributes:
        id_field, image_field: the fields with the record's key and image; ``None`` tries the usual names.
        selection: which records are captioned.
        template: what the model is asked about each.
        strict: stop at the first bad line instead of keeping it as an invalid record.
        encoding: of the manifest's text; ``None`` finds it out.
        url_identity: URLs that differ only in their signature are one source.
        sidecars: which of `SIDECARS`, files beside a picture or fields, hold the captions that records bring.
    """

    id_field: str | None = None
    image_field: str | None = None
    selection: Selection = field(default_factory=Selection)
    template: PromptTemplate = field(default_factory=PromptTemplate)
    strict: bool = False
    encoding: str | None = None
    sidecars: tuple[str, ...] = ()
    url_identity: bool = False

    def __post_init__(self) -> None:
        """Raises `ConfigError` for an encoding that Python does not know, and for unknown sidecars."""
        for kind in self.sidecars:
            if kind not in SIDECARS:
                hint = did_you_mean(nearest(kind, SIDECARS))
                raise ConfigError(f"no sidecars {clean(kind, 80)!r}; {hint}there are {', '.join(SIDECARS)}")
        if self.encoding is None:
            return
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError) as error:
            names = ("utf-8", "utf-16", "cp1252", "latin-1", "cp850", "mac-roman", "shift_jis", "gb18030", "big5")
            hint = did_you_mean(nearest(self.encoding, names))
            raise ConfigError(
                f"no encoding {clean(self.encoding, 80)!r}; {hint}there are {', '.join(names)} and others"
            ) from error

    def spec(self) -> str:
        """Return what decides the records, as canonical JSON."""
        selection = self.selection
        values = {
            "id_field": self.id_field,
            "image_field": self.image_field,
            "synthetic": selection.synthetic,
            "offset": selection.offset,
            "limit": selection.limit,
            "template": self.template.source,
        }
        if self.encoding is not None:
            values["encoding"] = self.encoding
        if self.url_identity:
            values["url_identity"] = True
        if self.sidecars:
            values["sidecars"] = ",".join(self.sidecars)
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_spec(cls, spec: str, selection: Selection | None = None) -> "IngestOptions":
        """Return the options that a manifest was ingested with, with another selection if given.

        Raises `StateError` for what `spec` has not written.
        """
        try:
            values = json.loads(spec)
            stored = Selection(values["synthetic"], values["offset"], values["limit"])
            template = PromptTemplate(values["template"])
            sidecars = tuple(filter(None, values.get("sidecars", "").split(",")))
            return cls(
                values["id_field"],
                values["image_field"],
                selection or stored,
                template,
                encoding=values.get("encoding"),
                url_identity=values.get("url_identity", False),
                sidecars=sidecars,
            )
        except (ValueError, LookupError, TypeError, ConfigError) as error:
            raise StateError("the state database is damaged: how its manifest was read makes no sense") from error
