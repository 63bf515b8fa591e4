"""Whether the model that is to caption can be had and run here: libraries, GPU, weights, a trial of the GPU."""

import importlib.util
import json
import os
from collections.abc import Iterator
from typing import Any

from etl.caption.backends import check_model
from etl.errors import ChildEndedError, EtlError, ModelError
from etl.extras import require_model_libraries
from etl.gpu import allocator_environment
from etl.processes import ChildProcess
from etl.run.checks.check import Check, Verdict, failed
from etl.settings import Settings
from etl.units import size

TRIED_S = 300.0
"""Longest wait for the next finding of a GPU: a kernel that is compiled, a model's small files that are fetched."""


def libraries(settings: Settings) -> Check | None:
    """Return what is missing for captioning on this machine, ``None`` where nothing is.

    Where others caption, that is no hindrance.
    """
    try:
        require_model_libraries()
    except ModelError as error:
        return failed("torch", error, verdict="fail" if settings.backend == "local" else "note")
    return None


def device(settings: Settings) -> Check:
    """Say what captions: which GPUs, or why none; one that is there and cannot be used is a failure."""
    import torch

    from etl.caption.model.device import choose_device

    try:
        chosen = choose_device(settings.device, settings.model)
    except ModelError as error:
        return failed("gpu", error, verdict="fail" if settings.backend == "local" else "note")
    if chosen.type != "cuda":
        asked = "" if settings.device == "auto" else f"--device {settings.device}; "
        return Check("gpu", "note", f"{asked}torch {torch.__version__} uses none; captions are made on the CPU")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    shown = "; ".join(f"{n}: {gpu.name}, {size(gpu.total_memory)}" for n, gpu in enumerate(gpus))
    if importlib.util.find_spec("triton") is None:
        return Check("gpu", "note", f"{shown}; without Triton, so decoding reads more memory than it needs to")
    return Check("gpu", "ok", shown)


def weights(settings: Settings, *, net: bool) -> Check:
    """Say whether the model's weights are here, or how large they are, and whether they fit on the disk and the GPUs.

    The hub is asked only with ``net``.
    """
    from etl.caption.gpus.plan import chosen_gpus, fits_each
    from etl.caption.model.checkpoint import cached_checkpoint, find_checkpoint
    from etl.caption.model.hub_weights import is_here, weights_of
    from etl.caption.model.vetting import vet

    try:
        checkpoint = find_checkpoint(settings.model, settings.revision) if net else cached_checkpoint(settings)
        if checkpoint is None or not (net or is_here(checkpoint)):
            said = f"{settings.model} is not (wholly) in the local cache"
            return Check("weights", "note", said, "`etl doctor --net` asks the hub how large it is")
        vet(checkpoint)
        found = weights_of(checkpoint)
        found.require_room()
        memory = found.in_memory(settings.dtype)
        detail = f"{settings.model}: " + (
            f"{size(found.missing)} to be fetched, {size(found.free)} free for it" if found.missing else "here"
        )
        if gpus := chosen_gpus(settings) if memory else []:
            whole = fits_each(settings, gpus, memory)
            detail += f"; {size(memory)} in " + ("each GPU" if whole else f"{len(gpus)} GPUs together")
    except EtlError as error:
        return failed("weights", error)
    return Check("weights", "ok", detail)


def elsewhere(settings: Settings, *, net: bool) -> Check:
    """Say whether the endpoints or the cluster that are to caption answer; they are asked only with ``net``."""
    if not net:
        return Check("backend", "note", f"{settings.backend} was not asked", "`etl doctor --net` asks it")
    try:
        check_model(settings)
    except EtlError as error:
        return failed("backend", error)
    said = "vllm and its model can be had" if settings.backend == "vllm" else f"{settings.backend} answers"
    return Check("backend", "ok", said)


def trial(settings: Settings, to_do: int) -> Iterator[Check]:
    """Yield what is found on each of the GPUs that would caption; on the CPU only if that was asked for."""
    from etl.caption.gpus.plan import chosen_gpus

    gpus = chosen_gpus(settings)
    if not gpus and settings.device in ("auto", "cuda"):
        yield Check("gpu", "fail", "there is none to be tried; --device cpu tries what a CPU can run")
        return
    # Shared among the GPUs.
    share = -(-to_do // max(1, len(gpus)))
    for number, gpu in enumerate(gpus):
        environment = {"CUDA_VISIBLE_DEVICES": gpu.name, **allocator_environment(os.environ)}
        for name, verdict, detail in _findings(settings.to_json() | {"device": "cuda"}, share, environment):
            yield Check(f"gpu {number} {name}" if len(gpus) > 1 else name, verdict, detail)
    if not gpus:
        for name, verdict, detail in _findings(settings.to_json(), share, {}):
            yield Check(name, verdict, detail)


def _findings(
    settings: dict[str, Any], to_do: int, environment: dict[str, str]
) -> Iterator[tuple[str, Verdict, str]]:  # fmt: skip
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
