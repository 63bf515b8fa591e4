"""Which GPUs caption: one process for each, or one process over several where the model is larger than a card."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from etl.captioning.checkpoint import find_checkpoint
from etl.captioning.model_files import tensor_sizes
from etl.config import Settings
from etl.errors import ModelError
from etl.gpu import memory_totals

log = logging.getLogger(__name__)

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

_BESIDE_WEIGHTS = 0.85
"""Share of a card that weights may take: without room for the captions themselves they are of no use."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One captioning process.

    Attributes:
        device: that it is told to use.
        visible: what it sees as its GPUs, for ``CUDA_VISIBLE_DEVICES``; ``None`` to leave that as it is.
        spread: whether the model's layers are to be divided among all that it sees.
    """

    device: str
    visible: str | None = None
    spread: bool = False


def plan_workers(settings: Settings) -> list[WorkerPlan]:
    """Return the processes that are to caption; none where it is done on the CPU, in this process.

    Raises `ModelError` for a GPU that is not there, or a model that is larger than all of them.
    """
    gpus = chosen_gpus(settings)
    if not gpus:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [visible[gpu] if gpu < len(visible) and visible[gpu] else str(gpu) for gpu in gpus]
    checkpoint = find_checkpoint(settings.model, settings.revision)
    checkpoint.with_weights()
    needed = weight_bytes(checkpoint.folder, settings.dtype)
    totals = memory_totals()
    room = [round(totals[gpu] * settings.gpu_memory_fraction * _BESIDE_WEIGHTS) for gpu in gpus if gpu in totals]
    if len(room) == len(gpus) and needed > min(room):
        if needed > sum(room):
            raise ModelError(
                f"{settings.model} takes {needed / 2**30:.1f} GiB, more than the GPUs have room for "
                f"({sum(room) / 2**30:.1f} GiB); use more GPUs, a smaller --dtype or a smaller model"
            )
        log.warning("%s is larger than one GPU; dividing it among %d", settings.model, len(gpus))
        return [WorkerPlan("cuda", ",".join(names), spread=True)]
    return [WorkerPlan("cuda", name) for name in names]


def chosen_gpus(settings: Settings) -> list[int]:
    """Return the numbers of the GPUs that ``device`` and ``gpus`` choose; none for the CPU.

    Raises `ModelError` for a GPU that is not there.
    """
    if settings.device != "auto" and not settings.device.startswith("cuda"):
        return []
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        return []
    kind, _, number = settings.device.partition(":")
    if number:
        wanted = [int(number)] if number.isdecimal() else []
        if not wanted:
            raise ModelError(f"device {settings.device!r} is unknown; use auto, cpu, {kind} or {kind}:N")
    else:
        wanted = list(range(there)) if settings.gpus == "all" else [int(gpu) for gpu in settings.gpus.split(",")]
    if missing := [gpu for gpu in wanted if gpu >= there]:
        raise ModelError(f"GPU {missing[0]} was asked for, but there are {there}; see `etl doctor`")
    return list(dict.fromkeys(wanted))


def weight_bytes(folder: Path, dtype: str) -> int:
    """Return what the safetensors weights of a directory take in memory as ``dtype`` (``auto``: half precision).

    Raises `ModelError` for weights that are corrupt.
    """
    each = _ITEM_BYTES.get(dtype, 2)
    return sum(each * sum(tensor_sizes(path)) for path in folder.glob("*.safetensors"))
