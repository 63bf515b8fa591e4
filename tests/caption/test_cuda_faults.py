"""Every call to CUDA fails once: each item is captioned once, or the GPU is lost and nothing is held against any."""

import ast
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from caption.conftest import Scenes
from caption.cuda_stand_in import SAFE, SITES, StandIn, failing_launches
from caption.slots import make_scenes, remembering, tokens_one_by_one, with_penalty

import etl.caption
from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.local import choose_engine
from etl.caption.model import cuda
from etl.caption.model.loading import LoadedModel
from etl.caption.slots import engine, kernel_check
from etl.domain.items import CaptionResult
from etl.errors import ModelError
from etl.settings import Settings

MakeSettings = Callable[..., Settings]
LIMIT = 5

FULL = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"),
    "driver": torch.AcceleratorError("CUDA error: out of memory"),
    "library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "other": torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
}
"""The disguises of memory that is short, and an error that CUDA survives."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Return six items, two of them with a repetition penalty."""
    found = make_scenes(tmp_path_factory.mktemp("faults"), 6, seed=5)
    found.items[4:] = with_penalty(found.items[4:], 1.3)
    return found


@pytest.fixture(scope="module")
def right(loaded: LoadedModel, scenes: Scenes) -> dict[int, list[int]]:
    """Return the tokens of `generate()`."""
    return tokens_one_by_one(loaded, scenes, {item.id: LIMIT for item in scenes.items})


@pytest.fixture(autouse=True)
def said_anew() -> None:
    """Let each test hear what is said once a process."""
    kernel_check.usable_kernel.cache_clear()
    engine._say_unrecorded.cache_clear()


SELDOM = ("use", "capture", "is_past", "memory", "synchronize")
"""Called once or twice while an engine lives; the others fail at their third time, in the midst of the work."""


class Once:
    """Lets a call fail, once."""

    def __init__(self, site: str, error: Exception) -> None:
        self._site, self._error = site, error
        self.happened = False

    def __call__(self, name: str, count: int) -> None:
        if name == self._site and count == (1 if name in SELDOM else 3):
            self.happened = True
            raise self._error


def test_the_list_of_calls_is_whole() -> None:
    """Each function of `cuda.py` is made to fail or known not to, and no other module asks CUDA itself."""
    functions = {name for name, _ in inspect.getmembers(cuda, inspect.isfunction) if not name.startswith("_")}
    assert functions == {*SITES, *SAFE}
    folder = Path(etl.caption.__file__).parent
    asked = {}
    for path in folder.rglob("*.py"):
        calls = [
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda.")
        ]
        if calls and path.name != "cuda.py":
            asked[path.name] = set(calls)
    # Which GPUs there are, and whether their memory is handled as asked, is found out before anything is captioned.
    assert set(asked) <= {"device.py", "checks.py", "plan.py", "loading.py"}


