"""Today's families in slots: each writes the words of its own `generate()`, and not when a part of it is left out."""

import dataclasses
import hashlib
import importlib.util
import logging
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from caption.conftest import Scenes
from caption.slots import Remembering, with_penalty
from support.tiny_families import NEED_NUM2WORDS, NEED_TORCHVISION, checkpoint
from transformers import AttentionInterface

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.local import choose_engine
from etl.caption.model.loading import LoadedModel, load
from etl.caption.pictures.loader import ImageLoader, LoadedImage
from etl.caption.slots import capacity, kv_cache
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.engine import SlotEngine
from etl.caption.slots.families import Llava, adapter_of, family_of
from etl.caption.slots.family import Family, Prefilled, in_common
from etl.caption.slots.recurrent import Recurrent
from etl.caption.slots.state import EngineConfig, Request
from etl.caption.slots.support import differs, requests_for, why_not
from etl.caption.slots.timing import Timings
from etl.caption.tokens import PromptEncoder
from etl.demo.scenes import random_scene
from etl.domain.items import CaptionItem, ItemFailure
from etl.images.working_copies import open_working_copy
from etl.settings import Settings

MakeSettings = Callable[..., Settings]
Made = Callable[[str], LoadedModel]

LIMIT = 16
QUICK = ("qwen3_vl", "gemma3")
"""Positions of its own and features in several layers; windows, and pictures that see themselves whole."""

SERVED = (
    "llava", "bakllava", "joycaption", "llava_next", "llava_onevision", "internvl", "pixtral", "mistral3", "idefics3",
    "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma4", "lfm2_vl",
)  # fmt: skip

MISSING = {
    family: package
    for package, families in (("torchvision", NEED_TORCHVISION), ("num2words", NEED_NUM2WORDS))
    for family in families
    if importlib.util.find_spec(package) is None
}
"""Families that want a package which is not installed here."""

SIZES = ((320, 240), (120, 360), (224, 224), (400, 130), (90, 70), (200, 280))
PROMPTS = ("Describe the picture.", "Describe this photograph from the city archives in two to four sentences.")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Return twelve items over six pictures of as many shapes, with prompts of two lengths."""
    rng, found = random.Random(5), Scenes(tmp_path_factory.mktemp("mixed"), [])
    for number, size in enumerate(SIZES):
        file = found.folder / "part"
        random_scene(rng).draw(*size).save(file, "JPEG", quality=90)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(found.locate(sha256))
        found.items += [CaptionItem(1 + number + 6 * n, sha256, PROMPTS[(number + n) % 2]) for n in range(2)]
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a maker of small models, each made once, which never end by themselves."""
    root, known = tmp_path_factory.mktemp("families"), dict[str, LoadedModel]()

    def make(family: str) -> LoadedModel:
        if family not in known:
            folder = checkpoint(family, root)
            loaded = load(Settings(model=str(folder), device="cpu", dtype="float32", max_new_tokens=LIMIT))
            known[family] = dataclasses.replace(loaded, eos=(loaded.processor.tokenizer.eos_token_id,))
        return known[family]

    return make


def of_generate(loaded: LoadedModel, scenes: Scenes, items: list[CaptionItem], limit: int) -> dict[int, list[int]]:
    """Return the tokens of `generate()`, one picture at a time."""
    settings = Settings(device="cpu", dtype="float32", batch_size=1, max_new_tokens=limit)
    one = Remembering(GenerateCaptioner(loaded, settings, scenes.locate))
    one.caption(items)
    return one.tokens


def of_slots(loaded: LoadedModel, scenes: Scenes, items: list[CaptionItem], settings: Settings) -> dict[int, list[int]]:
    """Return the tokens of the slot engine."""
    captioner = SlotCaptioner(loaded, settings, scenes.locate)
    engine = Remembering(captioner)
    failed = [outcome for outcome in engine.caption(items) if isinstance(outcome, ItemFailure)]
    captioner.close()
    assert failed == []
    return engine.tokens


def families(quick: tuple[str, ...], names: tuple[str, ...] = SERVED) -> list[Any]:
    """Return families as parameters: the quick ones, and the others for the long tests."""
    return [
        pytest.param(
            name,
            marks=[
                *([] if name in quick else [pytest.mark.soak]),
                *([pytest.mark.skip(f"needs {MISSING[name]}")] if name in MISSING else []),
            ],
        )
        for name in names
    ]


