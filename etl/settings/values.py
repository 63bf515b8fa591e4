"""What is known of a setting but its value, and how text from a file, the environment or a flag becomes that."""

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from etl.deadline import moment
from etl.errors import ConfigError
from etl.redaction import host_of
from etl.text import did_you_mean, nearest
from etl.units import metavar, parse, understood, written

BACKENDS = ("local", "vllm", "openai", "ray")

ENGINES = ("auto", "slots", "generate")

DTYPES = ("auto", "float32", "float16", "bfloat16")

FETCH_BACKENDS = ("local", "ray")

DEVICES = ("auto", "cpu", "cuda", "mps")

MAX_SHOWN = 100
"""Characters of a wrong value in an error message."""

T = TypeVar("T")


class Trust(enum.Enum):
    """Whose word counts for a setting."""

    OWN = "the user alone: a flag, the environment, a file of the user's own or one that is named"
    """It sends pictures, keys or money somewhere, says what is loaded, read or written, opens a door, or guards us."""

    HARMLESS = "any folder's etl.toml: how hard, how long and how large, within what the user asks for"


class Group(enum.StrEnum):
    """What a setting or an option is about: its heading in a command's help and in the documentation."""

    GENERAL = "General"
    MANIFEST = "Manifest"
    NETWORK = "Network"
    HOSTS = "Hosts"
    PICTURES = "Pictures"
    MODEL = "Model"
    GENERATION = "Generation"
    CLUSTER = "Cluster"
    OUTPUT = "Output"
    OBSERVATION = "Observation"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting: its flag, variable and key, its checks and its line in the documentation follow from this.

    Attributes:
        name: in files; see `flag` and `variable`.
        kind: its type: ``bool``, ``int``, ``float``, ``str``, ``Path`` or ``tuple[str, ...]``.
        default: the value where nobody gives one.
        commands: those that go by it and take it as an option; all where there is none.
        trust: whose word counts.
        help: what it means, as a sentence; backticks around what can be typed.
        group: what it is about.
        first: the commands whose help shows it at once; the others show it with ``--help-all``.
        unit: of a number: ``bytes``, ``bytes/s`` or ``s``, or a word for what is counted.
        value: what stands for its value in a help text; follows from unit and choices unless given.
        short: a flag of one letter, such as ``-m``.
        limits: the least and the largest number.
        choices: the texts that it may be.
        clean: returns a value in the one form that it is kept in, and raises `ConfigError` for what is none.
        former: a name it had before, still understood in files and variables.
        also: another flag for it, by command.
    """

    name: str
    kind: Any
    default: Any
    commands: tuple[str, ...]
    trust: Trust
    help: str
    group: Group = Group.GENERAL
    first: tuple[str, ...] = ()
    unit: str = ""
    value: str = ""
    short: str = ""
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    clean: Callable[[Any], Any] | None = None
    former: str = ""
    also: Mapping[str, str] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        """Return the flag, such as ``--per-host``."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """Return what stands for its value in a help text."""
        return self.value or "|".join(self.choices) or (metavar(self.unit) if self.kind in (int, float) else "NAME")

    @property
    def default_text(self) -> str:
        """Return the default as people write it; empty where nothing is the default."""
        if self.kind in (int, float):
            return written(self.default, self.unit)
        return "" if self.default in ("", (), False) else str(self.default)

    def accepted(self, value: Any) -> Any:
        """Return a value of the right type as it is kept.  Raises `ConfigError` where the setting may not have it."""
        if self.limits and not self.limits[0] <= value <= self.limits[1]:
            span = " and ".join(written(limit, self.unit) for limit in self.limits)
            raise ConfigError(f"{self.name} = {shown(value)}: must be between {span}")
        if self.choices and value not in self.choices:
            hint = did_you_mean(nearest(str(value), self.choices, 0.7))
            raise ConfigError(f"{self.name} = {shown(value)}: {hint}it must be one of {', '.join(self.choices)}")
        if self.clean is not None:
            value = self.clean(value)
        texts = value if isinstance(value, tuple) else (str(value),) if isinstance(value, str | Path) else ()
        if any("\0" in text for text in texts):
            raise ConfigError(f"{self.name} holds a NUL character, which no path or name may")
        return value

    def convert(self, value: Any, where: str) -> Any:
        """Return a value as the setting's type.  Raises `ConfigError` naming ``where`` it is from."""
        try:
            converted = _converted(value, self.kind, self.unit)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ConfigError(
                f"{where}: {self.name} = {shown(value)} is not understood: give {self._wanted}"
            ) from error
        try:
            return self.accepted(converted)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    @property
    def _wanted(self) -> str:
        if self.kind is float and not self.unit:
            return "a number such as 2 or 0.5"
        if self.kind in (int, float):
            return understood(self.unit)
        return {bool: "true or false", str: "a text", Path: "a path"}.get(self.kind, "a list of texts")


def setting(
    default: T,
    commands: tuple[str, ...],
    trust: Trust,
    *,
    help: str,  # noqa: A002 - as everywhere in this trade
    group: Group = Group.GENERAL,
    first: tuple[str, ...] = (),
    unit: str = "",
    value: str = "",
    short: str = "",
    limits: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    clean: Callable[[Any], Any] | None = None,
    former: str = "",
    also: Mapping[str, str] | None = None,
) -> T:
    """Return the dataclass field of a setting; the arguments are those of `Setting`."""
    facts: dict[str, Any] = {
        "default": default, "commands": commands, "trust": trust, "help": help, "group": group, "first": first,
        "unit": unit, "value": value, "short": short, "limits": limits, "choices": choices, "clean": clean,
        "former": former, "also": also or {},
    }  # fmt: skip
    return field(default=default, metadata=facts)


