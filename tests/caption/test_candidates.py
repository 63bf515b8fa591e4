"""Ways to be faster that nobody has measured: off by default, switched on by name, and without an effect on words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caption.cuda_stand_in import StandIn
from caption.slots import make_scenes, tokens_one_by_one

from etl.caption.model import cuda
from etl.caption.model.loading import LoadedModel
from etl.caption.slots import capacity
from etl.caption.slots.candidates import NAMES, Candidates
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.engine import SlotEngine
from etl.caption.slots.state import EngineConfig, Request
from etl.domain.items import CaptionItem
from etl.settings import Settings

LIMIT = 5


def test_no_word_changes_whichever_is_on(
    loaded: LoadedModel, settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself gives the tokens of `generate()`, and does what it is for; without a name none is on."""
    assert Candidates.of([]) == Candidates() == Candidates(False, False, False)
    with pytest.raises(TypeError):
        Candidates.of(["fused"])
    scenes = make_scenes(tmp_path, 4, seed=12)
    right = tokens_one_by_one(loaded, scenes, {item.id: LIMIT for item in scenes.items})
    StandIn().put(monkeypatch)
    plain = captioned(loaded, settings, scenes, Candidates(), right, monkeypatch)
    for name in NAMES:
        on = captioned(loaded, settings, scenes, Candidates.of([name]), right, monkeypatch)
        assert on["first"] == ({True} if name == "decode_first" else {False})
        assert (on["max_seq_len"] < plain["max_seq_len"]) == (name == "tight_rows")


def captioned(
    loaded: LoadedModel, settings: Any, scenes: Any, candidates: Candidates, right: Any, monkeypatch: Any
) -> dict[str, Any]:
    """Caption the scenes, which must have the right tokens; return what was asked of streams and rows."""
    seen: dict[str, Any] = {"first": set()}
    prefill, capture = SlotEngine._prefill, cuda.capture
    tokens: dict[int, list[int]] = {}

    def watched(engine: SlotEngine, requests: Any, slots: Any) -> Any:
        seen["max_seq_len"] = engine.config.max_seq_len
        return prefill(engine, requests, slots)

    def recorded(step: Any, device: torch.device, *, first: bool) -> Any:
        seen["first"].add(first)
        return capture(step, device)

    with monkeypatch.context() as patch:
        patch.setattr(SlotEngine, "_prefill", watched)
        patch.setattr(cuda, "capture", recorded)
        # So that slots of the demo's short prompts are not all rounded to the same length.
        patch.setattr(capacity, "ROUND_TO", 8)
        captioner = SlotCaptioner(
            loaded, settings(slots=3, feeders=0, max_new_tokens=LIMIT), scenes.locate, candidates=candidates
        )
        result = captioner._detokenizer.result
        patch.setattr(
            captioner._detokenizer, "result",
            lambda item, ids, extra=(): tokens.setdefault(item.id, ids) and result(item, ids, extra),
        )  # fmt: skip
        list(captioner.caption(scenes.items))
        captioner.close()
    assert tokens == right
    return seen


@pytest.mark.parametrize(("names", "order"), [([], [[30, 10], [31, 11]]), (["by_length"], [[30, 31], [10, 11]])])
def test_prompts_of_like_length_go_together(
    loaded: LoadedModel, settings: Callable[..., Settings], tmp_path: Path, names: list[str], order: list[list[int]]
) -> None:
    """With ``by_length`` the oldest picture goes with those whose prompts are most like its own, else with the next."""
    captioner = SlotCaptioner(loaded, settings(feeders=0), lambda _: tmp_path, candidates=Candidates.of(names))
    taken: list[list[int]] = []

    class Engine:
        config = EngineConfig(2, 100, 40)
        free, in_use = 2, 1

        def admit(self, group: list[Request]) -> None:
            taken.append([len(request.ids) for request in group])

    for length in (30, 10, 31, 11):
        captioner._queue.ready.append(Request(CaptionItem(length, "", ""), (1,) * length, {}, 5))
    captioner.engine = Engine()  # type: ignore[assignment]
    for _ in range(2):
        list(captioner._fill())
    captioner.engine = None
    captioner.close()
    assert taken == order