def test_on_the_stand_in_the_words_are_right(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The engine's ways on a GPU, one turn late and with recorded steps, lose nothing; each call is made."""
    gpu = StandIn().put(monkeypatch)
    with remembering(loaded, scenes, settings(slots=3, feeders=0, max_new_tokens=LIMIT)) as slots:
        slots.caption(scenes.items)
        assert slots.tokens == right
        assert slots.captioner.timings["decode"] == 0.0
    assert set(gpu.calls) == set(SITES) - {"memory"}


def each(values: Sequence[object], quick: Mapping[object, str]) -> list[Any]:
    """Return each value with each disguise, for the long run but for the ``quick`` ones."""
    return [
        pytest.param(value, name, marks=[] if quick.get(value) == name else [pytest.mark.soak])
        for value in values
        for name in FULL
    ]


SHORT = [site for site in SITES if site not in ("memory", "seconds_between")]
"""Calls that may find memory short; the other two only ask."""


@pytest.mark.parametrize(
    ("site", "disguise"),
    each(SHORT, {"to_device": "allocator", "to_host": "driver", "mark": "library", "capture": "driver",
                 "replay": "other"}),
)  # fmt: skip
def test_what_cuda_survives_costs_slots(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch, site: str, disguise: str,
) -> None:  # fmt: skip
    """Wherever memory is short once, however that is said, each item has its words once and no attempt is charged."""
    once = Once(site, FULL[disguise])
    StandIn(once, free=0).put(monkeypatch)
    with remembering(loaded, scenes, settings(slots=4, feeders=0, max_new_tokens=LIMIT)) as slots:
        outcomes = slots.caption(scenes.items)
        assert once.happened
        assert slots.tokens == right
        assert all(isinstance(outcome, CaptionResult) for outcome in outcomes)
        assert slots.captioner.sample().slots >= 2


@pytest.mark.parametrize(
    "site",
    [
        pytest.param(site, marks=[] if site in ("to_device", "replay") else [pytest.mark.soak])
        for site in SITES
        if site != "seconds_between"
    ],
)
def test_a_lost_gpu_ends_the_run_with_its_first_error(
    loaded: LoadedModel, scenes: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    """After an error that CUDA does not survive, that one is told, whatever fails after it; no item has failed."""
    first = torch.AcceleratorError("CUDA error: the first of all")
    gpu = StandIn(Once(site, first), fatal=True).put(monkeypatch)
    sizes = {} if site == "memory" else {"slots": 4}
    with remembering(loaded, scenes, settings(feeders=0, max_new_tokens=LIMIT, **sizes)) as slots:
        outcomes = []
        with pytest.raises(ModelError, match=r"^the GPU failed .*the first of all"):
            outcomes += slots.captioner.caption(scenes.items)
        assert gpu.lost
    assert all(isinstance(outcome, CaptionResult) for outcome in outcomes)


@pytest.mark.parametrize(("number", "disguise"), each((40, 400, 1500, 3000), {400: "driver", 3000: "allocator"}))
def test_a_launch_that_fails(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch, number: int, disguise: str,
) -> None:  # fmt: skip
    """An operation on tensors that fails once, in setting up, prefill or decoding, costs slots and nothing else."""
    StandIn(free=0).put(monkeypatch)
    with remembering(loaded, scenes, settings(slots=8, feeders=0, max_new_tokens=LIMIT)) as slots:
        with failing_launches(number, FULL[disguise]):
            slots.caption(scenes.items)
        assert slots.tokens == right


def test_without_a_recording_steps_are_begun_one_by_one(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Where no step can be recorded although memory is free, no slot is given up, and one line says so, once."""
    caplog.set_level(logging.WARNING)

    def never(name: str, _: int) -> None:
        if name == "capture":
            raise torch.AcceleratorError("CUDA error: out of memory")

    StandIn(never).put(monkeypatch)
    with remembering(loaded, scenes, settings(slots=5, feeders=0, max_new_tokens=LIMIT)) as slots:
        slots.caption(scenes.items)
        assert slots.tokens == right
        assert slots.captioner.sample().slots == 5
    said = [record.getMessage() for record in caplog.records if "recorded" in record.getMessage()]
    assert said == ["a decoding step cannot be recorded as a graph, so captions take longer: CUDA error: out of memory"]


@pytest.mark.parametrize("fatal", [False, True], ids=["survived", "lost"])
def test_generate_judges_errors_alike(
    loaded: LoadedModel, scenes: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, fatal: bool
) -> None:
    """`generate()` halves its batches after an error that CUDA survives; another ends the run, and is told."""
    gpu = StandIn(fatal=fatal).put(monkeypatch)
    failed: list[Any] = []
    generate = type(loaded.model).generate

    def once(model: Any, **named: Any) -> Any:
        if not failed:
            failed.append(named)
            gpu.lost = fatal
            raise torch.AcceleratorError("CUDA error: the first of all")
        return generate(model, **named)

    monkeypatch.setattr(type(loaded.model), "generate", once)
    captioner = GenerateCaptioner(loaded, settings(batch_size=4, max_new_tokens=3), scenes.locate)
    if fatal:
        with pytest.raises(ModelError, match=r"^the GPU failed .*the first of all"):
            list(captioner.caption(scenes.items[:4]))
        return
    outcomes = list(captioner.caption(scenes.items[:4]))
    assert sorted(o.id for o in outcomes if isinstance(o, CaptionResult)) == [item.id for item in scenes.items[:4]]
    assert captioner.batch_size == 2


def test_a_gpu_that_is_lost_in_the_trial(
    loaded: LoadedModel, scenes: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the trial of a few words does to a GPU for good is told as that, and not left to `generate()`."""
    StandIn(Once("replay", torch.AcceleratorError("CUDA error: the first of all")), fatal=True).put(monkeypatch)
    with pytest.raises(ModelError, match=r"^the GPU failed .*the first of all"):
        choose_engine(loaded, settings(), scenes.locate, 1024)
