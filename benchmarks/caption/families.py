"""Slots beside `generate()` in batches, on the CPU, for families that are not LLaVA-1.5; are words the same?

    python -m benchmarks.caption.families                  # three families of 13 million parameters, a few minutes

The models are of random weights and none ends by itself: captions end at drawn lengths, the same for both ways.  CPU
time is what counts, as other work on the machine leaves it nearly alone.
"""

import argparse
import copy
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.tiny_families import FAMILIES
from support.tiny_models import write

from benchmarks.caption.inputs import Workload
from benchmarks.caption.ways import DrawnGenerate
from etl.caption.model.loading import LoadedModel, load
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.timing import Timings
from etl.domain.items import CaptionItem
from etl.images.cache import ImageCache
from etl.settings import Settings

CHOSEN = ("qwen3_vl", "gemma3", "llava_next")
PROMPTS = ("Describe the picture.", "Describe this photograph from the city archives in two to four sentences.")
AT_ONCE = 8
"""Slots, and pictures of a batch."""

_WIDER = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 24,
    "num_key_value_heads": 8,
}  # fmt: skip


def build(family: str, folder: Path, settings: Settings) -> LoadedModel:
    """Return a family's model of a size at which arithmetic counts, whose captions do not end by themselves."""
    tiny = FAMILIES[family]()
    config = copy.deepcopy(tiny.model.config)
    for name, value in _WIDER.items():
        setattr(config.text_config, name, value)
    if kinds := getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = (kinds * _WIDER["num_hidden_layers"])[: _WIDER["num_hidden_layers"]]
    if hasattr(config.vision_config, "out_hidden_size"):
        config.vision_config.out_hidden_size = _WIDER["hidden_size"]
    tiny.model = type(tiny.model)(config)
    loaded = load(dataclasses.replace(settings, model=str(write(tiny, folder / family))))
    return dataclasses.replace(loaded, eos=(loaded.processor.tokenizer.eos_token_id,))


class Heard:
    """A captioner, and the tokens of the captions that it has made."""

    def __init__(self, captioner: Any) -> None:
        self.tokens: dict[int, list[int]] = {}
        self._captioner = captioner
        result: Callable[..., Any] = captioner._detokenizer.result

        def hear(item: CaptionItem, ids: list[int], *more: Any) -> Any:
            self.tokens[item.id] = ids
            return result(item, ids, *more)

        captioner._detokenizer.result = hear

    def cpu_seconds(self, items: Iterable[CaptionItem]) -> float:
        """Caption the items; return the CPU time of this process."""
        begun = time.process_time()
        for outcome in self._captioner.caption(items):
            if not hasattr(outcome, "text"):
                raise RuntimeError(f"no caption: {outcome}")
        return time.process_time() - begun


def compare(family: str, cache: ImageCache, captions: int, rounds: int, longest: int) -> str:
    """Return a line about one family."""
    settings = Settings(
        device="cpu", dtype="float32", slots=AT_ONCE, batch_size=AT_ONCE, max_new_tokens=longest, feeders=0
    )
    loaded = build(family, cache.root / "models", settings)
    work = Workload.make(cache, 12, list(PROMPTS), longest)
    items = list(islice(work.items(), captions))
    best: dict[str, float] = {}
    tokens: dict[str, dict[int, list[int]]] = {}
    ways: dict[str, Callable[[], Any]] = {
        "slots": lambda: SlotCaptioner(loaded, settings, work.locate, limit_of=work.limit_of),
        "batches": lambda: DrawnGenerate(loaded, settings, work, Timings(loaded.device)),
    }
    for _ in range(rounds):
        for name, way in ways.items():
            captioner = way()
            heard = Heard(captioner)
            best[name] = min(best.get(name, float("inf")), heard.cpu_seconds(items))
            tokens[name] = {item.id: heard.tokens[item.id][: work.limit_of(item)] for item in items}
            # While an engine lives, the model attends in its way.
            captioner.close()
    same = sum(tokens["slots"][item.id] == tokens["batches"][item.id] for item in items)
    size = sum(one.numel() for one in loaded.model.parameters()) / 1e6
    written = sum(len(ids) for ids in tokens["slots"].values()) / captions
    cost = {name: seconds / captions for name, seconds in best.items()}
    figures = f"{cost['batches']:.3f} | {cost['slots']:.3f} | {cost['batches'] / cost['slots']:.2f}"
    return f"| {family} | {size:.0f} M | {written:.0f} | {figures} | {same} of {captions} |"


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("families", nargs="*", default=CHOSEN, help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2, help="of which the faster counts")
    parser.add_argument("--longest", type=int, default=64, help="caption, in tokens")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| family | parameters | tokens a caption | CPU s a caption, batches | slots | faster | same words |")
    print("|---|---|---|---|---|---|---|")
    for family in given.families:
        with tempfile.TemporaryDirectory(prefix="families-") as folder:
            print(compare(family, ImageCache(Path(folder)), given.captions, given.rounds, given.longest), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
