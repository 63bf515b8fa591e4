"""Settings: defaults < the user's file < ``etl.toml`` < ``ETL_*`` environment < command-line flags.

One flat, frozen `Settings`.  Every field can be given in file, environment and flags under the same name:
``per_host = 2`` in the file, ``ETL_PER_HOST=2`` in the environment, ``--per-host 2`` as a flag.
"""

import dataclasses
import json
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.errors import ConfigError
from etl.redaction import host_of, redact
from etl.setting_files import FOUND, HARMLESS, SettingFile, setting_files
from etl.setting_values import check, convert, endpoints, shown

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
        fetch_backend: what fetches: ``local``, this machine, or ``ray``, the nodes of a Ray cluster.
        decoders: decoder processes, on each node of a cluster; 0 means one for each core.
        decoder_memory: address space of one decoder process, in bytes.
        min_free: bytes of disk that fetch leaves free.
        max_cache_size: bytes that the image cache may take; 0 means no limit.
        model: Hugging Face id, local directory, or ``demo``.
        revision: branch, tag or commit of the model; the resolved commit goes into the recipe.
        dtype: ``auto`` (on a GPU bfloat16 for weights stored so, else float16; float32 on a CPU), ``float32``,
            ``float16`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ... or ``mps``; ``auto`` is a GPU if there is one.
        backend: what captions: ``local``, the model on this machine, ``openai``, OpenAI-compatible endpoints, or
            ``ray``, a Ray cluster.
        endpoint: where the endpoints are, such as http://gpu:8000/v1, with commas between them; all serve one model.
        endpoint_model: the model's name at the endpoints, where it is neither ``model`` nor the only one served.
        endpoint_concurrency: requests at once to one endpoint at most; how many it bears is found out.
        endpoint_timeout_s: seconds for an endpoint to give one caption.
        endpoint_patience_s: seconds for which all endpoints may fail, or no Ray node be there, before the run ends.
        ray_address: where the Ray cluster is: host:port, or ``auto`` on one of its nodes.
        ray_cpus: CPUs of each actor where the cluster captions without GPUs; 0 for one actor on each GPU.
        ray_timeout_s: seconds for which a captioning actor may finish nothing, a fetching one fall silent, before it is
            ended.
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
        deadline: when the run is to have ended, with what is left for a later one: a time (17:30), a date and time
            (2026-11-25T17:30, also with a zone) or a duration (90m, 2h30m, +2h).
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
    fetch_backend: str = "local"
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
    deadline: str = ""
    interval_s: float = 30.0
    metrics_port: int = 0
    metrics_address: str = "127.0.0.1"
    webhook: str = ""
    gpu_price: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field.name, getattr(self, field.name))
        # A flag gives each value as it was typed.
        object.__setattr__(self, "endpoint", endpoints(self.endpoint))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings that `to_json` gave, for another process.  Raises `ConfigError`."""
        kinds = typing.get_type_hints(cls)
        return cls(**{name: convert(name, value, kinds[name], "settings") for name, value in values.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values for another process of this run, whole but for the webhook."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        # Whoever knows a webhook's path may post to it, and no other process needs to.
        return plain | {"webhook": host_of(self.webhook) and f"https://{host_of(self.webhook)}/..."}

    def redacted(self) -> dict[str, Any]:
        """Return the settings as `to_json` does, for the run's row: addresses without what opens doors in them."""
        return {name: redact(value) for name, value in self.to_json().items()}


DASHBOARD = "dashboard"
"""The table of a settings file that belongs to the dashboard alone (`load_dashboard`)."""


@dataclass(frozen=True)
class Loaded:
    """The settings, and a line on each file that was read: what it has set."""

    settings: Settings
    lines: tuple[str, ...]


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    used: Iterable[str] | None = None,
) -> Settings:
    """Resolve the settings; see `load`."""
    return load(flags, file=file, environment=environment, used=used).settings


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    used: Iterable[str] | None = None,
) -> Loaded:
    """Resolve the settings; flags that are ``None`` count as not given.

    ``file`` must exist when named; without it ``etl.toml`` in the working directory is read if there is one.
    ``used`` are the settings that the command goes by; all, unless given.

    Raises `ConfigError` naming file or variable, key and what is accepted; also where a setting that the command goes
    by would be another, if a file that may be a stranger's had its way.
    """
    environment = os.environ if environment is None else environment
    given = _from_environment(environment) | {name: value for name, value in (flags or {}).items() if value is not None}
    obeyed: dict[str, tuple[SettingFile, Any]] = {}
    refused: dict[str, tuple[SettingFile, Any]] = {}
    files = setting_files(file, environment)
    for each in files:
        for name, value in _from_file(each).items():
            (refused if each.doubt and name not in HARMLESS else obeyed)[name] = (each, value)
            if not each.doubt:
                refused.pop(name, None)
    settings = Settings(**{name: value for name, (_, value) in obeyed.items()} | given)
    lost = [
        name for name, (_, value) in refused.items()
        if name not in given and (used is None or name in used) and value != getattr(settings, name)
    ]  # fmt: skip
    if lost:
        raise ConfigError(_refusal(refused[lost[0]][0], lost))
    told = settings.redacted()
    return Loaded(settings, tuple(
        _line(each.path, {name: told[name] for name in obeyed if obeyed[name][0] is each and name not in given})
        for each in files
    ))  # fmt: skip


def _refusal(file: SettingFile, names: list[str]) -> str:
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
    return (
        f"{file.path} {file.doubt}, so its {', '.join(names)} cannot count: if it is yours, add --config {file.path}; "
        f"else take that out of it, or give {flags} yourself"
    )


def _line(path: Path, told: Mapping[str, Any]) -> str:
    changed = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in told.items())
    return f"settings  {path}: {changed or 'nothing that counts'}"


def load_dashboard(file: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the dashboard's table of the configuration as it stands there, and the file that it is in.

    Raises `ConfigError` as `load_settings` does, and when it is no table.
    """
    files = setting_files(file, os.environ)
    tables = [(each.path, each.table[DASHBOARD]) for each in files if DASHBOARD in each.table]
    path, own = tables[-1] if tables else (FOUND, {})
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: {DASHBOARD} is not a table; write [{DASHBOARD}] and its settings below")
    return path, own


def _from_file(file: SettingFile) -> dict[str, Any]:
    kinds = typing.get_type_hints(Settings)
    table = {name: value for name, value in file.table.items() if name != DASHBOARD}
    for name in table:
        if name not in kinds:
            raise ConfigError(f"{file.path}: unknown setting {shown(name)}; known: {', '.join(sorted(kinds))}")
    return {name: convert(name, value, kinds[name], str(file.path)) for name, value in table.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the environment sets; an empty variable counts as not given, as `ETL_STATE=` is no directory."""
    kinds = typing.get_type_hints(Settings)
    found = {name: environment.get(f"ETL_{name.upper()}") for name in kinds}
    return {name: convert(name, value, kinds[name], f"ETL_{name.upper()}") for name, value in found.items() if value}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return value
