"""Runs the real pipeline with the shipped model and reads its export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from etl.ingest.options import IngestOptions
from etl.ingest.prompts import PromptTemplate
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan, Report
from etl.settings import Settings

torch.set_num_threads(1)
"""More threads are slower for a model this small, by far on a busy machine."""


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., tuple[Report, dict[str, dict[str, Any]]]]:
    """Return a function that takes a manifest through all stages and returns the report and the rows by id.

    It takes the template of the prompts, too, and other settings.
    """

    def run(
        manifest: Path, template: PromptTemplate | None = None, **changes: Any
    ) -> tuple[Report, dict[str, dict[str, Any]]]:
        values: dict[str, Any] = {
            "state": tmp_path / "state", "model": "demo", "device": "cpu", "dtype": "float32", "batch_size": 32,
            "max_attempts": 1, "allow_host": ("127.0.0.1",), "min_free": 0,
        }  # fmt: skip
        settings = Settings(**(values | changes))
        output = tmp_path / "captions.jsonl"
        options = IngestOptions(template=template or PromptTemplate())
        plan = Plan(fetch=True, caption=True, sources=(str(manifest),), options=options, output=str(output))
        report = run_pipeline(settings, plan, lambda _: None)
        rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
        return report, {row["id"]: row for row in rows}

    return run