def known(settings: type[Any]) -> Mapping[str, Setting]:
    """Return what is known of each field of a dataclass whose fields were made by `setting`, by name."""
    return _known(settings)  # type: ignore[arg-type]  # a class has a hash, whatever its instances have


@functools.cache
def _known(settings: type[Any]) -> Mapping[str, Setting]:
    kinds = typing.get_type_hints(settings)
    fields = dataclasses.fields(settings)
    return {one.name: Setting(name=one.name, kind=kinds[one.name], **one.metadata) for one in fields}


def read(
    values: Mapping[str, Any], settings: Mapping[str, Setting], where: str, spelt: Callable[[str], str] = str
) -> dict[str, Any]:
    """Return what one place gives, by names of settings; ``spelt`` tells how a name is written there.

    Raises `ConfigError` naming ``where`` (if it is empty, the name as it is written there) for a value that the setting
    may not have, a name that there is not, and a setting under its old name and its new one.
    """
    written = {spelt(name): one for one in settings.values() for name in (one.name, one.former) if name}
    found: dict[str, Any] = {}
    for name, value in values.items():
        one = written.get(name)
        if one is None:
            raise ConfigError(f"{where or 'environment'}: {_unknown(name, [spelt(known) for known in settings])}")
        if one.name in found:
            names = f"{spelt(one.former)} is the old name of {spelt(one.name)}"
            raise ConfigError(f"{where or 'environment'}: {names}, and both are given; take one of them out")
        found[one.name] = one.convert(value, where or name)
    return found


def _unknown(name: str, names: list[str]) -> str:
    near = did_you_mean(nearest(name, names, 0.7))
    hint = f"{near}If not, take it out" if near else "take it out"
    return f"unknown setting {shown(name)}; {hint} (`etl run --help-all` lists most settings)"


def _converted(value: Any, kind: Any, unit: str) -> Any:
    if kind is str and isinstance(value, datetime | time):
        # TOML has times of its own, and nobody puts quotes around a deadline.
        return value.isoformat()
    if isinstance(kind, types.GenericAlias):
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise TypeError
        return tuple(item.strip() for item in items if item.strip())
    if kind is bool and isinstance(value, str):
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
    if isinstance(value, str) and (kind is int or (kind is float and unit)):
        return kind(parse(value, unit))
    # `gpus = 0` is a text to us, but nobody puts quotes around it.
    accepted = (bool,) if kind is bool else (str, int, float, Path)
    if not isinstance(value, accepted) or (kind is bool) != isinstance(value, bool):
        raise TypeError
    if kind is int and isinstance(value, float):
        raise ValueError
    return kind(value)


def model_name(value: str) -> str:
    """Return the model if there is one.  Raises `ConfigError`."""
    if not value:
        raise ConfigError("model is empty: give a Hugging Face id, a directory, or 'demo'")
    # An id of Hugging Face is OWNER/NAME, but for a few of old.
    hint = did_you_mean(nearest(value, ("demo",), 0.7)) if "/" not in value and value != "demo" else ""
    if hint and not Path(value).exists():
        raise ConfigError(f"model = {shown(value)}: {hint}Else give a Hugging Face id (OWNER/NAME) or a directory")
    return value


def device_name(value: str) -> str:
    """Return the device if it is one.  Raises `ConfigError`."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value, re.ASCII):
        hint = did_you_mean(nearest(value.replace("gpu", "cuda"), DEVICES))
        raise ConfigError(f"device = {shown(value)}: {hint}it must be one of {', '.join(DEVICES)} or cuda:N")
    return value


def gpu_numbers(value: str) -> str:
    """Return the GPUs if they are numbers or all.  Raises `ConfigError`."""
    if value != "all" and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", value, re.ASCII):
        raise ConfigError(f"gpus = {shown(value)}: must be 'all' or numbers such as 0,1")
    return value


def webhook_url(value: str) -> str:
    """Return the webhook if it can be posted to.  Raises `ConfigError`, which never shows the secret in it."""
    if value and not (value.startswith(("http://", "https://")) and host_of(value)):
        raise ConfigError("webhook is no http or https URL; it must look like https://chat.example/hook")
    return value


def deadline_text(value: str) -> str:
    """Return the deadline if it is a time to come.  Raises `ConfigError`."""
    if value:
        moment(value, datetime.now().astimezone())
    return value


def endpoints(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses one by one.  Raises `ConfigError`, which never shows a secret, as settings are stored."""
    found = [part.strip() for value in values for part in value.split(",") if part.strip()]
    for number, address in enumerate(found, start=1):
        try:
            parts = urlsplit(address)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            secret = bool(parts.query or parts.fragment or "@" in parts.netloc)
        except ValueError:
            good = secret = False
        if secret:
            raise ConfigError(
                f"endpoint {number} has a user name, a query or a fragment; give the bare address, and a key in the "
                "environment as ETL_API_KEY"
            )
        if not good:
            raise ConfigError(f"endpoint {number} is no address such as http://gpu:8000/v1")
    if len(set(found)) < len(found):
        raise ConfigError("endpoint: an address is given twice")
    return tuple(found)


def shown(value: object) -> str:
    """Return a value for an error message: no longer than a line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
