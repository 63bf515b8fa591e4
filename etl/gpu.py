"""GPU load for the dashboard, sampled by the driver's own tool beside a run."""

import contextlib
import shutil
import subprocess
import threading
from types import TracebackType
from typing import Protocol

from etl.models import GpuSample

SAMPLE_S = 5
"""Seconds between samples: 1,440 rows in a two-hour run."""

_ANSWER_S = 30
"""The tool answers in a second, or hangs with a driver that does."""

_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"
_MIB = 1024 * 1024


def memory_totals() -> dict[int, int]:
    """Return the bytes of each GPU's memory by the driver's numbers; empty where the driver's tool cannot tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    samples = [sample for line in answer.stdout.splitlines() if (sample := parse_sample(line))]
    return {sample.gpu: sample.memory_total for sample in samples if sample.memory_total is not None}


class SampleSink(Protocol):
    """Where samples go; the store."""

    def record_gpu(self, run: int, sample: GpuSample) -> None:
        """Keep one sample."""


class GpuSampler:
    """Records samples while it is entered; does nothing on a machine without ``nvidia-smi``."""

    def __init__(self, sink: SampleSink, run: int) -> None:
        self._sink = sink
        self._run = run
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "GpuSampler":
        if tool := shutil.which("nvidia-smi"):
            command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", f"--loop={SAMPLE_S}"]
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
