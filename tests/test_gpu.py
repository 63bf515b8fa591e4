"""Sampling the GPU through the driver's own tool."""

import os
from pathlib import Path

import pytest

from etl.domain.views import GpuSample
from etl.gpu import Card, GpuSampler, allocator_environment, find_cards, parse_sample, visible_cards


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


UUIDS = tuple(f"GPU-{letter * 8}-0000-0000-0000-{letter * 12}" for letter in "abc")
INSTANCE = "MIG-77777777-0000-0000-0000-777777777777"


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def cards(*names: str) -> tuple[Card, ...]:
    return tuple(Card(n, UUIDS[n], name, "580.1", False) for n, name in enumerate(names))


def test_cards_and_what_else_the_tool_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of cards become cards; every other line, as for one that has dropped out, is kept as words."""
    lost = "Unable to determine the device handle for GPU1: Unknown Error"
    pretend(tmp_path, monkeypatch, f"echo '0, {UUIDS[0]}, NVIDIA A100, 580.65.06, Enabled'; echo {lost!r}; exit 15")
    assert find_cards() == ((Card(0, UUIDS[0], "NVIDIA A100", "580.65.06", True),), lost)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert find_cards() == ((), "")


@pytest.mark.parametrize(
    ("visible", "order", "kinds", "expected"),
    [
        (None, None, "HHH", "abc"),
        ("", None, "HHH", ""),
        ("-1", None, "HHH", ""),
        ("2, 0", None, "HHH", "ca"),
        ("0,7,1", None, "HHH", "a"),
        # The fastest first, which only CUDA knows; by place on the bus; by UUID, whatever the order.
        ("0", None, "LH", "ab"),
        ("1", "PCI_BUS_ID", "LH", "b"),
        (UUIDS[1], None, "LH", "b"),
        ("GPU-b", None, "LH", "b"),
        ("GPU-", None, "LH", ""),
        (INSTANCE, None, "LH", "b"),
        (f"MIG-{UUIDS[0]}/3/0", None, "LH", "a"),
        ("MIG-none", None, "LH", ""),
    ],
)
def test_visible_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, order: str | None, kinds: str, expected: str
) -> None:
    """Numbers, UUIDs, their beginnings and instances are understood as CUDA does; where only CUDA knows, all count."""
    listed = "".join(f"echo 'GPU {n}: X (UUID: {uuid})'\n" for n, uuid in enumerate(UUIDS[:2]))
    pretend(tmp_path, monkeypatch, f"{listed}echo '  MIG 1g.5gb     Device  0: (UUID: {INSTANCE})'")
    environment = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}
    found = visible_cards(cards(*kinds), {name: value for name, value in environment.items() if value is not None})
    assert "".join(card.uuid[4] for card in found) == expected


def test_only_visible_cards_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool is asked for the samples of the visible cards by UUID; where none is visible it is not started."""
    lines = "".join(f"echo '{n}, {uuid}, H, 580.1, [N/A]'\n" for n, uuid in enumerate(UUIDS))
    asked = tmp_path / "asked"
    pretend(tmp_path, monkeypatch, f'case $1 in --query-gpu=index,uuid*) {lines};; *) echo "$*" >> {asked};; esac')
    for visible in ("2,0", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with GpuSampler(Sink(), 1) as sampler:
            if sampler._process is not None:
                sampler._process.wait()
    (line,) = asked.read_text().splitlines()
    assert line.startswith(f"--id={UUIDS[2]},{UUIDS[0]} --query-gpu=index,utilization.gpu")


def test_an_allocator_of_the_user_s_own_stays() -> None:
    """The allocator is set where nobody has set it, under its old name or its new one."""
    assert allocator_environment({}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert allocator_environment({name: ""}) == {}


def test_a_machine_without_the_tool_gives_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-smi on the PATH nothing is started and nothing recorded."""
    monkeypatch.setenv("PATH", str(tmp_path))
    sink = Sink()
    with GpuSampler(sink, 1):
        pass
    assert sink.samples == []
