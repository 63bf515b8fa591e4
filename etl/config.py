"""Settings: defaults < ``etl.toml`` < ``ETL_*`` environment < command-line flags.

One flat, frozen `Settings`.  Every field can be given in all three places under the same name:
``per_host = 2`` in the file, ``ETL_PER_HOST=2`` in the environment, ``--per-host 2`` as a flag.
"""

import dataclasses
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from etl.errors import ConfigError

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
DEMO_MODEL = "demo"
"""Names the tiny LLaVA that ships with the project wherever a model is asked for."""


@dataclass(frozen=True)
class Settings:
    """The resolved settings of one run.

    Attributes:
        state: the state directory: database, image cache, logs.
        concurrency: downloads at once, over all hosts (at most 32: httpx slows down beyond that).
        per_host: downloads at once from one host.
        host_rate: requests per second to one host at most; 0 means no limit but what the host itself makes necessary.
        host_patience_s: seconds for which a host may fail every request before what is left of it is given up.
        respect_robots: obey each host's robots.txt.
        connect_timeout_s: seconds to connect.
        read_timeout_s: seconds without a byte before a download is given up.
        min_rate: bytes per second that a download must reach on average; with the size it gives the deadline.
        max_bytes: largest accepted original, in bytes.
        max_pixels: largest accepted picture, in pixels.
        max_attempts: attempts before a retryable failure is final.
        backoff_s: wait before the second attempt, in seconds; doubles with each further one, with jitter.
        backoff_cap_s: longest wait between attempts that we choose ourselves, in seconds.
        contact: address put into the User-Agent, so that a host's operator can reach you.
        allow_host: hosts that may be dialled although their address is private or loopback.
        allow_path: directories whose pictures a manifest may name, beside the one that the manifest lies in.
        rewrite_url: REGEX=REPLACEMENT, where else a picture may lie, made from its URL; can be given more than once.
        mirror_template: where else a picture may lie, made from its record: https://store.example/{field}.
        prefer_mirror: ask the mirrors before the URL of the record.
        longest_edge: longest edge of the working copies, in pixels.
        keep_originals: keep the original bytes in the cache beside the working copy.
        decoders: decoder processes; 0 means one for each core.
        decoder_memory: address space of one decoder process, in bytes.
        min_free: bytes of disk that fetch leaves free.
        max_cache_size: bytes that the image cache may take; 0 means no limit.
        model: Hugging Face id, local directory, or ``demo``.
        revision: branch, tag or commit of the model; the resolved commit goes into the recipe.
        dtype: ``auto`` (float16 on a GPU, float32 on a CPU), ``float32``, ``float16`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        backend: what captions: ``local``, the model on this machine, ``openai``, OpenAI-compatible endpoints, or
            ``ray``, a Ray cluster.
        endpoint: where the endpoints are, such as http://gpu:8000/v1, with commas between them; all serve one model.
        endpoint_model: the model's name at the endpoints, where it is neither ``model`` nor the only one served.
        endpoint_concurrency: requests at once to one endpoint at most; how many it bears is found out.
        endpoint_timeout_s: seconds for an endpoint to give one caption.
        endpoint_patience_s: seconds for which all endpoints may fail, or no Ray node be there, before the run ends.
        ray_address: where the Ray cluster is: host:port, ray://host:port, or ``auto`` on one of its nodes.
        ray_cpus: CPUs of each actor where the cluster captions without GPUs; 0 for one actor on each GPU.
        ray_timeout_s: seconds for which an actor may finish nothing before it is ended.
        insecure: send the endpoints' key over plain http to public hosts too; join a Ray cluster that takes anybody.
        engine: ``slots`` (continuous batching), ``generate`` (transformers' own), or ``auto``: slots where the model
            allows it.
        slots: captions written at once by the slot engine; 0 means as many as the memory holds.
        gpu_memory_fraction: share of a GPU's memory that may be used.
        gpus: which GPUs to use: ``all``, or numbers such as 0,1; each has a process of its own.
        feeders: processes that open pictures for each GPU; 0 means as many as it takes.
        batch_size: pictures captioned together by ``generate``, and captions committed together; halved when memory
            runs out.
        max_new_tokens: longest caption, in tokens.
        pad_to_square: pad pictures to a square, as the original LLaVA did, where its Hugging Face version cuts the
            sides off.
        max_aspect: pictures longer than this ratio are cropped around their centre before the model sees them.
        interval_s: seconds between plain progress lines when there is no terminal.
        metrics_port: serve metrics for Prometheus at this port while a run lasts; 0 for none.
        metrics_address: address to serve them at; 0.0.0.0 lets other machines ask.
        webhook: URL that gets one JSON message when a run has ended.
        gpu_price: what the machine costs per hour, in any money, to tell what the work has cost; 0 means not known.
    """

    state: Path = Path("state")
    concurrency: int = 16
    per_host: int = 4
    host_rate: float = 0.0
    host_patience_s: float = 900.0
    respect_robots: bool = False
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0
    min_rate: int = 4096
    max_bytes: int = 512 * 1024 * 1024
    max_pixels: int = 400_000_000
    max_attempts: int = 5
    backoff_s: float = 5.0
    backoff_cap_s: float = 600.0
    contact: str = ""
    allow_host: tuple[str, ...] = ()
    allow_path: tuple[str, ...] = ()
    rewrite_url: tuple[str, ...] = ()
    mirror_template: str = ""
    prefer_mirror: bool = False
    longest_edge: int = 1024
    keep_originals: bool = False
    decoders: int = 0
    decoder_memory: int = 4 * 1024**3
    min_free: int = 256 * 1024 * 1024
    max_cache_size: int = 0
    model: str = DEFAULT_MODEL
    revision: str = "main"
    dtype: str = "auto"
    device: str = "auto"
    backend: str = "local"
    endpoint: tuple[str, ...] = ()
    endpoint_model: str = ""
    endpoint_concurrency: int = 64
    endpoint_timeout_s: float = 300.0
    endpoint_patience_s: float = 600.0
    ray_address: str = ""
    ray_cpus: int = 0
    ray_timeout_s: float = 900.0
    insecure: bool = False
    engine: str = "auto"
    slots: int = 0
    gpu_memory_fraction: float = 0.92
    gpus: str = "all"
    feeders: int = 0
    batch_size: int = 16
    max_new_tokens: int = 200
    pad_to_square: bool = False
    max_aspect: float = 4.0
    interval_s: float = 30.0
    metrics_port: int = 0
    metrics_address: str = "127.0.0.1"
    webhook: str = ""
    gpu_price: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name))
        # A flag gives each value as it was typed.
        object.__setattr__(self, "endpoint", _endpoints(self.endpoint))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings that `to_json` gave, for another process.  Raises `ConfigError`."""
        kinds = typing.get_type_hints(cls)
        return cls(**{name: _convert(name, value, kinds[name], "settings") for name, value in values.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values for another process of this run, whole but for the webhook."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        # Whoever knows a webhook's path may post to it, and no other process needs to.
        return plain | {"webhook": host_of(self.webhook) and f"https://{host_of(self.webhook)}/..."}

    def redacted(self) -> dict[str, Any]:
        """Return the settings as `to_json` does, for the run's row: addresses without what opens doors in them."""
        return {name: redact(value) for name, value in self.to_json().items()}


