"""Sampling the GPU through the driver's own tool."""

import os
from pathlib import Path

import pytest

from etl.gpu import GpuSampler, parse_sample
from etl.models import GpuSample


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, GpuSample]] = []

    def record_gpu(self, run: int, sample: GpuSample) -> None:
        self.samples.append((run, sample))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0, 97, 15321, 143771, 512.34\n", GpuSample(0, 97, 15321 * 2**20, 143771 * 2**20, 512.34)),
        ("1, [N/A], 1, 2, [N/A]\n", GpuSample(1, None, 2**20, 2 * 2**20, None)),
        ("NVIDIA-SMI has failed\n", None),
        ("\n", None),
        ("a, b, c, d, e\n", None),
    ],
)
def test_a_line_of_the_tool_becomes_a_sample_or_nothing(line: str, expected: GpuSample | None) -> None:
    """Values that the driver does not give are None; a line that is no sample is passed over."""
    assert parse_sample(line) == expected


def test_samples_are_recorded_while_entered_and_the_tool_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line that the tool prints is recorded for the run; leaving ends the tool's process."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho $$ > pid\necho '0, 50, 100, 200, 75.5'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sink = Sink()
    with GpuSampler(sink, 7) as sampler:
        assert sampler._thread is not None
        for _ in range(200):
            if sink.samples:
                break
            sampler._thread.join(0.05)
    assert sink.samples == [(7, GpuSample(0, 50, 100 * 2**20, 200 * 2**20, 75.5))]
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_machine_without_the_tool_gives_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-smi on the PATH nothing is started and nothing recorded."""
    monkeypatch.setenv("PATH", str(tmp_path))
    sink = Sink()
    with GpuSampler(sink, 1):
        pass
    assert sink.samples == []
