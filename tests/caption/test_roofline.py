"""The bounds that captioning is measured against."""

import dataclasses

import pytest

from etl.caption.gpus.roofline import GIB, Bounds, Ceilings, Load, Shapes, bounds

LLAVA_7B = Shapes(
    hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, head_dim=128, vocabulary=32064,
    vision_hidden=1024, vision_intermediate=4096, vision_layers=23, vision_tokens=577, image_tokens=576,
    patch_values=588,
)  # fmt: skip
H200 = Ceilings(788e12, 4.3e12, 139 * GIB)
A100 = Ceilings(265e12, 1.4e12, 39.4 * GIB)


def bound(ceilings: Ceilings, caption: int, **load: int) -> Bounds:
    """Return the bounds for a LLaVA-1.5-7B under prompts of 686 tokens."""
    return bounds(LLAVA_7B, ceilings, Load(686, caption, **load))


def test_the_work_of_one_picture_is_that_of_llava() -> None:
    """Arithmetic and traffic are those that were worked out by hand for LLaVA-1.5-7B."""
    assert LLAVA_7B.vision_flop() / 1e12 == pytest.approx(0.39, abs=0.005)
    assert LLAVA_7B.prefill_flop(686) / 1e12 == pytest.approx(9.01, abs=0.005)
    assert LLAVA_7B.token_flop() / 1e9 == pytest.approx(13.2, abs=0.05)
    assert 2 * (LLAVA_7B.decoder_weights + LLAVA_7B.head_weights) / 1e9 == pytest.approx(13.2, abs=0.05)
    assert 2 * LLAVA_7B.kv_values == 512 * 1024


@pytest.mark.parametrize(
    ("ceilings", "load", "at_60", "at_100", "at_200"),
    [
        (H200, {}, (55, 77), (44, 74), (29, 47)),
        (H200, {"slots": 64}, (50, 77), (39, 73), (25, 35)),
        (H200, {"kv_bytes": 1}, (64, 77), (55, 74), (40, 65)),
        (A100, {}, (16, 26), (12, 22), (7, 10)),
        (A100, {"kv_bytes": 1}, (21, 26), (17, 25), (12, 20)),
    ],
)
def test_bounds_are_those_published(
    ceilings: Ceilings, load: dict[str, int], at_60: tuple[int, int], at_100: tuple[int, int], at_200: tuple[int, int]
) -> None:
    """For an H200 and an A100 the bounds in images/s are the published ones, serial and with perfect overlap."""
    for caption, wanted in ((60, at_60), (100, at_100), (200, at_200)):
        found = bound(ceilings, caption, **load)
        assert (found.serial, found.overlap) == pytest.approx(wanted, abs=0.55)


def test_slots_are_those_that_the_memory_holds() -> None:
    """Where no slots are given, as many are counted as fit beside the weights; never none."""
    assert bound(H200, 100).slots == 296
    assert bound(A100, 100).slots == 52
    assert bound(dataclasses.replace(A100, memory=GIB), 100).slots == 1


def test_grouped_queries_make_the_cache_smaller() -> None:
    """A model with a quarter of the key/value heads keeps a quarter of the values and has room for more slots."""
    grouped = dataclasses.replace(LLAVA_7B, kv_heads=8)
    assert 4 * grouped.kv_values == LLAVA_7B.kv_values
    assert bounds(grouped, H200, Load(686, 100)).slots > 4 * 296
