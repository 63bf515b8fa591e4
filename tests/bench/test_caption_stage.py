"""The benchmark of the caption stage's own work."""

import json

import pytest

from benchmarks.caption.stage import main


@pytest.mark.soak
def test_the_stage_is_measured_on_a_state_of_the_product(capsys: pytest.CaptureFixture[str]) -> None:
    """The product fetches and captions the pictures; CPU time is told for the whole, its parts, and the model."""
    assert main(["--pictures", "6", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["pictures"] == 6
    assert figures["cpu_ms"] > figures["feeders_ms"] > 0
    assert figures["model_ms"] > 0
    assert all(value > 0 for value in figures["parts_ms"].values()) and len(figures["parts_ms"]) == 4
    assert figures["share_of_a_core"] == pytest.approx(figures["cpu_ms"] * 35 / 1000)
