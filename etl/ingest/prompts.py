"""Prompts: what the model is asked about one record.

A prompt is the instruction text alone.  The chat wrapping (``USER: <image>\\n... ASSISTANT:``) belongs to
the model and is added by its processor when the prompt is tokenised.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import ChildEndedError, ConfigError, InvalidRecordError
from etl.images.formats import suffixes
from etl.processes import ChildProcess
from etl.state.record_captions import GIVEN

if TYPE_CHECKING:
    from jinja2 import Template

DEFAULT_TEMPLATE = (
    "This is a photograph from an archive"
    '{% if title %}, titled "{{ title }}"{% endif %}'
    "{% if date %}, dated {{ date }}{% endif %}. "
    "Describe it in two to three specific sentences: the subject, the visible details and the setting."
)

MAX_FIELD_CHARS = 300
"""Longest value of one record field in a prompt; the rest is cut off."""

VARIABLES = {"title", "date", "record"}
"""What a template may name."""

MAX_TEMPLATE_BYTES = 128 * 1024

TRIAL_TIMEOUT_S = 60.0
"""For the trial of a template, its process's start included; it has less time of a processor than that."""

MAX_PROMPT_CHARS = 4000
"""Longest rendered prompt; a longer one makes its record invalid, because it could never fit a slot."""

_SEPARATORS = re.compile(r"[\s,;:._/\\()\[\]#-]+")
_MAY_SAY_SOMETHING = re.compile(r"[A-Za-z]{3}|[^\x00-\x7f]")
"""In every title with a word that `_says_something`; most shelf marks have none."""

_PLACEHOLDERS = frozenset({"s/o", "n/a", "na", "none", "null", "untitled", "sans titre", "-", "?"})
_CAMERA_WORDS = frozenset({"img", "dsc", "dscn", "dscf", "scan", "image", "photo", "pict", "page"})
_UNSAFE = re.compile(
    r"[\x00-\x20\x7f-\xa0\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0000-\U000e007f]+"
)


def clean_field(value: object) -> str:
    """Return a record's value as plain prompt text of at most ``MAX_FIELD_CHARS`` characters.

    Runs of white space, control, direction and invisible characters become one space.  Angle brackets become
    guillemets, so that no value can spell ``<image>``, ``</s>`` or another special token of a model.
    """
    if value is None:
        return ""
    if isinstance(value, str) and len(value) <= MAX_FIELD_CHARS and _is_plain(value):
        return value.strip()
    text = _UNSAFE.sub(" ", str(value)[: 4 * MAX_FIELD_CHARS]).strip()
    text = text.replace("<", "\u2039").replace(">", "\u203a")[:MAX_FIELD_CHARS].rstrip()
    if text.isascii():
        return text
    # JSON can spell half a surrogate pair, which is no text and cannot be stored.
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_plain(text: str) -> bool:
    """Return, quickly, whether nothing in the text needs to be replaced: most values of most manifests."""
    return text.isascii() and text.isprintable() and not ("  " in text or "<" in text or ">" in text)


def real_title(record: Mapping[str, Any]) -> str | None:
    """Return the record's title when it says something about the picture, else ``None``.

    Shelf marks (``VM97,S3,D08,P297``), file names (``VM97-3_7P16-08.jpg``, ``IMG_2034``) and
    placeholders (``S/O``) are not titles: put into the prompt, they would end up in captions.
    """
    for field in ("name", "title"):
        title = clean_field(record.get(field))
        if (
            not _MAY_SAY_SOMETHING.search(title)
            or title.casefold() in _PLACEHOLDERS
            or title.lower().endswith(suffixes())
        ):
            continue
        words = [word for word in _SEPARATORS.split(title) if word.isalpha()]
        if any(_says_something(word) for word in words) and title != clean_field(record.get("cote")):
            return title
    return None


def _says_something(word: str) -> bool:
    return (len(word) >= 3 or not word.isascii()) and word.casefold() not in _CAMERA_WORDS


def record_date(record: Mapping[str, Any]) -> str | None:
    """Return ``attributes_map.Date``, else ``portal_record.Date``, else ``date``; ``None`` when all are empty."""
    for holder in (record.get("attributes_map"), record.get("portal_record")):
        if isinstance(holder, Mapping) and (date := clean_field(holder.get("Date"))):
            return date
    return clean_field(record.get("date")) or None


def _try_out(source: str, name: str) -> None:
    """Raise `ConfigError` when the template exceeds the limits of `etl.ingest.prompt_trial`."""
    child = ChildProcess("etl.ingest.prompt_trial:main", {}, name="trial of the prompt template", confined=True)
    try:
        child.wait_until_ready(TRIAL_TIMEOUT_S)
        child.send(source.encode())
        with suppress(ChildEndedError):
            if child.poll(TRIAL_TIMEOUT_S) and child.recv():
                return
        raise ConfigError(f"{name} takes too much time or memory for one record: see to its loops and repetitions")
    finally:
        child.discard()


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:
        # Too long for a name, or behind a directory that may not be entered.
        return False


