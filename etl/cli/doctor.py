"""What ``etl doctor`` looks at."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import sqlite3
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from etl.errors import ChildEndedError, ModelError, StateError
from etl.gpu import allocator_environment
from etl.open_files import LEAST
from etl.processes import ChildProcess
from etl.redaction import redact_url
from etl.settings import Settings
from etl.state.file_systems import file_system_of, is_shared
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader

Verdict = Literal["ok", "note", "fail"]

_PACKAGES = ("torch", "transformers", "pillow", "httpx", "sqlite-utils", "textual")

FIXED_SQLITE = (3, 51, 3)
"""First version without the WAL-reset fault, which takes two connections that write or checkpoint at once."""


TRIED_S = 300.0
"""Longest wait for the next finding of a GPU: a kernel that is compiled, a model's small files that are fetched."""


@dataclass(frozen=True)
class Check:
    """One finding; ``verdict`` says whether work can go on."""

    name: str
    verdict: Verdict
    detail: str


def checks(settings: Settings, *, gpu: bool = False) -> Iterator[Check]:
    """Yield the findings, one by one as they are made; with ``gpu`` also what is tried on each GPU."""
    good = sys.version_info >= (3, 11)
    yield Check("python", "ok" if good else "note", f"{platform.python_version()} on {platform.platform()}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    yield Check("packages", "ok", versions)
    yield _sqlite()
    yield _disk(settings)
    yield _files(settings)
    yield _proxy()
    device = _device(settings)
    yield device
    if gpu and device.verdict != "fail":
        yield from _tried(settings)


def _sqlite() -> Check:
    if sqlite3.sqlite_version_info < (3, 37):
        return Check("sqlite", "fail", f"{sqlite3.sqlite_version}; STRICT tables need 3.37")
    if sqlite3.sqlite_version_info < FIXED_SQLITE:
        detail = f"{sqlite3.sqlite_version}; older than 3.51.3: safe, because only one process writes a state"
        return Check("sqlite", "ok", detail)
    return Check("sqlite", "ok", sqlite3.sqlite_version)


def _disk(settings: Settings) -> Check:
    place = settings.state.absolute()
    while not place.exists():
        place = place.parent
    kind, free = file_system_of(place), shutil.disk_usage(place).free
    detail = f"{settings.state} on {kind or 'an unknown file system'}, {free / 2**30:.1f} GiB free"
    if is_shared(kind):
        return Check("disk", "fail", f"{detail}; a file system that others share cannot hold a state")
    if settings.state.exists() and settings.state.stat().st_mode & 0o022:
        return Check("disk", "note", f"{detail}; other users may write to it: `chmod go-w {settings.state}`")
    return Check("disk", "ok" if free > settings.min_free else "fail", detail)


def _files(settings: Settings) -> Check:
    # Sockets, pipes to children, and what the program itself has open.
    children = (settings.decoders or os.cpu_count() or 1) + settings.feeders
    wanted = LEAST + 2 * (settings.concurrency + children)
    wanted += settings.endpoint_concurrency * len(settings.endpoint)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < wanted:
        return Check("files", "note", f"{limit} may be open, these settings may need {wanted}: raise `ulimit -n`")
    return Check("files", "ok", f"{limit} may be open")


def _proxy() -> Check:
    proxies = {scheme: url for scheme, url in urllib.request.getproxies().items() if scheme in ("http", "https", "all")}
    if not proxies:
        return Check("proxy", "ok", "none; private addresses are refused")
    # Without a scheme, as curl takes it, `me:secret@proxy` would not look like a URL.
    whole = {scheme: url if "://" in url else f"http://{url}" for scheme, url in proxies.items()}
    shown = ", ".join(f"{scheme}: {redact_url(url)}" for scheme, url in whole.items())
    return Check("proxy", "note", f"{shown}; the proxy resolves names, so private addresses are not refused")


def _device(settings: Settings) -> Check:
    import torch

    from etl.caption.model.device import choose_device

    try:
        device = choose_device(settings.device, settings.model)
    except ModelError as error:
        # Where others caption, it is no hindrance.
        return Check("gpu", "fail" if settings.backend == "local" else "note", str(error))
    if device.type != "cuda":
        asked = "" if settings.device == "auto" else f"--device {settings.device}; "
        return Check("gpu", "note", f"{asked}torch {torch.__version__} uses none; captions are made on the CPU")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    shown = "; ".join(f"{n}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for n, gpu in enumerate(gpus))
    if importlib.util.find_spec("triton") is None:
        return Check("gpu", "note", f"{shown}; without Triton, so decoding reads more memory than it needs to")
    return Check("gpu", "ok", shown)


def _tried(settings: Settings) -> Iterator[Check]:
    """Yield what is found on each of the GPUs that would caption; on the CPU only if that was asked for."""
    from etl.caption.gpus.plan import chosen_gpus

    gpus = chosen_gpus(settings)
    if not gpus and settings.device in ("auto", "cuda"):
        yield Check("gpu", "fail", "there is none to be tried; --device cpu tries what a CPU can run")
        return
    # Shared among the GPUs.
    to_do = -(-_to_do(settings) // max(1, len(gpus)))
    for number, gpu in enumerate(gpus):
        environment = {"CUDA_VISIBLE_DEVICES": gpu.name, **allocator_environment(os.environ)}
        for name, verdict, detail in _findings(settings.to_json() | {"device": "cuda"}, to_do, environment):
            yield Check(f"gpu {number} {name}" if len(gpus) > 1 else name, verdict, detail)
    if not gpus:
        for name, verdict, detail in _findings(settings.to_json(), to_do, {}):
            yield Check(name, verdict, detail)


def _findings(settings: dict[str, Any], to_do: int, environment: dict[str, str]) -> Iterator[tuple[str, Verdict, str]]:
    """Yield what a process finds that is started as one that captions; a GPU that fails takes only that one along."""
    config = {"settings": settings, "to_do": to_do}
    child = ChildProcess("etl.caption.gpus.report:main", config, name="trial", env=environment)
    try:
        while child.poll(TRIED_S):
            finding = json.loads(child.recv())
            if finding is None:
                return
            yield finding["name"], finding["verdict"], finding["detail"]
        yield "gpu", "fail", f"nothing was heard of it for {TRIED_S:.0f} s"
    except ChildEndedError:
        yield "gpu", "fail", f"the process that tried it ended: {child.how_it_ended()}"
    finally:
        child.discard()


def _to_do(settings: Settings) -> int:
    """Return the records of the state at hand that still want a caption."""
    try:
        with Reader(settings.state) as reader:
            return read_progress(reader).outcomes.get("pending", 0)
    except StateError:
        return 0
