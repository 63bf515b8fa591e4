"""Which GPUs caption: one process for each, or one process over several where the model is larger than a card."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etl.caption.model.checkpoint import find_checkpoint
from etl.caption.model.weights import weight_bytes
from etl.errors import ModelError
from etl.gpu import allocator_environment
from etl.settings import Settings
from etl.units import size

log = logging.getLogger(__name__)

_BESIDE_WEIGHTS = 0.85
"""Share of a card that weights may take: without room for the captions themselves they are of no use."""

_UUID = re.compile(r"(?!0{8}-)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that this process sees.

    Attributes:
        name: for ``CUDA_VISIBLE_DEVICES``: its UUID, which stays the same when another one drops out.
        memory: bytes in all.
    """

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One captioning process.

    Attributes:
        device: that it is told to use.
        visible: what it sees as its GPUs, for ``CUDA_VISIBLE_DEVICES``; ``None`` to leave that as it is.
        spread: whether the model's layers are to be divided among all that it sees.
        allocator: further variables, for PyTorch's memory allocator.
    """

    device: str
    visible: str | None = None
    spread: bool = False
    allocator: Mapping[str, str] = field(default_factory=lambda: allocator_environment(os.environ), compare=False)

    def environment(self) -> dict[str, str]:
        """Return the variables that its Python must be started with."""
        visible = {} if self.visible is None else {"CUDA_VISIBLE_DEVICES": self.visible}
        return visible | dict(self.allocator)


def plan_workers(settings: Settings) -> list[WorkerPlan]:
    """Return the processes that are to caption; none where it is done on the CPU, in this process.

    Raises `ModelError` for a GPU that is not there or cannot be used, or a model that is larger than all of them.
    """
    gpus = chosen_gpus(settings)
    if not gpus:
        return []
    checkpoint = find_checkpoint(settings.model, settings.revision)
    checkpoint.with_weights()
    if fits_each(settings, gpus, weight_bytes(checkpoint.folder, settings.dtype)):
        return [WorkerPlan("cuda", gpu.name) for gpu in gpus]
    log.warning("%s is larger than one GPU; dividing it among %d", settings.model, len(gpus))
    return [WorkerPlan("cuda", ",".join(gpu.name for gpu in gpus), spread=True)]


def fits_each(settings: Settings, gpus: Sequence[Gpu], needed: int) -> bool:
    """Return whether weights of ``needed`` bytes fit into each of the GPUs.

    Raises `ModelError` when they are larger than all together.
    """
    room = [round(gpu.memory * settings.gpu_memory_fraction * _BESIDE_WEIGHTS) for gpu in gpus]
    if needed > sum(room):
        raise ModelError(
            f"{settings.model} takes {size(needed)}, more than the GPUs have room for ({size(sum(room))})"
        ).with_cure("use more GPUs, a smaller --dtype or a smaller model")
    return needed <= min(room)


def chosen_gpus(settings: Settings) -> list[Gpu]:
    """Return the GPUs that ``device`` and ``gpus`` choose; none for another device.

    Raises `ModelError` for a GPU that is not there, and as `etl.caption.model.device.choose_device` does.
    """
    if settings.device != "auto" and not settings.device.startswith("cuda"):
        return []
    from etl.caption.model.device import choose_device, usable_gpus

    if choose_device("auto" if settings.device == "auto" else "cuda", settings.model).type != "cuda":
        return []
    there = usable_gpus()
    _, _, number = settings.device.partition(":")
    if number:
        wanted = [int(number)]
    else:
        wanted = list(range(there)) if settings.gpus == "all" else [int(gpu) for gpu in settings.gpus.split(",")]
    if missing := [gpu for gpu in wanted if gpu >= there]:
        raise ModelError(f"GPU {missing[0]} was asked for, but there are {there}; see `etl doctor`")
    for gpu in wanted:
        choose_device(f"cuda:{gpu}", settings.model)
    return [_visible(gpu) for gpu in dict.fromkeys(wanted)]


def _visible(number: int) -> Gpu:
    """Return the GPU that torch counts as this one, whichever way CUDA has ordered and hidden them."""
    import torch

    properties = torch.cuda.get_device_properties(number)
    uuid = str(getattr(properties, "uuid", "")).removeprefix("GPU-").lower()
    if _UUID.fullmatch(uuid) and " MIG " not in properties.name:
        return Gpu(f"GPU-{uuid}", properties.total_memory)
    # An instance of a card goes by a name of its own, the one that the user gave.
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    named = number < len(names) and names[number]
    return Gpu(named or str(number), properties.total_memory)
