"""The price of the machine: what a run tells at its end, and what the dashboard is given."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState

Etl = Callable[..., Any]


def test_a_run_tells_what_it_has_cost(etl: Etl, made: MadeState) -> None:
    """With a price the summary ends with the cost, for people and for programs; without any nothing is said."""
    made.ingest(b'{"id":"a","path":"missing.jpg"}\n')
    assert "cost" not in etl("fetch").err
    Path("etl.toml").write_text("gpu_price = 3600\n")
    told = etl("fetch").err
    assert "cost 0." in told and "at 3,600.00 an hour; all runs " in told
    cost = etl("fetch", "--json").json()["cost"]
    assert cost["price"] == 3600
    assert 0 < cost["run"] < cost["total"] < 600
    Path("etl.toml").unlink()
    assert "cost not known, no price given (--gpu-price); all runs 0." in etl("fetch").err


def test_the_dashboard_is_given_what_was_asked_for(etl: Etl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The dashboard's process gets state, price, configuration and flags, and its exit code is the command's."""
    called: list[list[str]] = []

    def call(command: list[str]) -> int:
        called.append(command)
        return 7

    monkeypatch.setattr(subprocess, "call", call)
    Path("mine.toml").write_text("gpu_price = 2\n[dashboard]\ntheme = 'light'\n")
    flags = ["--readonly", "--ascii", "--web", "--port", "9000"]
    assert etl("dashboard", "--config", "mine.toml", "--state", "s", *flags).code == 7
    assert called == [[
        sys.executable, "-P", "-m", "tui", "--state", "s", "--gpu-price", "2.0", "--readonly", "--ascii", "--web",
        "--port", "9000", "--config", str(tmp_path / "mine.toml"),
    ]]  # fmt: skip
