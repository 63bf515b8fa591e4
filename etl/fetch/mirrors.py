"""Where else a picture may lie: addresses made from its URL or from its record.

``--rewrite-url 'REGEX=REPLACEMENT'`` makes one from the URL, ``--mirror-template 'https://store.example/{field}'`` one
from the manifest's record.  Either may also give a local path.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from etl.domain.items import SIGNED
from etl.errors import ConfigError, InvalidUrlError
from etl.net.urls import host_of, is_local, local_path
from etl.settings import Settings
from etl.text import clean, did_you_mean, nearest

_FIELD = re.compile(r"\{([^{}]*)\}")

_NAMES = 1000
"""Names of fields that a mistyped one is compared with."""


@dataclass(frozen=True)
class Address:
    """One place to ask for a picture.

    Attributes:
        url: http(s) URL or local path.
        host: in lower case; empty for a local path.
        is_mirror: whether it is another than the record's own.
    """

    url: str
    host: str
    is_mirror: bool


class Mirrors:
    """Makes the addresses at which a picture is asked for, in their order.

    Args:
        rewrites: ``REGEX=REPLACEMENT`` each, split at the first ``=`` (``\\x3d`` stands for one in the pattern), as for
            Python's `re.sub`, with ``\\1`` for groups.  Each is applied to the source's own URL.
        template: an address with ``{field}`` or ``{field.inner}``; values are percent-encoded, but for their slashes,
            unless the template is one field and nothing else.
        prefer: ask the mirrors first.

    Raises `ConfigError` for a rewrite without ``=``, a pattern or a replacement that Python's `re` refuses, and a
    template without a field.
    """

    def __init__(self, rewrites: Sequence[str], template: str = "", *, prefer: bool = False) -> None:
        self._rewrites = [_rewrite(text) for text in rewrites]
        self._template = template.strip()
        self._prefer = prefer
        if self._template and not all(match.strip() for match in _FIELD.findall(self._template) or [""]):
            raise ConfigError(
                f"mirror_template = {template!r}: it names no field, as in https://store.example/{{field}}"
            )
        if prefer and not self:
            raise ConfigError("prefer_mirror is set, but neither rewrite_url nor mirror_template")

    @classmethod
    def of(cls, settings: Settings) -> "Mirrors":
        """Return the mirrors that the settings name."""
        return cls(settings.rewrite_url, settings.mirror_template, prefer=settings.prefer_mirror)

    def __bool__(self) -> bool:
        """Whether any mirror is configured."""
        return bool(self._rewrites or self._template)

    @property
    def needs_record(self) -> bool:
        """Whether `addresses` needs the record's line."""
        return bool(self._template)

    def check(self, lines: Iterable[bytes]) -> None:
        """Raise `ConfigError` where the template has a field that not one of these records has."""
        missing, names = set(_FIELD.findall(self._template)), dict[str, None]()
        for line in lines if missing else ():
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except ValueError:
                continue
            missing = {field for field in missing if not _has(record, field)}
            if not missing:
                return
            if len(names) < _NAMES:
                names |= dict.fromkeys(_names(record))
        if names:
            field = min(missing)
            hint = did_you_mean(nearest(field.strip(), names))
            raise ConfigError(
                f"mirror_template: no record has the field {clean(field, 80)!r}, so no mirror would be asked; "
                f"{clean(hint, 80)}records have {clean(', '.join(names), 300)}"
            )

    @property
    def directories(self) -> list[Path]:
        """The local directories that the operator has written into rewrites and template.

        Raises `ConfigError` where they are not of this machine.
        """
        written = [replacement.partition("\\")[0] for _, replacement in self._rewrites]
        written.append(self._template.partition("{")[0])
        # Up to the last slash: what follows is the beginning of a name.
        try:
            return [local_path(text[: text.rfind("/") + 1]) for text in written if is_local(text) and "/" in text]
        except InvalidUrlError as error:
            raise ConfigError(f"a mirror in rewrite_url or mirror_template {error}") from error

    def addresses(self, url: str, host: str, line: bytes | None = None) -> list[Address]:
        """Return where to ask for the source ``url`` on ``host``, whose first record is ``line``; never empty.

        A rewrite that does not match and a record without the template's fields give no address, nor does a result
        that is no valid URL.
        """
        plain = url.removesuffix(SIGNED)
        made = [pattern.sub(replacement, plain) for pattern, replacement in self._rewrites if pattern.search(plain)]
        if self._template and line is not None:
            made += self._from_record(line)
        mirrors = []
        for mirror in dict.fromkeys(made):
            try:
                if mirror != plain:
                    mirrors.append(Address(mirror, host_of(mirror), is_mirror=True))
            except InvalidUrlError:
                continue
        own = [Address(url, host, is_mirror=False)]
        return mirrors + own if self._prefer else own + mirrors

    def _from_record(self, line: bytes) -> list[str]:
        try:
            record = json.loads(line.decode("utf-8-sig"))
            if match := _FIELD.fullmatch(self._template):
                return [_value(record, match[1])]
            local = is_local(self._template)
            filled = _FIELD.sub(lambda match: _filled(_value(record, match[1]), local=local), self._template)
        except (ValueError, LookupError):
            return []
        return [filled]


def _rewrite(text: str) -> tuple[re.Pattern[str], str]:
    pattern, found, replacement = text.partition("=")
    if not found or not pattern:
        raise ConfigError(f"rewrite_url = {text!r}: it must be REGEX=REPLACEMENT")
    try:
        compiled = re.compile(pattern)
        # A group that the pattern lacks shows only when the replacement is used.
        re.compile(pattern + "|").sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ConfigError(f"rewrite_url = {text!r}: {error}") from error
    return compiled, replacement


def _value(record: Any, path: str) -> str:
    """Return the field's value as text; LookupError when the record has none."""
    value = record
    for name in path.strip().split("."):
        if not isinstance(value, Mapping):
            raise LookupError(path)
        value = value[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise LookupError(path)
    return str(value).strip()


def _has(record: Any, path: str) -> bool:
    try:
        return bool(_value(record, path))
    except LookupError:
        return False


def _names(record: Any, before: str = "") -> Iterator[str]:
    """Yield the fields of a record that a template can name, inner ones as it names them."""
    for name, value in record.items() if isinstance(record, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _names(value, f"{before}{name}.")
        elif _has(record, name):
            yield f"{before}{name}"


def _filled(value: str, *, local: bool) -> str:
    if not local:
        return quote(value, safe="/")
    # A record names a file below the template's directory, never one above it.
    if ".." in PurePosixPath(value).parts or "\0" in value:
        raise LookupError(value)
    return value
