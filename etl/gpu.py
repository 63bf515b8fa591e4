"""The GPUs as the driver's own tool tells of them, without torch: which there are, and their load while a run lasts."""

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from etl.domain.views import GpuSample

SAMPLE_S = 5
"""Seconds between samples: 1,440 rows in a two-hour run."""

NODES = Path("/dev")
"""Where the driver's device files are."""

_ANSWER_S = 30
"""The tool answers in a second, or hangs with a driver that does."""

_CARD = "index,uuid,name,driver_version,mig.mode.current"
_SAMPLE = "index,utilization.gpu,memory.used,memory.total,power.draw"
_MIB = 1024 * 1024

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The variable of PyTorch's memory allocator, and its name before PyTorch 2.10, which still counts."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU of this machine.

    Attributes:
        index: the driver's number: by place on the bus, whatever CUDA calls it.
        uuid: ``GPU-`` and 36 characters.
        name: the product.
        driver: version of the driver.
        mig: whether the card is divided into instances, or ready to be.
    """

    index: int
    uuid: str
    name: str
    driver: str
    mig: bool


def device_nodes() -> list[Path]:
    """Return the driver's device files of GPUs."""
    return sorted(path for path in NODES.glob("nvidia*") if path.name[6:].isdecimal())


def may_have_gpu() -> bool:
    """Return whether there is any sign of an NVIDIA GPU, or of its driver, on this machine."""
    return shutil.which("nvidia-smi") is not None or bool(device_nodes())


def find_cards() -> tuple[tuple[Card, ...], str]:
    """Return the cards that ``nvidia-smi`` lists, and what else it says: why it cannot tell of one, or of any.

    Without the tool both are empty.
    """
    cards, words = [], []
    for line in _ask(f"--query-gpu={_CARD}", "--format=csv,noheader").splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == 5 and values[0].isdecimal() and values[1].startswith("GPU-"):
            cards.append(Card(int(values[0]), values[1], values[2], values[3], values[4] == "Enabled"))
        elif line.strip():
            words.append(line.strip())
    return tuple(cards), " ".join(words)[:300]


def visible_cards(cards: Sequence[Card], environment: Mapping[str, str]) -> tuple[Card, ...]:
    """Return those cards that ``CUDA_VISIBLE_DEVICES`` leaves to a program, in its order; all without it.

    As CUDA does, the names behind one that fits nothing are passed over.  Where only CUDA knows which card a number
    means (cards of several kinds, which it counts with the fastest first), all are returned.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(cards)
    by_bus = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({card.name for card in cards}) == 1
    found: list[Card] = []
    for name in (part.strip() for part in named.split(",")):
        if name.isdecimal() and int(name) < len(cards) and not by_bus:
            return tuple(cards)
        card = _named(name, cards)
        if card is None:
            break
        found.append(card)
    return tuple(dict.fromkeys(found))


def _named(name: str, cards: Sequence[Card]) -> Card | None:
    """Return the card that a name means: a number, a UUID or its beginning, or an instance of the card."""
    if name.isdecimal():
        return next((card for card in cards if card.index == int(name)), None)
    if name.startswith("MIG-"):
        # Of old drivers, MIG-GPU-uuid/instance/instance; of newer ones a UUID that stands below that of its card.
        name = name[4:].split("/")[0] if name.startswith("MIG-GPU-") else _card_of_instance(name)
    fitting = [card for card in cards if name.startswith("GPU-") and card.uuid.startswith(name)]
    return fitting[0] if len(fitting) == 1 else None


def _card_of_instance(instance: str) -> str:
    card = ""
    for line in _ask("-L").splitlines():
        if match := re.search(r"UUID: ([\w/-]+)\)", line):
            card = match[1] if match[1].startswith("GPU-") else card
            if match[1] == instance:
                return card
    return ""


def _ask(*arguments: str) -> str:
    """Return what the tool prints, also where it fails; empty where there is none or it does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        answer = subprocess.run([tool, *arguments], capture_output=True, text=True, errors="replace", timeout=_ANSWER_S)
    except OSError:
        return ""
    except subprocess.TimeoutExpired:
        return f"nvidia-smi did not answer within {_ANSWER_S} s"
    return answer.stdout + answer.stderr


def allocator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what is to be set before the Python of a GPU's process starts; what somebody set himself stays.

    Batches of changing shape fragment the GPU's memory otherwise.  Some builds of PyTorch read it when they are
    imported, so it is too late from inside.
    """
    if any(name in environment for name in _ALLOCATOR):
        return {}
    return {_ALLOCATOR[0]: "expandable_segments:True"}


class SampleSink(Protocol):
    """Where samples go; the store."""

    def record_gpu(self, run: int, sample: GpuSample) -> None:
        """Keep one sample."""


class GpuSampler:
    """Records samples of the visible GPUs while it is entered; does nothing on a machine without ``nvidia-smi``."""

    def __init__(self, sink: SampleSink, run: int) -> None:
        self._sink = sink
        self._run = run
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "GpuSampler":
        tool = shutil.which("nvidia-smi")
        if tool and (chosen := _choice()) is not None:
            command = [tool, *chosen, f"--query-gpu={_SAMPLE}", "--format=csv,noheader,nounits", f"--loop={SAMPLE_S}"]
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                self._thread = threading.Thread(target=self._read, name="gpu", daemon=True)
                self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        for line in self._process.stdout:
            if sample := parse_sample(line):
                self._sink.record_gpu(self._run, sample)


def _choice() -> list[str] | None:
    """Return the tool's arguments for the cards that are visible to this process; ``None`` where none is."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return []
    cards = visible_cards(find_cards()[0], os.environ)
    return [f"--id={','.join(card.uuid for card in cards)}"] if cards else None


def parse_sample(line: str) -> GpuSample | None:
    """Return the sample of one ``nvidia-smi --format=csv,noheader,nounits`` line; ``None`` for any other line."""
    values = [_number(text) for text in line.split(",")]
    if len(values) != 5 or values[0] is None:
        return None
    load, used, total = (None if value is None else round(value) for value in values[1:4])
    return GpuSample(round(values[0]), load, _bytes(used), _bytes(total), values[4])


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * _MIB


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
