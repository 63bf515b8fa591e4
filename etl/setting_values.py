"""What each setting may hold, and how text from a file, the environment or a flag becomes its value."""

import difflib
import re
import types
from datetime import datetime, time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from etl.deadline import moment
from etl.errors import ConfigError
from etl.redaction import host_of

BACKENDS = ("local", "openai", "ray")

ENGINES = ("auto", "slots", "generate")

DTYPES = ("auto", "float32", "float16", "bfloat16")

FETCH_BACKENDS = ("local", "ray")

DEVICES = ("auto", "cpu", "cuda", "mps")

_CHOICES = {"dtype": DTYPES, "backend": BACKENDS, "engine": ENGINES, "fetch_backend": FETCH_BACKENDS}

_LIMITS: dict[str, tuple[float, float]] = {
    "concurrency": (1, 32),
    "per_host": (1, 32),
    "host_rate": (0, 1000),
    "host_patience_s": (1, 7 * 86400),
    "connect_timeout_s": (0.05, 3600),
    "read_timeout_s": (0.05, 3600),
    "min_rate": (0, 1e12),
    "max_bytes": (1, 1e12),
    "max_pixels": (1, 1e10),
    "max_attempts": (1, 100),
    "backoff_s": (0, 86400),
    "backoff_cap_s": (0, 7 * 86400),
    "longest_edge": (32, 16384),
    "decoders": (0, 256),
    "decoder_memory": (256 * 1024**2, 1e12),
    "min_free": (0, 1e15),
    "max_cache_size": (0, 1e15),
    "endpoint_concurrency": (1, 1024),
    "endpoint_timeout_s": (0.05, 86400),
    "endpoint_patience_s": (0.05, 7 * 86400),
    "ray_cpus": (0, 1024),
    "ray_timeout_s": (0.05, 86400),
    "slots": (0, 4096),
    "gpu_memory_fraction": (0.05, 1),
    "feeders": (0, 64),
    "batch_size": (1, 4096),
    "max_new_tokens": (1, 4096),
    "max_aspect": (1, 1000),
    "interval_s": (0.1, 3600),
    "metrics_port": (0, 65535),
    "gpu_price": (0, 1e6),
}

MAX_SHOWN = 100
"""Characters of a wrong value in an error message."""


def convert(name: str, value: Any, kind: Any, where: str) -> Any:
    """Return a value from file, environment or JSON as the setting's type.  Raises `ConfigError` naming ``where``."""
    if name == "deadline" and isinstance(value, datetime | time):
        # TOML has times of its own.
        value = value.isoformat()
    try:
        converted = _converted(value, kind)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        wanted = "list of texts" if isinstance(kind, types.GenericAlias) else kind.__name__
        raise ConfigError(f"{where}: {name} = {shown(value)} is not a valid {wanted}") from error
    try:
        check(name, converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return converted


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(kind, types.GenericAlias):
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise TypeError
        return tuple(item.strip() for item in items if item.strip())
    if kind is bool and isinstance(value, str):
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
    # `gpus = 0` is a text to us, but nobody puts quotes around it.
    accepted = (bool,) if kind is bool else (str, int, float)
    if not isinstance(value, accepted) or (kind is bool) != isinstance(value, bool):
        raise TypeError
    if kind is int and isinstance(value, float):
        raise ValueError
    return kind(value)


def check(name: str, value: Any) -> None:
    """Raise `ConfigError` where a value of the right type is none that the setting may have."""
    if name in _LIMITS and not _LIMITS[name][0] <= value <= _LIMITS[name][1]:
        low, high = _LIMITS[name]
        raise ConfigError(f"{name} = {shown(value)}: must be between {low:g} and {high:g}")
    if name == "model" and not value:
        raise ConfigError("model is empty: give a Hugging Face id, a directory, or 'demo'")
    if name == "webhook" and value and not (value.startswith(("http://", "https://")) and host_of(value)):
        raise ConfigError("webhook is no http or https URL; it must look like https://chat.example/hook")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"{name} = {shown(value)}: must be one of {', '.join(_CHOICES[name])}")
    if name == "gpus" and value != "all" and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", value, re.ASCII):
        raise ConfigError(f"gpus = {shown(value)}: must be 'all' or numbers such as 0,1")
    if name == "device" and not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value, re.ASCII):
        near = difflib.get_close_matches(value.lower().replace("gpu", "cuda"), DEVICES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"device = {shown(value)}: {hint}it must be one of {', '.join(DEVICES)} or cuda:N")
    if name == "endpoint":
        endpoints(value)
    if name == "deadline" and value:
        moment(value, datetime.now().astimezone())
    texts = value if isinstance(value, tuple) else (str(value),) if isinstance(value, str | Path) else ()
    if any("\0" in text for text in texts):
        raise ConfigError(f"{name} holds a NUL character, which no path or name may")


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
