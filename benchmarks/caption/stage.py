"""Measure what the caption stage costs beside the model: the work of the host for each picture that a GPU captions.

    python -m benchmarks.caption.stage --manifest manifest_clean.jsonl.gz

The product makes a state with that many pictures, then captions it with a model of next to no arithmetic that takes
what LLaVA-1.5 takes: pictures of 336 pixels, 576 image tokens, prompts of the default template, captions of drawn
lengths.  All CPU time of the process and of its feeders counts, but for what the model itself takes.  Beside it, parts
of the work are measured alone: they say where the time goes.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.caption.inputs import draw_lengths, photographs, prompts_of, read_records
from benchmarks.caption.random_llava import SIZES, build
from etl.caption.captioner import never
from etl.caption.model.loading import load
from etl.caption.recipe import Recipe
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.timing import Timings
from etl.caption.stage import caption
from etl.caption.tokens import Detokenizer, PromptEncoder
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason, Stage
from etl.domain.views import EngineSample
from etl.images.cache import ImageCache
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.read.failures import failed_items
from etl.state.read.reader import Reader
from etl.state.read.sources import longest_edges
from etl.state.store import Store

GPU_RATE = 35.0
"""Pictures per second of the GPU whose budget the work is a share of."""

SLOTS = 32


class CpuClock(Timings):
    """Adds up the CPU time of the thread by phase, in place of time that also passes while others work."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.cpu: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str, *, host: bool = False) -> Iterator[None]:  # noqa: ARG002 -- the product's signature
        begun = time.thread_time()
        try:
            yield
        finally:
            self.cpu[phase] = self.cpu.get(phase, 0.0) + time.thread_time() - begun

    @property
    def model_s(self) -> float:
        """CPU seconds of what a GPU would do."""
        return sum(self.cpu.get(phase, 0.0) for phase in ("vision", "prefill", "decode"))


class NoModel:
    """A captioner that does nothing: what is left is the stage and the database."""

    def __init__(self, name: str, text: str) -> None:
        self.recipe = Recipe(model=name, revision="1", engine="none", dtype="float32", preprocessing={}, generation={})
        self._text = text

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[CaptionResult | ItemFailure]:
        """Give every item the same caption."""
        for item in items:
            if should_stop():
                return
            if item is not None:
                yield CaptionResult(item.id, self._text, 100, FinishReason.STOP)

    def samples(self) -> tuple[EngineSample, ...]:
        """Return nothing: there is no engine."""
        return ()

    def close(self) -> None:
        """There is nothing to let go of."""


