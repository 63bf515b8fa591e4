"""The settings of a run, one field each.

What a field says of itself (`setting`) is all there is to write for a new one: its flag, its ``ETL_*`` variable, its
key in ``etl.toml``, its checks and its line in docs/cli.md follow from that.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.domain.hints import DEFAULT_STATE
from etl.redaction import host_of, redact
from etl.settings.skip_flags import skip_flags
from etl.settings.template_arguments import template_arguments
from etl.settings.values import (
    BACKENDS,
    DTYPES,
    ENGINES,
    FETCH_BACKENDS,
    Group,
    Trust,
    deadline_text,
    device_name,
    endpoints,
    gpu_numbers,
    known,
    model_name,
    read,
    setting,
    webhook_url,
)
from etl.settings.vllm_arguments import vllm_arguments

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
DEMO_MODEL = "demo"
"""Names the tiny LLaVA that ships with the project wherever a model is asked for."""

PROFILES: Mapping[str, Mapping[str, Any]] = {
    "archive": {},
    "crawl": {"concurrency": 128, "per_host": 2, "host_patience": 60.0, "connect_timeout": 10.0, "max_attempts": 3},
}
"""Names for several settings at once, each of which can still be given."""

OWN, HARMLESS = Trust.OWN, Trust.HARMLESS

# The commands that go by a setting.
EVERY: tuple[str, ...] = ()
FETCH = ("fetch", "run")
NETWORK = ("ingest", *FETCH)
CAPTION = ("caption", "run")
WORK = ("fetch", "caption", "run")
MODEL = ("caption", "run", "doctor")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The resolved settings of one run; `values.known` tells of each field what it means."""

    # A table: a field is one entry.
    # fmt: off
    state: Path = setting(
        DEFAULT_STATE, EVERY, OWN, first=("ingest", "export", *WORK, "doctor"), value="DIR", short="-s",
        help="The state directory: database, image cache, logs.",
    )
    profile: str = setting(
        "archive", FETCH, HARMLESS, group=Group.HOSTS, choices=tuple(PROFILES),
        help="Which hosts there are: a few slow ones, or thousands (`crawl`): then, unless given, `concurrency` is "
        "128, `per_host` 2, `host_patience` 60 s, `connect_timeout` 10 s, `max_attempts` 3.",
    )
    concurrency: int = setting(
        16, FETCH, HARMLESS, group=Group.HOSTS, first=("fetch",), limits=(1, 256),
        help="Downloads at once, over all hosts.",
    )
    per_host: int = setting(
        4, FETCH, HARMLESS, group=Group.HOSTS, first=FETCH, limits=(1, 32), help="Downloads at once from one host."
    )
    host_rate: float = setting(
        0.0, NETWORK, OWN, group=Group.HOSTS, first=("fetch",), limits=(0, 1000),
        help="Requests per second to one host at most; 0 means no limit but what the host itself makes necessary.",
    )
    host_patience: float = setting(
        900.0, FETCH, HARMLESS, group=Group.HOSTS, unit="s", limits=(1, 7 * 86400), former="host_patience_s",
        help="How long a host may fail every request before what is left of it is given up.",
    )
    respect_robots: bool = setting(False, FETCH, OWN, group=Group.HOSTS, help="Obey each host's robots.txt.")
    connect_timeout: float = setting(
        15.0, FETCH, HARMLESS, group=Group.NETWORK, unit="s", limits=(0.05, 3600), former="connect_timeout_s",
        help="Longest wait for a connection.",
    )
    read_timeout: float = setting(
        60.0, FETCH, HARMLESS, group=Group.NETWORK, unit="s", limits=(0.05, 3600), former="read_timeout_s",
        help="Longest wait for the next byte of a download.",
    )
    min_rate: int = setting(
        4096, FETCH, HARMLESS, group=Group.NETWORK, unit="bytes/s", limits=(0, 1e12),
        help="What a download must reach on average; with the size it gives the deadline.",
    )
    max_bytes: int = setting(
        512 * 1024**2, FETCH, OWN, group=Group.PICTURES, unit="bytes", limits=(1, 1e12), help="Largest original."
    )
    max_pixels: int = setting(
        400_000_000, FETCH, OWN, group=Group.PICTURES, unit="pixels", limits=(1, 1e10), help="Largest accepted picture."
    )
    accept_truncated: float = setting(
        1.0, FETCH, HARMLESS, group=Group.PICTURES, limits=(0, 1), value="PART",
        help="Accept a picture that is cut short if it has this part of its pixels, such as 0.9.",
    )
    max_attempts: int = setting(
        5, WORK, HARMLESS, limits=(1, 100), help="Attempts before a retryable failure is final."
    )
    backoff: float = setting(
        5.0, FETCH, HARMLESS, group=Group.NETWORK, unit="s", limits=(0, 86400), former="backoff_s",
        help="Wait before the second attempt; doubles with each further one, with jitter.",
    )
    backoff_cap: float = setting(
        600.0, FETCH, HARMLESS, group=Group.NETWORK, unit="s", limits=(0, 7 * 86400), former="backoff_cap_s",
        help="Longest wait between attempts that we choose ourselves.",
    )
    contact: str = setting(
        "", NETWORK, HARMLESS, group=Group.NETWORK, first=("fetch",), value="ADDRESS",
        help="Address put into the User-Agent, so that a host's operator can reach you.",
    )
    allow_host: tuple[str, ...] = setting(
        (), NETWORK, OWN, group=Group.NETWORK, first=("fetch",), value="HOST",
        help="Hosts that may be dialled although their address is private or loopback.",
    )
    allow_path: tuple[str, ...] = setting(
        (), FETCH, OWN, group=Group.PICTURES, value="DIR",
        help="Directories whose pictures a manifest may name, beside the one that the manifest lies in.",
    )
    rewrite_url: tuple[str, ...] = setting(
        (), FETCH, OWN, group=Group.NETWORK, value="REGEX=TEXT",
        help="REGEX=REPLACEMENT, where else a picture may lie, made from its URL; can be given more than once.",
    )
    mirror_template: str = setting(
        "", FETCH, OWN, group=Group.NETWORK, first=("fetch",), value="URL",
        help="Where else a picture may lie, made from its record: https://store.example/{field}.",
    )
    prefer_mirror: bool = setting(False, FETCH, OWN, group=Group.NETWORK, help="Ask mirrors before a record's URL.")
    url_identity: bool = setting(
        False, ("ingest", "run"), OWN, group=Group.MANIFEST,
        help="Take URLs for one picture that differ in their signature alone (X-Amz-..., Signature, sig, token, ...).",
    )
    longest_edge: int = setting(
        1024, FETCH, HARMLESS, group=Group.PICTURES, unit="pixels", limits=(32, 16384),
        help="Longest edge of the working copies, in pixels.",
    )
    iiif_size: int = setting(
        0, FETCH, HARMLESS, group=Group.PICTURES, unit="pixels", limits=(0, 1e6),
        help="Longest edge in which IIIF image services are asked for pictures; 0 means that of the working copies.",
    )
    keep_originals: bool = setting(
        False, FETCH, HARMLESS, group=Group.PICTURES, first=("fetch",),
        help="Keep the original bytes in the cache beside the working copy.",
    )
    fetch_backend: str = setting(
        "local", FETCH, OWN, group=Group.CLUSTER, choices=FETCH_BACKENDS, also={"fetch": "--backend"},
        help="What fetches: `local`, this machine, or `ray`, the nodes of a Ray cluster.",
    )
    decoders: int = setting(
        0, FETCH, HARMLESS, group=Group.PICTURES, limits=(0, 256),
        help="Decoder processes, on each node of a cluster; 0 means one for each core.",
    )
    decoder_memory: int = setting(
        4 * 1024**3, FETCH, OWN, group=Group.PICTURES, unit="bytes", limits=(256 * 1024**2, 1e12),
        help="Address space of one decoder process.",
    )
    min_free: int = setting(
        256 * 1024 * 1024, FETCH, OWN, group=Group.PICTURES, unit="bytes", limits=(0, 1e15),
        help="Disk that fetch leaves free.",
    )
    max_cache_size: int = setting(
        0, (*FETCH, "gc"), OWN, group=Group.PICTURES, first=FETCH, unit="bytes", limits=(0, 1e15),
        help="What the image cache may take; 0 means no limit.",
    )
    model: str = setting(
        DEFAULT_MODEL, MODEL, OWN, group=Group.MODEL, first=MODEL, short="-m", clean=model_name,
        help="Hugging Face id, local directory, or `demo`.",
    )
    revision: str = setting(
        "main", MODEL, OWN, group=Group.MODEL,
        help="Branch, tag or commit of the model; the resolved commit goes into the recipe.",
    )
    dtype: str = setting(
        "auto", MODEL, HARMLESS, group=Group.MODEL, first=("caption",), choices=DTYPES,
        help="`auto` (on a GPU bfloat16 for weights stored so, else float16; float32 on a CPU), `float32`, `float16` or"
        " `bfloat16`.",
    )
    device: str = setting(
        "auto", MODEL, HARMLESS, group=Group.MODEL, first=("caption", "doctor"), value="DEVICE", clean=device_name,
        help="`auto`, `cpu`, `cuda`, `cuda:1`, ... or `mps`; `auto` is a GPU if there is one.",
    )
    backend: str = setting(
        "local", MODEL, OWN, group=Group.CLUSTER, first=("caption",), choices=BACKENDS,
        help="What captions: this machine (`local`), a vLLM of its own (`vllm`), endpoints (`openai`) or a cluster "
        "(`ray`).",
    )
    endpoint: tuple[str, ...] = setting(
        (), MODEL, OWN, group=Group.CLUSTER, first=MODEL, value="URL", clean=endpoints,
        help="Where the endpoints are, such as http://gpu:8000/v1, with commas between them; all serve one model.",
    )
    endpoint_model: str = setting(
        "", CAPTION, OWN, group=Group.CLUSTER,
        help="The model's name at the endpoints, where it is neither `model` nor the only one served.",
    )
    endpoint_concurrency: int = setting(
        64, CAPTION, HARMLESS, group=Group.CLUSTER, limits=(1, 1024),
        help="Requests at once to one endpoint at most; how many it bears is found out.",
    )
    endpoint_timeout: float = setting(
        300.0, CAPTION, HARMLESS, group=Group.CLUSTER, unit="s", limits=(0.05, 86400), former="endpoint_timeout_s",
        help="Longest wait for one caption of an endpoint.",
    )
    endpoint_patience: float = setting(
        600.0, WORK, HARMLESS, group=Group.CLUSTER, unit="s", limits=(0.05, 7 * 86400), former="endpoint_patience_s",
        help="How long all endpoints may fail, or no Ray node be there, before the run ends.",
    )
    vllm: str = setting(
        "vllm", MODEL, OWN, group=Group.CLUSTER, value="PATH", help="The program `vllm`, or its environment.",
    )
    vllm_arg: tuple[str, ...] = setting(
        (), CAPTION, OWN, group=Group.CLUSTER, value="NAME=VALUE", clean=vllm_arguments,
        help="For `vllm serve`, such as tensor-parallel-size=2 or quantization=fp8; can be given more than once.",
    )
    ray_address: str = setting(
        "", WORK, OWN, group=Group.CLUSTER, value="HOST:PORT",
        help="Where the Ray cluster is: host:port, or `auto` on one of its nodes.",
    )
    ray_cpus: int = setting(
        0, CAPTION, HARMLESS, group=Group.CLUSTER, limits=(0, 1024),
        help="CPUs of each actor where the cluster captions without GPUs; 0 for one actor on each GPU.",
    )
    ray_timeout: float = setting(
        900.0, WORK, HARMLESS, group=Group.CLUSTER, unit="s", limits=(0.05, 86400), former="ray_timeout_s",
        help="How long a captioning actor may finish nothing, a fetching one fall silent, before it is ended.",
    )
    insecure: bool = setting(
        False, WORK, OWN, group=Group.CLUSTER,
        help="Send the endpoints' key over plain http to public hosts too; join a Ray cluster that takes anybody.",
    )
    engine: str = setting(
        "auto", CAPTION, HARMLESS, group=Group.MODEL, choices=ENGINES,
        help="`slots` (continuous batching), `generate` (transformers' own), or `auto`: slots where the model can.",
    )
    slots: int = setting(
        0, MODEL, HARMLESS, group=Group.MODEL, limits=(0, 4096),
        help="Captions written at once by the slot engine; 0 means as many as the memory holds.",
    )
    gpu_memory_fraction: float = setting(
        0.92, MODEL, HARMLESS, group=Group.MODEL, limits=(0.05, 1), help="Share of a GPU's memory that may be used.",
    )
    gpus: str = setting(
        "all", MODEL, HARMLESS, group=Group.MODEL, first=("caption", "doctor"), value="LIST", clean=gpu_numbers,
        help="Which GPUs to use: `all`, or numbers such as 0,1; each has a process of its own.",
    )
    feeders: int = setting(
        0, CAPTION, HARMLESS, group=Group.MODEL, limits=(0, 64),
        help="Processes that open pictures for each GPU; 0 means as many as it takes.",
    )
    batch_size: int = setting(
        16, CAPTION, HARMLESS, group=Group.GENERATION, first=("caption",), limits=(1, 4096),
        help="Pictures captioned together by `generate`, and captions committed together; halved when memory runs out.",
    )
    max_new_tokens: int = setting(
        200, MODEL, HARMLESS, group=Group.GENERATION, first=("caption",), unit="tokens", limits=(1, 4096),
        help="Longest caption, in tokens.",
    )
    pad_to_square: bool = setting(
        False, CAPTION, HARMLESS, group=Group.GENERATION,
        help="Pad pictures to a square, as the original LLaVA did, where its Hugging Face version cuts the sides off.",
    )
    max_aspect: float = setting(
        4.0, CAPTION, HARMLESS, group=Group.GENERATION, limits=(1, 1000),
        help="Pictures longer than this ratio are cropped around their centre for models that see one shape alone.",
    )
    model_min_pixels: int = setting(
        0, CAPTION, HARMLESS, group=Group.GENERATION, unit="pixels", limits=(0, 1e8),
        help="Make pictures at least so large for a model that sees them in any size; 0 leaves it to the model.",
    )
    model_max_pixels: int = setting(
        0, CAPTION, HARMLESS, group=Group.GENERATION, unit="pixels", limits=(0, 1e8),
        help="Make pictures at most so large for such a model, which takes less time; 0 leaves it to the model.",
    )
    chat_template_arg: tuple[str, ...] = setting(
        (), CAPTION, OWN, group=Group.GENERATION, value="NAME=VALUE", clean=template_arguments,
        help="For the model's chat template, such as enable_thinking=false; can be given more than once.",
    )
    skip_flag: tuple[str, ...] = setting(
        (), CAPTION, HARMLESS, group=Group.PICTURES, first=("caption",), value="FLAG", clean=skip_flags,
        help="Do not caption pictures with such a flag: `blank`, `pages`, `placeholder`, `tiny`, `truncated`.",
    )
    native_prompt: str = setting(
        "", CAPTION, OWN, group=Group.GENERATION,
        help="What a captioner without a chat template is asked for every picture: `<CAPTION>`, `caption en`, ...",
    )
    deadline: str = setting(
        "", WORK, HARMLESS, first=WORK, value="WHEN", clean=deadline_text,
        help="When the run is to have ended; a later one does the rest: 17:30, 2026-11-25T17:30, or 90m from now.",
    )
    interval: float = setting(
        30.0, ("ingest", *WORK), HARMLESS, group=Group.OBSERVATION, unit="s", limits=(0.1, 3600), former="interval_s",
        help="Time between plain progress lines when there is no terminal.",
    )
    metrics_port: int = setting(
        0, WORK, OWN, group=Group.OBSERVATION, value="PORT", limits=(0, 65535),
        help="Serve metrics for Prometheus at this port while a run lasts; 0 for none.",
    )
    metrics_address: str = setting(
        "127.0.0.1", WORK, OWN, group=Group.OBSERVATION, value="ADDRESS",
        help="Address to serve them at; 0.0.0.0 lets other machines ask.",
    )
    webhook: str = setting(
        "", WORK, OWN, group=Group.OBSERVATION, value="URL", clean=webhook_url,
        help="URL that gets one JSON message when a run has ended.",
    )
    gpu_price: float = setting(
        0.0, (*MODEL, "dashboard"), HARMLESS, group=Group.OBSERVATION, limits=(0, 1e6),
        help="What the machine costs per hour, in any money, to tell what the work has cost; 0 means not known.",
    )
    # fmt: on

    def __post_init__(self) -> None:
        for name, one in known(type(self)).items():
            object.__setattr__(self, name, one.accepted(getattr(self, name)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings that `to_json` gave, for another process.  Raises `ConfigError`."""
        return cls(**read(values, known(cls), "settings"))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values for another process of this run, whole but for the webhook."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        # Whoever knows a webhook's path may post to it, and no other process needs to.
        return plain | {"webhook": host_of(self.webhook) and f"https://{host_of(self.webhook)}/..."}

    def redacted(self) -> dict[str, Any]:
        """Return the settings as `to_json` does, for the run's row: addresses without what opens doors in them."""
        return {name: redact(value) for name, value in self.to_json().items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