BACKENDS = ("local", "openai", "ray")

ENGINES = ("auto", "slots", "generate")

DTYPES = ("auto", "float32", "float16", "bfloat16")

_CHOICES = {"dtype": DTYPES, "backend": BACKENDS, "engine": ENGINES}

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


def _check(name: str, value: Any) -> None:
    """Raise `ConfigError` where a value of the right type is none that the setting may have."""
    if name in _LIMITS and not _LIMITS[name][0] <= value <= _LIMITS[name][1]:
        low, high = _LIMITS[name]
        raise ConfigError(f"{name} = {_shown(value)}: must be between {low:g} and {high:g}")
    if name == "model" and not value:
        raise ConfigError("model is empty: give a Hugging Face id, a directory, or 'demo'")
    if name == "webhook" and value and not (value.startswith(("http://", "https://")) and host_of(value)):
        raise ConfigError("webhook is no http or https URL; it must look like https://chat.example/hook")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"{name} = {_shown(value)}: must be one of {', '.join(_CHOICES[name])}")
    if name == "gpus" and value != "all" and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", value, re.ASCII):
        raise ConfigError(f"gpus = {_shown(value)}: must be 'all' or numbers such as 0,1")
    if name == "endpoint":
        _endpoints(value)
    texts = value if isinstance(value, tuple) else (str(value),) if isinstance(value, str | Path) else ()
    if any("\0" in text for text in texts):
        raise ConfigError(f"{name} holds a NUL character, which no path or name may")