class Bench:
    """A state with pictures, and what captioning it costs."""

    def __init__(self, directory: Path, pictures: int, manifest: Path | None, *, demo: bool = False) -> None:
        # With one thread the model's CPU time is that of the thread which calls it.
        torch.set_num_threads(1)
        self._pictures = pictures
        self._settings = Settings(
            state=directory / "state", device="cpu", dtype="float32", slots=SLOTS, feeders=2, batch_size=SLOTS
        )
        records = read_records(manifest)
        records = [records[number % len(records)] for number in range(pictures)]
        self._prompts = prompts_of(records)
        self._fill(directory, records)
        with Reader(self._settings.state) as reader:
            self._edge = longest_edges(reader)[0]
        if demo:
            loaded = load(dataclasses.replace(self._settings, model="demo"))
            # It never says the placeholder, so its captions get the lengths that were drawn.
            self._loaded = dataclasses.replace(loaded, eos=(loaded.processor.image_token_id,))
        else:
            prompts = [f"USER: \n{prompt} ASSISTANT:" for prompt in self._prompts]
            self._loaded = build(SIZES["thin"], torch.device("cpu"), torch.float32, prompts)

    def run(self) -> dict[str, Any]:
        """Return CPU ms per item of the stage and of parts of it, and the pictures per second that were reached."""
        # Once in vain, so that no import and no first look at a file is charged to what follows.
        self._measure(NoModel("warm-up", "x"))
        whole = self._whole()
        text = " ".join(["caption"] * 70)
        parts = {
            "open, crop and shrink pictures (feeder processes)": whole["feeders_ms"],
            "claim and commit": self._measure(NoModel("none", text))["cpu_ms"],
            "tokenise prompts": self._tokenise(),
            "make text of tokens, and its flags": self._detokenise(),
        }
        return {
            "pictures": self._pictures, **whole, "parts_ms": parts,
            "share_of_a_core": whole["cpu_ms"] * GPU_RATE / 1000, "gpu_rate": GPU_RATE,
        }  # fmt: skip

    def _fill(self, directory: Path, records: list[dict[str, Any]]) -> None:
        """Let the product ingest the records and fetch a picture for each from the disk."""
        manifest = directory / "manifest.jsonl"
        with manifest.open("w", encoding="utf-8") as file:
            for number, picture in enumerate(photographs(self._pictures)):
                path = directory / f"{number}.jpg"
                picture.save(path, "JPEG", quality=90)
                place = {"metadata_filename": f"{number}", "external_url": str(path)}
                file.write(json.dumps(records[number] | place) + "\n")
        run_pipeline(self._settings, Plan(fetch=True, sources=(str(manifest),)), lambda _: None)

    def _whole(self) -> dict[str, float]:
        lengths = draw_lengths(10_000, self._settings.max_new_tokens)
        cache = ImageCache.of_state(self._settings.state)
        captioner = SlotCaptioner(
            self._loaded,
            self._settings,
            cache.working_path,
            longest_edge=self._edge,
            limit_of=lambda item: lengths[item.id % len(lengths)],
        )
        captioner._clock = clock = CpuClock()
        found = self._measure(captioner)
        model_ms = 1000 * clock.model_s / self._pictures
        return found | {"cpu_ms": found["cpu_ms"] - model_ms, "model_ms": model_ms}

    def _measure(self, captioner: Any) -> dict[str, float]:
        """Run the caption stage; return CPU ms per item of this process and its children, and of the children alone."""
        with Store.open(self._settings) as store, store.run((Stage.CAPTION,)) as run:
            begun, cpu, children = time.perf_counter(), time.process_time(), _children_s()
            try:
                summary = caption(store, run, self._settings, captioner, RunControl())
            finally:
                captioner.close()
            seconds, cpu, children = (
                time.perf_counter() - begun, time.process_time() - cpu, _children_s() - children,
            )  # fmt: skip
        if summary.done != self._pictures:
            with Reader(self._settings.state) as reader:
                why = next((failure.message for failure in failed_items(reader)), "nobody knows why")
            raise SystemExit(f"{summary.done} of {self._pictures} pictures were captioned: {why}")
        each = 1000 / self._pictures
        return {
            "cpu_ms": each * (cpu + children), "feeders_ms": each * children, "images_per_s": self._pictures / seconds
        }  # fmt: skip

    def _tokenise(self) -> float:
        encoder = PromptEncoder(self._loaded.processor, self._settings.max_new_tokens, self._loaded.context)
        return self._each_ms(lambda number: encoder.encode(self._prompts[number]))

    def _detokenise(self) -> float:
        rng = random.Random(0)
        detokenizer = Detokenizer(self._loaded)
        words = len(self._loaded.processor.tokenizer)
        ids = [
            [rng.randrange(words // 3, words) for _ in range(length)] for length in draw_lengths(self._pictures, 200)
        ]
        items = [CaptionItem(number, "0" * 64, prompt) for number, prompt in enumerate(self._prompts)]
        return self._each_ms(lambda number: detokenizer.result(items[number], ids[number]))

    def _each_ms(self, work: Callable[[int], object]) -> float:
        begun = time.process_time()
        for number in range(self._pictures):
            work(number)
        return 1000 * (time.process_time() - begun) / self._pictures


def _children_s() -> float:
    """Return the CPU seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures as Markdown."""
    rate = figures["gpu_rate"]
    print(f"{figures['pictures']} pictures captioned at {figures['images_per_s']:.1f} images/s\n")
    print(f"| | CPU ms per picture | share of a core at {rate:.0f} images/s |")
    print("|---|---|---|")
    rows = {"**the stage without the model**": figures["cpu_ms"]} | figures["parts_ms"]
    rows["(the model itself)"] = figures["model_ms"]
    for name, value in rows.items():
        print(f"| {name} | {value:.2f} | {value * rate / 1000:.1%} |")


def main(given: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure what the caption stage costs beside the model.")
    parser.add_argument("--pictures", type=int, default=2000, help="in the state (default: 2000)")
    parser.add_argument("--manifest", type=Path, help="records to take prompts from (default: made-up ones)")
    parser.add_argument("--demo", action="store_true", help="the model that ships, whose pictures are of 56 pixels")
    parser.add_argument("--directory", type=Path, help="where the temporary files go (default: the system's place)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(given)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="caption-stage-", dir=arguments.directory) as directory:
        figures = Bench(Path(directory), arguments.pictures, arguments.manifest, demo=arguments.demo).run()
    if arguments.json:
        print(json.dumps(figures))
    else:
        print_figures(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
