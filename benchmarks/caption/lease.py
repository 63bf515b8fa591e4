"""What can be learnt of a card in one lease of eight minutes: checks first, then rows, then candidates for speed.

Everything is written to the file as soon as it is known, so a lease that is cut short keeps what it had; what there was
no time for says so.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig

from benchmarks.caption.benchmark import Benchmark
from benchmarks.caption.candidates import CANDIDATES, Absent, Candidate
from benchmarks.caption.checks import check_tokens
from benchmarks.caption.report import print_setting
from benchmarks.caption.rows import Row, measure
from benchmarks.caption.ways import WAYS, Way
from etl.caption.gpus.checks import check_device
from etl.images.cache import ImageCache

LEASE_S = 470.0
"""Seconds after which no further row is begun that may not end in time; eight minutes are 480."""

ROW_S = 3.5
"""What a row of slots takes, warm-up and end included, in units of its steady stretch."""

PENALTY = 1.2

SLOTS = ("slots", *(candidate.name for candidate in CANDIDATES))
"""Rows whose captions are as long as drawn, so that their words can be compared."""

KERNEL_CASES = Path(__file__).parents[2] / "tests" / "caption" / "kernel_cases.py"

PREDICTED = {
    "one": "3.1 at most", "generate-32": "6", "generate-128": "11", "slots": "31 to 41", "liger": "44",
    "compiled": "up to 44", "buckets": "up to 52 with liger", "graphs": "up to 52 with liger",
    "priorities": "up to 41", "tight": "41.5 with by-length", "by-length": "41.5 with tight",
}  # fmt: skip
"""Images/s that were expected on an H200 with LLaVA-1.5-7B, prompts of 619 tokens and captions of 100."""


class Lease(Benchmark):
    """The benchmark in the order in which its parts are worth most."""

    def _prepare(self, cache: ImageCache) -> None:
        """Try the device before a model is built on it."""
        self.result["predicted on an H200"] = PREDICTED
        self._try("device", lambda: {"found": list(_tried(self._arguments))})
        self._try("kernel cases", lambda: {"found": list(_kernel_cases(self._arguments.tiny))})
        super()._prepare(cache)

    def run(self) -> None:
        """Compare tokens, then measure."""
        print_setting(self.result)
        self._save()
        self._compare("tokens", None)
        self._compare("tokens, penalised", PENALTY)
        for name in ("one", "generate-32", "generate-128", "slots"):
            if name in self._arguments.rows and self._has_time(WAYS[name]):
                self._measure(name)
        for candidate in CANDIDATES:
            way = Way(candidate.name, f"slot engine {candidate.shown}", 0)
            if self._has_time(way):
                self._note(self._switched(candidate, way))
        _print_table(self.result["rows"])

    def failed(self) -> bool:
        """Return whether a check does not hold, or a row of the product has no figure; candidates may fail."""
        checks = self.result["checks"]
        return (
            any(row.fault for row in self._rows if row.name in WAYS)
            or any("fault" in check for check in checks.values())
            or any(one["verdict"] == "fail" for check in checks.values() for one in check.get("found", ()))
            or not all(one["holds"] for name in checks if name.startswith("tokens") for one in checks[name].values())
        )

    def _compare(self, name: str, penalty: float | None) -> None:
        count, limit = self._arguments.compare // 2, self._arguments.max_new_tokens // 4

        def compared() -> dict[str, Any]:
            found = check_tokens(self._loaded, self._settings, self._workload, count, limit, penalty)
            return {one: dataclasses.asdict(found[one]) | {"holds": found[one].holds} for one in found}

        self._try(name, compared)

    def _has_time(self, way: Way) -> bool:
        left = LEASE_S - (time.monotonic() - self._began)
        if left >= ROW_S * self._arguments.seconds:
            return True
        self._note(Row(way.name, way.shown, fault="not measured: no time was left"))
        return False

    def _switched(self, candidate: Candidate, way: Way) -> Row:
        if candidate.switch is None and not candidate.built_in:
            return Row(way.name, way.shown, fault="not built")
        if candidate.built_in:
            way = dataclasses.replace(way, candidates=(candidate.built_in,))
        try:
            with candidate.switch(self._loaded) if candidate.switch else contextlib.nullcontext():
                return measure(way, self._loaded, self._settings, self._workload, self._arguments.seconds)
        except Absent as error:
            return Row(way.name, way.shown, fault=f"not measured: {error}")
        except Exception as error:
            return Row(way.name, way.shown, fault=f"{type(error).__name__}: {error}"[:300])


def _tried(arguments: Any) -> Iterator[dict[str, str]]:
    """Yield what ``etl doctor --gpu`` tries, for the heads of LLaVA-1.5-7B."""
    device, dtype = ("cpu", "float32") if arguments.tiny else ("cuda", arguments.dtype)
    for found in check_device(torch.device(device), getattr(torch, dtype), LlavaConfig().text_config):
        yield dataclasses.asdict(found)


def _kernel_cases(tiny: bool) -> Iterator[dict[str, str]]:
    """Yield how the decoding kernel fares against double precision; without a GPU in Triton's interpreter."""
    environment = (
        os.environ | {"PYTHONPATH": str(KERNEL_CASES.parents[2])} | ({"TRITON_INTERPRET": "1"} if tiny else {})
    )
    ended = subprocess.run([sys.executable, KERNEL_CASES], env=environment, capture_output=True, text=True, timeout=120)
    for line in ended.stdout.splitlines():
        case, _, said = line.rpartition(": ")
        yield {"name": case, "verdict": "ok" if said == "agrees" else "fail", "detail": said}
    if ended.returncode and not ended.stdout:
        # The interpreter is another matter than the kernel, and not every version of Triton has one that works.
        last = (ended.stderr.strip().splitlines() or ["no words"])[-1]
        yield {"name": "kernel", "verdict": "note" if tiny else "fail", "detail": last[:300]}


def _print_table(rows: list[dict[str, Any]]) -> None:
    base = next((row for row in rows if row["name"] == "slots" and not row["fault"]), None)
    print("\n| | at once | images/s | to the slots | predicted on an H200 | words as in slots |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        predicted = PREDICTED[row["name"]]
        if row["fault"]:
            print(f"| {row['shown']} | {row['fault']} | | | {predicted} | |")
            continue
        rate, ratio, same = row["images_per_s"], "", ""
        if base:
            ratio = f"{rate / base['images_per_s']:.2f}"
        if base and row["name"] in SLOTS:
            both = base["words"].keys() & row["words"].keys()
            same = f"{sum(base['words'][n] == row['words'][n] for n in both)} of {len(both)}"
        print(f"| {row['shown']} | {row['at_once']} | {rate:.2f} | {ratio} | {predicted} | {same} |")
    print(flush=True)