@pytest.mark.parametrize("family", families(QUICK))
def test_a_family_in_slots_writes_the_words_of_generate(
    family: str, made: Made, mixed: Scenes, settings: MakeSettings
) -> None:
    """Pictures of mixed sizes and shapes, refilled slots, and a penalty: token for token those of `generate()`."""
    loaded, thorough = made(family), family not in QUICK
    limit = LIMIT if thorough else 6
    items = mixed.items if thorough else mixed.items[:6]
    assert why_not(loaded) is None
    assert differs(loaded, 4.0) is None
    right = of_generate(loaded, mixed, items, limit)
    assert len({tuple(ids) for ids in right.values()}) > len(items) // 2
    for slots in (1, 5, 12) if thorough else (4,):
        assert of_slots(loaded, mixed, items, settings(slots=slots, max_new_tokens=limit)) == right
    penalised = with_penalty(items if thorough else items[:3], 1.3)
    wanted = of_generate(loaded, mixed, penalised, limit)
    assert of_slots(loaded, mixed, penalised, settings(slots=2, max_new_tokens=limit)) == wanted


def without_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out that positions do not count tokens."""
    prefill = Family.prefill
    monkeypatch.setattr(Family, "prefill", lambda *given: Prefilled(prefill(*given).logits))


def without_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let decoding see everything."""
    attend = kv_cache.slot_attention

    def whole(*given: Any, **more: Any) -> Any:
        if more.get("slot_lengths") is not None:
            more["sliding_window"] = None
        return attend(*given, **more)

    monkeypatch.setitem(AttentionInterface._global_mapping, kv_cache.ATTENTION, whole)


def without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no token of a picture see a later one."""
    look = Family.look

    def without(*given: Any) -> Any:
        seen = look(*given)
        return seen._replace(inputs={name: part for name, part in seen.inputs.items() if name != "token_type_ids"})

    monkeypatch.setattr(Family, "look", without)


def without_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let recurrent layers begin a caption with what the slot's last one left."""
    prefill = Recurrent.prefill
    monkeypatch.setattr(Recurrent, "prefill", lambda *given: prefill(*given)._replace(states=()))


