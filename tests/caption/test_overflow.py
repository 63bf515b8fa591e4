"""Pictures whose half-precision logits overflow are written again in what the memory has room for, or fail alone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from caption.conftest import Scenes
from caption.cuda_stand_in import StandIn

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.generate.guards import single_precision, wide_range, wider_precisions
from etl.caption.model.loading import LoadedModel, load
from etl.domain.items import CaptionResult, ItemFailure
from etl.settings import Settings

MakeSettings = Callable[..., Settings]
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 GiB")


@pytest.fixture(scope="module")
def overflowing() -> LoadedModel:
    """Return the demo model in float16, with weights close to that type's limit, whose products are beyond it."""
    half = load(Settings(model="demo", device="cpu", dtype="float16"))
    with torch.no_grad():
        for layer in half.model.model.language_model.layers:
            layer.mlp.down_proj.weight *= 60_000 / float(layer.mlp.down_proj.weight.abs().max())
    return half


@pytest.fixture(autouse=True)
def unchanged(overflowing: LoadedModel) -> Iterator[None]:
    """See to it that the model's weights are those of before after each test, bit for bit."""
    before = [parameter.clone() for parameter in overflowing.model.parameters()]
    yield
    after = list(overflowing.model.parameters())
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.fixture
def captioned(overflowing: LoadedModel, scenes: Scenes, settings: MakeSettings) -> Callable[[], list[Any]]:
    """Return what captions three pictures with that model."""
    chosen = settings(dtype="float16", max_new_tokens=10)
    return lambda: list(GenerateCaptioner(overflowing, chosen, scenes.locate).caption(scenes.items[:3]))


def texts(outcomes: list[Any]) -> list[str]:
    """Return the captions, all of which must say that they were made again."""
    assert all(isinstance(outcome, CaptionResult) and "recomputed" in outcome.flags for outcome in outcomes)
    return [outcome.text for outcome in outcomes]


@pytest.fixture
def right(captioned: Callable[[], list[Any]]) -> list[str]:
    """Return the captions of float32."""
    found = texts(captioned())
    assert len(set(found)) > 1
    return found


def test_where_float32_has_no_room_bfloat16_does(
    overflowing: LoadedModel, captioned: Callable[[], list[Any]], right: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card that cannot hold the weights twice more, they stay as they are; the words are those of float32."""
    used: set[tuple[torch.dtype, torch.dtype]] = set()
    large = overflowing.model.model.language_model.layers[0].mlp.down_proj
    hook = large.register_forward_hook(lambda module, _, out: used.add((module.weight.dtype, out.dtype)))
    bytes_in_float32 = 4 * sum(parameter.numel() for parameter in overflowing.model.parameters())
    with monkeypatch.context() as patch:
        gpu = StandIn(free=2 * bytes_in_float32 - 4096).put(patch)
        assert wider_precisions(overflowing.model) == [wide_range]
        gpu.free *= 2
        assert wider_precisions(overflowing.model) == [single_precision, wide_range]
    monkeypatch.setattr("etl.caption.generate.captioner.wider_precisions", lambda _: [wide_range])
    assert texts(captioned()) == right
    hook.remove()
    assert used == {(torch.float16, torch.float16), (torch.float16, torch.bfloat16)}


def test_memory_that_ends_while_weights_are_widened(
    captioned: Callable[[], list[Any]], right: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 that finds no room in the midst of the weights leaves them as they were; bfloat16 writes the words."""
    widened = torch.Tensor.float
    tried = []

    def scarce(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is torch.float16 and tensor.shape == (768, 128) and not tensor.requires_grad:
            tried.append(tensor)
            raise FULL
        return widened(tensor)

    monkeypatch.setattr("etl.caption.generate.captioner.wider_precisions", lambda _: [single_precision, wide_range])
    monkeypatch.setattr(torch.Tensor, "float", scarce)
    outcomes = captioned()
    assert tried
    assert texts(outcomes) == right


def test_where_nothing_has_room_the_pictures_fail(
    captioned: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short for every wider type, pictures fail as items; the captioner and its process go on."""

    def full(_: Any) -> Any:
        raise FULL

    monkeypatch.setattr("etl.caption.generate.captioner.wider_precisions", lambda _: [full, full])
    outcomes = captioned()
    assert [(o.slug, o.retryable, o.message) for o in outcomes if isinstance(o, ItemFailure)] == [
        ("generation", True, str(FULL))
    ] * 3


def test_a_model_in_float32_has_no_wider_type(loaded: LoadedModel) -> None:
    """What is not a number in float32 is tried no further."""
    assert wider_precisions(loaded.model) == []
