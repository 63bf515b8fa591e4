"""One run of the caption benchmark: its rows and checks, one after the other."""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
import transformers

from benchmarks.caption.checks import check_tokens, soak, squeeze
from benchmarks.caption.inputs import Workload, prompts_of, read_records
from benchmarks.caption.random_llava import SIZES, build
from benchmarks.caption.report import print_checks, print_rows, print_setting, row_line
from benchmarks.caption.rows import Row, measure, reason
from benchmarks.caption.ways import WAYS
from etl.caption.gpus.ceilings import measure_ceilings
from etl.caption.gpus.roofline import Ceilings, Load, Shapes, bounds
from etl.caption.model.loading import LoadedModel, load
from etl.caption.tokens import PromptEncoder
from etl.images.cache import ImageCache
from etl.settings import Settings

FLAT = 1.05
"""Growth of the GPU's memory in a long run that still counts as none: the allocator keeps blocks of round sizes."""


class Benchmark:
    """All rows and checks of one run; the figures gather in `result`."""

    def __init__(self, arguments: argparse.Namespace, cache: ImageCache) -> None:
        self._arguments = arguments
        self._began = time.monotonic()
        self.result: dict[str, Any] = {"checks": {}, "rows": []}
        self._prepare(cache)

    def _prepare(self, cache: ImageCache) -> None:
        """Make model and inputs, and measure the ceilings."""
        arguments = self._arguments
        self._settings = _settings(arguments)
        prompts = prompts_of(read_records(arguments.manifest))
        self._loaded = _model(arguments, prompts)
        self._workload = Workload.make(cache, arguments.pictures, prompts, arguments.max_new_tokens)
        self._ceilings = measure_ceilings(self._loaded.device, self._loaded.dtype)
        self._rows: list[Row] = []
        self.result |= {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine(self._loaded.device),
            "model": {
                "name": self._loaded.name if arguments.tiny else f"random LLaVA-1.5-{arguments.size}",
                "parameters": sum(one.numel() for one in self._loaded.model.parameters()),
                "dtype": str(self._loaded.dtype).removeprefix("torch."),
            },
            "load": self._load(prompts),
            "ceilings": dataclasses.asdict(self._ceilings),
        }

    def run(self) -> None:
        """Measure the rows in their order, then check, then the rows that are most likely to fail."""
        print_setting(self.result)
        names = [name for name in WAYS if name in self._arguments.rows]
        for name in names:
            if not WAYS[name].static:
                self._measure(name)
        if "slots" in names:
            self._check()
        for name in names:
            if WAYS[name].static:
                self._measure(name)
        print_rows(self.result)
        print_checks(self.result["checks"])

    def failed(self) -> bool:
        """Return whether a row or a check has no figure, or does not hold."""
        checks = self.result["checks"]
        return (
            any(row.fault for row in self._rows)
            or any("fault" in check for check in checks.values())
            or not all(one["holds"] for name in checks if name.startswith("tokens") for one in checks[name].values())
            or any(checks.get(name, {}).get("failures") for name in ("soak", "memory cap"))
            or (self._loaded.device.type == "cuda" and checks.get("soak", {}).get("growth", 1.0) > FLAT)
        )

    def _measure(self, name: str) -> None:
        self._note(measure(WAYS[name], self._loaded, self._settings, self._workload, self._arguments.seconds))

    def _note(self, row: Row) -> None:
        self._rows.append(row)
        self.result["rows"] = [one.to_json() for one in self._rows]
        self.result["bounds"] = self._bounds()
        elapsed = time.monotonic() - self._began
        print(f"after {elapsed:.0f} s: {row_line(row.to_json(), None)}", file=sys.stderr, flush=True)
        self._save()

    def _check(self) -> None:
        arguments, given = self._arguments, (self._loaded, self._settings, self._workload)
        self._try("tokens", lambda: _agreements(*given, arguments.compare, arguments.max_new_tokens // 2))
        if self._loaded.device.type == "cuda":
            self._try("memory cap", lambda: dataclasses.asdict(squeeze(*given, arguments.capped)))
        if arguments.soak:
            self._try("soak", lambda: _soaked(*given, arguments.soak))

    def _try(self, name: str, check: Callable[[], dict[str, Any]]) -> None:
        """Note what a check finds; one that breaks is noted as broken, and the run goes on."""
        try:
            self.result["checks"][name] = check()
        except Exception as error:
            self.result["checks"][name] = {"fault": f"failed: {reason(error)}"}
        print_checks({name: self.result["checks"][name]})
        self._save()

    def _load(self, prompts: list[str]) -> dict[str, Any]:
        encoder = PromptEncoder(self._loaded.processor, self._settings.max_new_tokens, self._loaded.context)
        chosen = prompts[:2000]
        tokens = sum(len(encoder.encode(prompt).ids) for prompt in chosen) / len(chosen)
        return {
            "prompt_words": sum(len(encoder.encode(prompt).text.split()) for prompt in chosen) / len(chosen),
            "prompt_tokens": tokens - encoder.image_tokens,
            "image_tokens": encoder.image_tokens,
            "caption_tokens": self._workload.mean_length,
            "longest": self._arguments.max_new_tokens,
            "pictures": len(self._workload.pictures),
        }

    def _bounds(self) -> dict[str, Any]:
        """Return the roofline for the slots of the engine; where it has not run, for those that the memory holds."""
        load, slots = self.result["load"], next((row.at_once for row in self._rows if row.name == "slots"), 0)
        if not slots and self._loaded.device.type != "cuda":
            slots = self._settings.batch_size
        size = self._loaded.dtype.itemsize
        asked = Load(load["prompt_tokens"] + load["image_tokens"], load["caption_tokens"], slots, size, size)
        ceilings = Ceilings(**self.result["ceilings"])
        return dataclasses.asdict(bounds(Shapes.of(self._loaded.model.config), ceilings, asked))

    def _save(self) -> None:
        if self._arguments.json:
            self._arguments.json.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")


def _agreements(*given: Any) -> dict[str, Any]:
    found = check_tokens(*given)
    return {name: dataclasses.asdict(one) | {"holds": one.holds} for name, one in found.items()}


def _soaked(*given: Any) -> dict[str, Any]:
    found = soak(*given)
    return dataclasses.asdict(found) | {"growth": found.growth}


def _settings(arguments: argparse.Namespace) -> Settings:
    values = {"max_new_tokens": arguments.max_new_tokens, "slots": arguments.slots, "dtype": arguments.dtype}
    if arguments.tiny:
        values |= {"model": "demo", "device": "cpu", "dtype": "float32"}
    return Settings(**values)


def _model(arguments: argparse.Namespace, prompts: list[str]) -> LoadedModel:
    if not arguments.tiny:
        return build(SIZES[arguments.size], torch.device("cuda"), getattr(torch, arguments.dtype), _wrapped(prompts))
    # More threads are slower for a model this small.
    torch.set_num_threads(1)
    loaded = load(_settings(arguments))
    # It never says the placeholder, so its captions get the lengths that were drawn.
    return dataclasses.replace(loaded, eos=(loaded.processor.image_token_id,))


def _wrapped(prompts: list[str]) -> list[str]:
    return [f"USER: \n{prompt} ASSISTANT:" for prompt in prompts]


def _machine(device: torch.device) -> dict[str, str]:
    found = {"device": platform.machine(), "torch threads": str(torch.get_num_threads())}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        found = {"device": torch.cuda.get_device_name(device), "memory": f"{memory / 2**30:.1f} GiB"}
        found |= {"driver": _driver(), "CUDA": str(torch.version.cuda)}
    found |= {"torch": torch.__version__, "transformers": transformers.__version__}
    return found | {"Python": platform.python_version(), "Pillow": importlib.metadata.version("pillow")}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