class PromptTemplate:
    """A sandboxed Jinja2 template over ``title``, ``date`` and ``record`` (all fields of the manifest line).

    Every value that the template prints goes through `clean_field`: fields are data, never markup.
    """

    def __init__(self, source: str = DEFAULT_TEMPLATE, name: str = "the default prompt template") -> None:
        self.source = source
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self._of_title_and_date = lru_cache(maxsize=4096)(self._render)
        self._name = name
        # A user's mistake is told at once; the default has none, and most commands never ask what it says.
        if source != DEFAULT_TEMPLATE:
            _ = self._compiled

    @cached_property
    def _compiled(self) -> tuple["Template", set[str]]:
        """The template, and the names in it."""
        from jinja2 import ChainableUndefined, TemplateSyntaxError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if "<image>" in self.source:
            raise ConfigError(f"{self._name} contains <image>; the image is placed by the model's own chat template")
        environment = ImmutableSandboxedEnvironment(
            undefined=ChainableUndefined, finalize=clean_field, autoescape=False, keep_trailing_newline=False
        )
        try:
            template = environment.from_string(self.source)
            return template, meta.find_undeclared_variables(environment.parse(self.source))
        except TemplateSyntaxError as error:
            raise ConfigError(f"{self._name}, line {error.lineno}: {error.message}") from error
        # Nested too deeply for Jinja or for Python's own compiler, or a constant that cannot be worked out.
        except Exception as error:
            raise ConfigError(f"{self._name} cannot be compiled: {str(error) or type(error).__name__}") from error

    @classmethod
    def from_file(cls, path: Path) -> "PromptTemplate":
        """Read a template from a UTF-8 file.

        Raises `ConfigError` for a missing file, a syntax error, or a template that takes very much time or memory.
        """
        try:
            with path.open("rb") as file:
                source = file.read(MAX_TEMPLATE_BYTES + 1).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise ConfigError(f"cannot read the prompt template {path}: {why}") from error
        if len(source.encode()) > MAX_TEMPLATE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_TEMPLATE_BYTES} bytes; is this a prompt template?")
        return cls._given(source, str(path))

    @classmethod
    def from_text(cls, text: str) -> "PromptTemplate":
        """Return the template of a prompt that is given in words.

        Raises `ConfigError` for one that is empty, is the name of a file, or would be refused in a file.
        """
        source = text.strip()
        if not source:
            raise ConfigError("the prompt is empty; say what the model is to be asked, or leave --prompt out")
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise ConfigError(f"the prompt is longer than {MAX_TEMPLATE_BYTES} bytes")
        if _is_file(source):
            raise ConfigError(f"--prompt {source} is the name of a file; give --prompt-template {source}")
        return cls._given(source, "the prompt")

    @classmethod
    def _given(cls, source: str, name: str) -> "PromptTemplate":
        """Return a user's template, tried before it is compiled here, which works out its constants."""
        if "{" in source:
            _try_out(source, name)
        template = cls(source, name)
        template._refuse_unknown_names(name)
        return template

    def _refuse_unknown_names(self, name: str) -> None:
        """Raise `ConfigError` for a name that no record can fill: it would silently be left out of every prompt."""
        from jinja2.defaults import DEFAULT_NAMESPACE

        for unknown in sorted(self._compiled[1] - VARIABLES - DEFAULT_NAMESPACE.keys()):
            raise ConfigError(
                f"{name} names {unknown!r}, but there are only title, date and record; "
                f"for a field of the record write {{{{ record.{unknown} }}}}"
            )

    def render(self, record: Mapping[str, Any]) -> str:
        """Return the prompt for one record.  Raises `InvalidRecordError` when it comes out empty or too long."""
        if "record" in self._compiled[1]:
            return self._render(real_title(record), record_date(record), record)
        # Most records of an archive have no real title, and dates repeat: few prompts are rendered at all.
        return self._of_title_and_date(real_title(record), record_date(record))

    def _render(self, title: str | None, date: str | None, record: Mapping[str, Any] | None = None) -> str:
        try:
            prompt = self._compiled[0].render(title=title, date=date, record=record)
        # A template is a program of the user's, and fails in as many ways as one.
        except Exception as error:
            raise InvalidRecordError(
                f"the prompt template failed on this record: {str(error) or type(error).__name__}"
            ) from error
        if prompt.startswith(GIVEN):
            raise InvalidRecordError("the prompt of this record begins as captions do that come from files")
        if not prompt.strip():
            raise InvalidRecordError("the prompt template gave an empty prompt for this record")
        if len(prompt) > MAX_PROMPT_CHARS:
            raise InvalidRecordError(f"the prompt has {len(prompt)} characters, more than {MAX_PROMPT_CHARS}")
        return prompt
