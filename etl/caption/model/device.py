"""Which device captions, and in which number format; a GPU that is there and cannot be used is an error."""

import logging
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from etl.caption.model.checkpoint import one_line
from etl.caption.model.weights import stored_dtype
from etl.errors import ModelError
from etl.extras import installer
from etl.gpu import Card, device_nodes, find_cards, visible_cards
from etl.settings import DEMO_MODEL
from etl.text import clean

log = logging.getLogger(__name__)

_BUILDS = ((580, "cu130"), (525, "cu126"))
"""Oldest driver of each major version of CUDA (NVIDIA, CUDA Compatibility), and a PyTorch build of that version."""


class Unusable(NamedTuple):
    """Why a GPU that is there is of no use, and what cures it."""

    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}; {self.cure}"

    def error(self) -> ModelError:
        """Return the error that says so."""
        return ModelError(self.what).with_cure(self.cure)


def usable_gpus() -> int:
    """Return how many GPUs PyTorch can use in this process."""
    with warnings.catch_warnings():
        # What it has to say is said by `why_unusable`.
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_device(wanted: str, model: str) -> torch.device:
    """Return the device that ``wanted`` names; for ``auto`` a GPU if there is one.

    Raises `ModelError` for a device that is not there, and for ``auto`` where there is a GPU that cannot be used: a
    large model would go on for weeks on the CPU.  The demo's takes seconds there, so for that one it is only said.
    """
    if wanted not in ("auto", "cpu") and not wanted.startswith("cuda"):
        if wanted == "mps" and not torch.backends.mps.is_available():
            raise ModelError("device 'mps' was asked for, but this PyTorch finds no Apple GPU; use --device cpu")
        return torch.device(wanted)
    if wanted == "cpu":
        return torch.device("cpu")
    there = usable_gpus()
    if there:
        device = torch.device("cuda" if wanted == "auto" else wanted)
        if (device.index or 0) >= there:
            raise ModelError(f"device {wanted!r} was asked for, but there are {there} GPUs")
        if why := _too_old(device.index or 0):
            raise why.error()
        return device
    why = why_unusable()
    if why is not None and (wanted != "auto" or model != DEMO_MODEL):
        raise why.error()
    if wanted != "auto":
        raise ModelError(f"device {wanted!r} was asked for, but no GPU was found here; use --device cpu")
    if why is not None:
        log.warning("%s", why)
    return torch.device("cpu")


def choose_dtype(wanted: str, device: torch.device, folder: Path) -> torch.dtype:
    """Return the number format for the weights in ``folder``.

    ``auto`` is float32 but on a GPU.  There it is bfloat16 for weights that are stored so, and float16 for all others:
    it rounds eight times finer, and what overflows in it is found and written again.  A GPU without bfloat16 gets
    float16.
    """
    if wanted == "auto":
        if device.type != "cuda":
            return torch.float32
        wanted = "bfloat16" if stored_dtype(folder) == "bfloat16" else "float16"
        if wanted == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            log.warning("the model's weights are bfloat16, which this GPU does not know; captioning in float16")
            wanted = "float16"
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def why_unusable() -> Unusable | None:
    """Return why PyTorch cannot use a GPU that is there, with what cures it; ``None`` if none is there.

    A GPU is there when the driver's tool or a device file says so, and ``CUDA_VISIBLE_DEVICES`` does not hide all.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return None
    cards, words = find_cards()
    nodes = device_nodes()
    if not cards and not nodes and "lost" not in words and "device handle" not in words:
        return None
    what = f"{cards[0].name}, driver {cards[0].driver}" if cards else "a GPU"
    reason, cure = _reason(cards, words, nodes)
    return Unusable(
        clean(f"{what}, is there but PyTorch {torch.__version__} cannot use it: {reason}"),
        clean(f"{cure}, or use --device cpu"),
    )


def _reason(cards: tuple[Card, ...], words: str, nodes: list[Path]) -> tuple[str, str]:
    """Return why no GPU can be used, and the cure."""
    driver = int(cards[0].driver.split(".")[0]) if cards and cards[0].driver.split(".")[0].isdecimal() else 0
    if torch.version.cuda is None:
        return "this build of PyTorch knows no CUDA", _install(driver)
    if 0 < driver < (needed := _oldest_driver(torch.version.cuda)):
        return f"its CUDA {torch.version.cuda} asks for driver {needed} or later", _install(driver)
    for node in nodes:
        try:
            os.close(os.open(node, os.O_RDWR))
        except PermissionError:
            return f"this user may not open {node}", "ask for access (often: join the group 'video' or 'render')"
        except OSError as error:
            return f"{node} cannot be opened ({error.strerror})", "look for Xid in `dmesg` and restart the machine"
    if not cards or "lost" in words or "device handle" in words:
        said = words or "nvidia-smi does not list it"
        return f"{said}", "look for Xid in `dmesg` and restart the machine, or take another"
    if not visible_cards(cards, os.environ):
        return f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES'][:80]} names none of its GPUs", "set it anew"
    if all(card.mig for card in cards):
        return (
            "it is in MIG mode, without an instance that may be used",
            "make one (`nvidia-smi mig -cgi 0 -C`), or name one in CUDA_VISIBLE_DEVICES",
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return one_line(error), "try `python -c 'import torch; torch.cuda.init()'`"
    return "it finds no device", "see `nvidia-smi`"


def _oldest_driver(cuda: str) -> int:
    """Return the oldest driver that a version of CUDA, such as ``13.0``, runs on; 0 where that is not known."""
    return next((driver for driver, build in _BUILDS if build[2:4] == cuda.split(".")[0]), 0)


def _install(driver: int) -> str:
    """Return the command that installs a build of PyTorch for a driver of this version (0: not known)."""
    if 0 < driver < _BUILDS[-1][0]:
        return f"update the driver to {_BUILDS[0][0]} or later"
    build = next((build for oldest, build in _BUILDS if driver >= oldest), _BUILDS[0][1])
    return f"`{installer()} --force-reinstall torch --index-url https://download.pytorch.org/whl/{build}`"


def _too_old(number: int) -> Unusable | None:
    """Return why this build has no code for a GPU; ``None`` if it has."""
    builds = [name.rpartition("_") for name in torch.cuda.get_arch_list()]
    known = [(kind, int(digits[:-1]), int(digits[-1])) for kind, _, text in builds if (digits := text.rstrip("af"))]
    gpu = torch.cuda.get_device_properties(number)
    mine = (gpu.major, gpu.minor)
    if not known or any(
        (major == gpu.major and minor <= gpu.minor) if kind == "sm" else (major, minor) <= mine
        for kind, major, minor in known
    ):
        return None
    return Unusable(
        f"{clean(gpu.name, 60)} has compute capability {gpu.major}.{gpu.minor}, for which PyTorch {torch.__version__} "
        "has no code",
        f"try {_install(_BUILDS[-1][0])}, or use --device cpu",
    )