def _shown(value: object) -> str:
    """Return a value for an error message: no longer than a line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


MAX_SHOWN = 100
"""Characters of a wrong value in an error message."""

DASHBOARD = "dashboard"
"""The table of ``etl.toml`` that belongs to the dashboard alone (`load_dashboard`)."""


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Resolve the settings; flags that are ``None`` count as not given.

    ``file`` must exist when named; without it ``etl.toml`` in the working directory is read if there is one.
    Raises `ConfigError` naming file or variable, key and what is accepted.
    """
    environment = os.environ if environment is None else environment
    values = _from_file(file) | _from_environment(environment)
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    return Settings(**values)


def redact_url(url: str) -> str:
    """Return the URL without user name, password, query values and fragment, for logs and stored errors.

    What is no URL stays as it is; of a URL that cannot be taken to pieces only the scheme is left.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme[0]}..."
    if not (parts.query or parts.fragment or "@" in parts.netloc):
        return url
    # A query without names, as in `?c2VjcmV0`, is one value.
    query = "&".join(pair.split("=")[0] + "=..." if "=" in pair else "..." for pair in parts.query.split("&") if pair)
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=netloc, query=query, fragment="..." if parts.fragment else ""))


def redact_text(text: str) -> str:
    """Return the text with every http(s) URL in it as `redact_url` gives it, also one that is part of another."""
    if "://" not in text:
        return text
    return _USER.sub("://", _URL.sub(lambda match: redact_url(match[0]), text))


def redact(value: Any) -> Any:
    """Return plain values with every URL in their texts as `redact_url` gives it."""
    if isinstance(value, dict):
        return {key: redact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redact(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # A text that is one URL may hold quotes and backslashes, which end one in prose.
    return redact_text(redact_url(value) if _ONE_URL.fullmatch(value) else value)


def redact_line(line: str) -> str:
    """Return a manifest line with every URL redacted; as values, for JSON can spell one in many ways."""
    try:
        return json.dumps(redact(json.loads(line)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return redact_text(line)


_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")

_ONE_URL = re.compile(r"\s*https?://\S*\s*", re.IGNORECASE)

_USER = re.compile(r"://[^/?#@\s\"]+@")

_URL = re.compile(r"https?://[^\s\"'<>\\]+", re.IGNORECASE)
"""Up to a quote, a bracket or a backslash: in JSON and in error messages URLs end there."""


def _endpoints(values: tuple[str, ...]) -> tuple[str, ...]:
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


def host_of(url: str) -> str:
    """Return the host of a URL; empty where it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def load_dashboard(file: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the dashboard's table of the configuration as it stands there, and the file that was looked at.

    Raises `ConfigError` as `load_settings` does, and when it is no table.
    """
    path, table = _read(file)
    own = table.get(DASHBOARD, {})
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: {DASHBOARD} is not a table; write [{DASHBOARD}] and its settings below")
    return path, own


def _read(file: Path | None) -> tuple[Path, dict[str, Any]]:
    path = file or Path("etl.toml")
    if file is None and not path.exists():
        return path, {}
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    # Not only `tomllib.TOMLDecodeError`: numbers and nesting may be more than Python itself reads.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _from_file(file: Path | None) -> dict[str, Any]:
    path, table = _read(file)
    table.pop(DASHBOARD, None)
    kinds = typing.get_type_hints(Settings)
    for name in table:
        if name not in kinds:
            raise ConfigError(f"{path}: unknown setting {_shown(name)}; known: {', '.join(sorted(kinds))}")
    return {name: _convert(name, value, kinds[name], str(path)) for name, value in table.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the environment sets; an empty variable counts as not given, as `ETL_STATE=` is no directory."""
    kinds = typing.get_type_hints(Settings)
    found = {name: environment.get(f"ETL_{name.upper()}") for name in kinds}
    return {name: _convert(name, value, kinds[name], f"ETL_{name.upper()}") for name, value in found.items() if value}


def _convert(name: str, value: Any, kind: Any, where: str) -> Any:
    """Return a value from file, environment or JSON as the setting's type.  Raises `ConfigError` naming ``where``."""
    try:
        converted = _converted(value, kind)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        wanted = "list of texts" if isinstance(kind, types.GenericAlias) else kind.__name__
        raise ConfigError(f"{where}: {name} = {_shown(value)} is not a valid {wanted}") from error
    try:
        _check(name, converted)
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


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return value