@pytest.mark.parametrize(
    ("family", "leave_out"),
    [
        ("qwen3_vl", without_shift),
        ("gemma3", without_window),
        pytest.param("qwen3_5", without_states, marks=pytest.mark.soak),
        pytest.param("gemma3", without_blocks, marks=pytest.mark.soak),
        pytest.param("qwen2_vl", without_shift, marks=pytest.mark.soak),
        pytest.param("qwen2_5_vl", without_shift, marks=pytest.mark.soak),
    ],
)
def test_what_is_left_out_is_found_by_the_trial(
    family: str, leave_out: Callable[[pytest.MonkeyPatch], None], made: Made, mixed: Scenes, settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Without a shift, a window or the blocks of pictures the words are others; `generate()` captions, and one line
    says why."""
    loaded = made(family)
    few, chosen = mixed.items[:3], settings(slots=3, max_new_tokens=6)
    leave_out(monkeypatch)
    assert of_slots(loaded, mixed, few, chosen) != of_generate(loaded, mixed, few, 6)
    caplog.set_level(logging.WARNING)
    assert type(choose_engine(loaded, chosen, mixed.locate, 1024)) is GenerateCaptioner
    [record] = caplog.records
    assert record.getMessage().startswith(f"captioning {loaded.name} with generate(), not with slots: token ")


@pytest.mark.parametrize("family", families((), ("qwen3_vl", "gemma3", "idefics3")))
def test_a_stop_and_longer_pictures_leave_the_words_alone(
    family: str, made: Made, mixed: Scenes, settings: MakeSettings
) -> None:
    """What was abandoned in its middle is written whole the next time; pictures of more tokens make longer slots."""
    loaded = made(family)
    order = sorted(mixed.items, key=lambda item: open_working_copy(mixed.locate(item.working_sha256)).size)
    items = [dataclasses.replace(order[n // 2], id=n) for n in range(24)]
    right = of_generate(loaded, mixed, items, LIMIT)
    captioner = SlotCaptioner(loaded, settings(slots=3, max_new_tokens=LIMIT), mixed.locate)
    engine = Remembering(captioner)
    polls = iter(range(1000))
    engine.caption(items, should_stop=lambda: next(polls) >= 4)
    assert len(engine.tokens) < len(items)
    engine.tokens.clear()
    engine.caption(items)
    captioner.close()
    assert engine.tokens == right


@pytest.mark.parametrize(
    ("family", "keeping", "windowed", "recurrent"), [("gemma3", 6, 5, 0), ("gemma4", 6, 5, 0), ("qwen3_5", 1, 0, 3)]
)
def test_slots_are_as_large_as_they_are_said_to_be(
    made: Made, settings: MakeSettings, family: str, keeping: int, windowed: int, recurrent: int
) -> None:
    """The bytes of a slot are counted layer by layer, each with the heads, the window or the states that it has."""
    loaded = made(family)
    layout = adapter_of(loaded.model.config).layout_of(loaded.model.config, loaded.dtype)
    windows = [layer.window for layer in layout.layers]
    assert (len(windows), sum(map(bool, windows)), len(layout.states)) == (keeping, windowed, recurrent)
    cache = kv_cache.slot_cache(layout, kv_cache.Placement(3, loaded.device), 3, 41, loaded.dtype, loaded.device)
    held = 0
    for layer in cache.layers:
        kept = layer.held if isinstance(layer, kv_cache.StateLayer) else (layer.keys, layer.values)
        held += sum(each.nbytes for each in kept)
    said = capacity.slot_bytes(loaded, 40, settings(max_new_tokens=1), penalised=False)
    assert 3 * said - held == 3 * (8 * layout.vocab_size + 8)


def test_an_attention_that_is_not_done_is_refused(
    made: Made, mixed: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer that caps its scores would be driven wrongly in silence: the trial fails, and says for what."""
    attend = kv_cache.slot_attention
    capped = lambda *given, **more: attend(*given, softcap=50.0, **more)  # noqa: E731
    monkeypatch.setitem(AttentionInterface._global_mapping, kv_cache.ATTENTION, capped)
    assert type(choose_engine(made("gemma3"), settings(), mixed.locate, 1024)) is GenerateCaptioner
    assert "the trial of a few words failed: its attention asks for softcap" in caplog.text


def test_only_llava_keeps_a_way_of_its_own(made: Made, loaded: LoadedModel) -> None:
    """LLaVA-1.5's pictures travel as bytes; one of its kind whose processor is another goes through its own forward."""
    assert [type(family_of(model, 4.0)) for model in (loaded, made("joycaption"))] == [Llava, Family]


def test_a_processor_survives_the_way_to_its_process(made: Made, mixed: Scenes) -> None:
    """What a loader's process gets is the processor that was loaded, even where its class was made for it."""
    loaded = made("qwen3_vl")
    encoder = PromptEncoder(loaded.processor, LIMIT, loaded.context)
    plan = family_of(loaded, 4.0).plan(encoder)
    picture = open_working_copy(mixed.locate(mixed.items[0].working_sha256))
    text = encoder.encode(PROMPTS[0]).text
    assert pickle.loads(pickle.dumps(plan)).prepare(picture, text) == plan.prepare(picture, text)


def test_a_picture_that_is_too_much_fails_alone(made: Made, mixed: Scenes, settings: MakeSettings) -> None:
    """A picture of more tokens than the context holds is too long; one that the processor refuses fails, alone."""
    loaded = made("qwen3_vl")
    family, encoder = family_of(loaded, 4.0), PromptEncoder(loaded.processor, 4, None)
    lengths = {}
    for item in mixed.items:
        prompt, picture = encoder.encode(item.prompt), open_working_copy(mixed.locate(item.working_sha256))
        data = family.plan(encoder).prepare(picture, prompt.text)
        lengths[item.id] = len(family.request(item, prompt, data, 4).ids)
    longest = sorted(lengths.values())[6]
    loaded = dataclasses.replace(loaded, context=longest + 4)
    captioner = SlotCaptioner(loaded, settings(slots=2, max_new_tokens=4), mixed.locate)
    prepare = loaded.processor.image_processor.preprocess

    def refuse(images: Any, *given: Any, **named: Any) -> Any:
        if images[0][0].size == SIZES[4]:
            raise ValueError("no such picture")
        return prepare(images, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.processor.image_processor, "preprocess", refuse)
        outcomes = {outcome.id: outcome for outcome in captioner.caption(mixed.items)}
    captioner.close()
    failed = {number: one for number, one in outcomes.items() if isinstance(one, ItemFailure)}
    refused = {number for number, one in failed.items() if (one.slug, one.message) == ("generation", "no such picture")}
    assert refused == {5, 11}
    assert {number for number, one in failed.items() if one.slug == "prompt_too_long"} == {
        number for number, length in lengths.items() if length > longest and number not in refused
    }
    assert 0 < len(failed) < len(outcomes) == len(mixed.items)


@pytest.mark.soak
@pytest.mark.parametrize("family", families(("qwen3_vl", "idefics3"), ("qwen3_vl", "idefics3")))
def test_processes_carry_what_the_processor_gives(family: str, made: Made, mixed: Scenes) -> None:
    """Real processes give, for each picture and its chat, what the processor gives here."""
    loaded = made(family)
    encoder = PromptEncoder(loaded.processor, LIMIT, loaded.context)
    plan = family_of(loaded, 4.0).plan(encoder)
    texts = {item.id: encoder.encode(item.prompt).text for item in mixed.items}
    taken: list[LoadedImage] = []
    with ImageLoader(plan, mixed.locate, processes=2) as loader:
        for item in mixed.items:
            loader.submit(item, texts[item.id])
        while loader.pending:
            taken += loader.take(60)
    assert len(taken) == len(mixed.items)
    for one in taken:
        picture = open_working_copy(mixed.locate(one.item.working_sha256))
        assert one.data == plan.prepare(picture, texts[one.item.id])


@pytest.mark.parametrize("family", families(("llava", "qwen3_vl")))
def test_several_prompts_about_a_picture_see_it_once(
    family: str, made: Made, mixed: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first prompt about a picture is gone through whole, the others from where they differ; no word changes."""
    loaded = made(family)
    prompts = (PROMPTS[0], "Describe it.", "What is it?")
    asked = [dataclasses.replace(item, prompt=prompt) for prompt in prompts for item in mixed.items[:6:2]]
    asked = [dataclasses.replace(item, id=number) for number, item in enumerate(asked)]
    pictures = [(open_working_copy(mixed.locate(item.working_sha256)), item.prompt) for item in asked]
    requests = [
        dataclasses.replace(each, item=asked[each.item.id])
        for each in requests_for(loaded, loaded.max_aspect(Settings()), pictures, 5)
    ]
    driver = family_of(loaded, 4.0)
    whole, through = 0, type(driver).through

    def counted(driver: Family, ids: Any, *rest: Any) -> Any:
        nonlocal whole
        whole += len(ids)
        return through(driver, ids, *rest)

    monkeypatch.setattr(type(driver), "through", counted)
    config = EngineConfig(len(asked), max(each.max_seq_len for each in requests), 5)
    engine = SlotEngine(loaded, driver, config, Timings(loaded.device))
    engine.admit(requests)
    found: dict[int, list[int]] = {}
    while engine.in_use:
        found |= {each.request.item.id: each.ids for each in engine.step()}
    engine.close()
    assert whole == 3
    assert found == of_generate(loaded, mixed, asked, 5)


@pytest.mark.parametrize(
    ("prompts", "own", "others"),
    [
        ("a:.IIxyz b:.IIxyz", [0, 1], []),
        ("a:.IIxyz a:.IIwxyz", [0], [(3, (1,), (0,))]),
        ("a:IIxxyz b:IIxyz a:IIxxxyz b:IIxyyz a:IIxyz", [0, 1], [(3, (2, 3, 4), (0, 1, 0))]),
        ("a:IIxyz b:IIIxyz b:IIIwyz a:IIwyz", [0, 1], [(3, (2,), (1,)), (2, (3,), (0,))]),
        ("a:IxIyz a:IxIyz a:IIIyz", [0, 2], [(3, (1,), (0,))]),
        ("a:IIy a:IIyzz a:IIy", [0, 1, 2], []),
        (":IIxyz :IIxyz a:xyz a:xyz", [0, 1, 2, 3], []),
    ],
)
def test_what_prompts_have_in_common(
    prompts: str, own: list[int], others: list[tuple[int, tuple[int, ...], tuple[int, ...]]]
) -> None:
    """Whatever follows the picture, at least two tokens of each prompt are left; pictures that end at the same place
    are gone on from together."""
    requests = [
        Request(CaptionItem(number, picture, ""), tuple(map(ord, tokens)), {}, 1)
        for number, (picture, tokens) in enumerate(prompt.split(":") for prompt in prompts.split())
    ]
    assert in_common(requests, ord("I")) == (own, others)


def test_the_trial_finds_a_picture_that_is_not_handed_on(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what two prompts have in common does not get from one slot to another, the trial sees other words."""
    monkeypatch.setattr(kv_cache.SlotLayer, "copy", lambda *_: None)
    assert "is not the model's own" in str(differs(made("qwen3_vl"), 4.0))


def test_large_pictures_are_pulled_in_smaller_numbers(
    made: Made, mixed: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many slots there are, pictures that wait for them take no more than so many bytes."""
    monkeypatch.setattr("etl.caption.slots.request_queue._FEWEST", 3)
    loaded = made("qwen3_vl")
    held = []
    for limit in (1, 10**9):
        monkeypatch.setattr("etl.caption.slots.request_queue._HELD", limit)
        captioner = SlotCaptioner(loaded, settings(slots=1, max_new_tokens=2), mixed.locate)
        items = (dataclasses.replace(mixed.items[8], id=n) for n in range(36))
        waiting = [captioner.sample().waiting for _ in captioner.caption(items)]
        captioner.close()
        # What was pulled before the first picture was open is not counted.
        held.append(max(waiting[20:]))
    assert held[0] <= 3 and held[1] > 10


def test_what_slots_do_not_serve(made: Made) -> None:
    """Cross-attention and captioners without a chat are left to `generate()`, each for its reason."""
    assert "cross-attention" in str(why_not(made("mllama")))
    assert "without being asked" in str(why_not(made("florence2")))
