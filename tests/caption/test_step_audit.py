"""No part of the engine that runs beside others, or is recorded, waits for the device or depends on a value there."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from caption.cuda_stand_in import StandIn
from caption.slots import other_architecture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from etl.caption.model import cuda
from etl.caption.model.loading import LoadedModel, load
from etl.caption.slots import support as suitability
from etl.caption.slots.engine import SlotEngine
from etl.caption.slots.families import family_of
from etl.caption.slots.kernel_check import exact_attention
from etl.caption.slots.state import EngineConfig, Request
from etl.caption.slots.timing import Timings
from etl.settings import Settings

MakeSettings = Callable[..., Settings]

WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")
"""Operations whose result the host needs before it can go on."""


class HostError(Exception):
    """The device would have to be waited for."""


class Audit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows which tensors are the host's: those made of Python values, and what is computed from them alone.

    It refuses what mixes them with the device's, what has the host wait for a value of the device, and indexing by
    booleans, whose count is such a value.

    Attributes:
        seen: the operations so far, each with the shapes and types that it was given.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
        name = func.overloadpacket.__name__
        hosts = [is_host(each) for each in given]
        if any(hosts) and not all(hosts):
            raise HostError(f"{name} mixes tensors of the host with those of the device")
        on_host = name == "lift_fresh" or (bool(given) and all(hosts))
        if not on_host:
            self._judge(name, args)
            self.seen.append((name, tuple((tuple(each.shape), each.dtype) for each in given)))
        return of_host(func(*args, **(kwargs or {}))) if on_host else func(*args, **(kwargs or {}))

    @staticmethod
    def _judge(name: str, args: Any) -> None:
        if name in WAITING:
            raise HostError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            each.dtype is torch.bool for each in args[1] if each is not None
        ):
            raise HostError(f"{name} by booleans waits for the device")


def is_host(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is the host's."""
    return getattr(tensor, "made_by_host", False)


def of_host(values: Any) -> Any:
    """Mark tensors as the host's."""

    def mark(tensor: torch.Tensor) -> torch.Tensor:
        tensor.made_by_host = True  # type: ignore[attr-defined]
        return tensor

    return tree_map_only(torch.Tensor, mark, values)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Return a GPU that is the CPU, whose copies are the only way between the host and the device."""
    stand_in = StandIn().put(monkeypatch)
    send, fetch, to_list = cuda.to_device, cuda.to_host, torch.Tensor.tolist

    def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert is_host(tensor)
        with torch.utils._python_dispatch._disable_current_modes():
            return send(tensor.detach().clone(), device)

    def to_host(tensors: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return of_host(fetch(tensors))

    def tolist(tensor: torch.Tensor) -> Any:
        if not is_host(tensor):
            raise HostError("tolist waits for the device")
        with torch.utils._python_dispatch._disable_current_modes():
            return to_list(tensor)

    monkeypatch.setattr(cuda, "to_device", to_device)
    monkeypatch.setattr(cuda, "to_host", to_host)
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    return stand_in


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a model whose query heads share keys and values."""
    folder = other_architecture(tmp_path_factory.mktemp("audit") / "grouped", num_key_value_heads=2)
    return load(Settings(model=str(folder), device="cpu", dtype="float32"))


@pytest.fixture
def audited(loaded: LoadedModel, grouped: LoadedModel) -> Iterator[Any]:
    """Return a maker of an engine of the model that is asked for, and its requests, whose pixels are the host's."""
    engines: list[SlotEngine] = []

    def make(model: str, penalised: bool) -> tuple[SlotEngine, list[Request]]:
        chosen = dataclasses.replace(loaded if model == "plain" else grouped, eos=(2,))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "serves", lambda _: False)
            requests = [
                dataclasses.replace(each, limit=limit, penalty=1.3 if penalised else 1.0, inputs=of_host(each.inputs))
                for each in suitability.trial_requests(chosen, 4.0)[:2]
                for limit in (3, 5)
            ]
        config = EngineConfig(3, max(each.max_seq_len for each in requests), 5, penalised)
        engines.append(SlotEngine(chosen, family_of(chosen, 4.0), config, Timings(chosen.device), poll=1))
        return engines[-1], requests

    yield make
    for engine in engines:
        engine.close()


def exact_kernel(query: Any, keys: Any, values: Any, lengths: Any, scale: float, window: int | None) -> torch.Tensor:
    """Stand in for the Triton kernel, which must be given what it relies on; nothing of it is looked at."""
    assert keys.stride() == values.stride() and keys.stride(-1) == query.stride(-1) == 1
    assert lengths.dtype is torch.int32 and keys.shape[:3] == (len(lengths), keys.shape[1], values.shape[2])
    with torch.utils._python_dispatch._disable_current_modes():
        return exact_attention(query, keys, values, lengths, scale, window).to(query.dtype)


@pytest.mark.parametrize("penalised", [False, True], ids=["plain", "penalised"])
@pytest.mark.parametrize("kernel", [None, exact_kernel], ids=["sdpa", "kernel"])
@pytest.mark.parametrize("model", ["plain", "grouped"])
def test_nothing_waits_for_the_device(
    audited: Any, monkeypatch: pytest.MonkeyPatch, model: str, kernel: Any, penalised: bool
) -> None:
    """Prefill, entering and decoding: no host value, no look at a value, and each step is the same operations."""
    monkeypatch.setattr("etl.caption.slots.engine.usable_kernel", lambda *_: kernel)
    engine, requests = audited(model, penalised)
    steps: list[Any] = []
    decode = engine._decode

    with Audit() as audit:

        def recorded() -> None:
            before = len(audit.seen)
            decode()
            steps.append(audit.seen[before:])

        monkeypatch.setattr(engine, "_graph", recorded)
        engine.admit(requests[:2])
        finished = engine.step()
        engine.admit(requests[2:3])
        while engine.in_use or len(finished) < 4:
            finished += engine.step()
            if engine.free and len(requests) == 4:
                engine.admit([requests.pop()])
    assert sorted(each.request.limit for each in finished) == [3, 3, 5, 5]
    assert len(steps) >= 5
    assert all(step == steps[0] for step in steps)


@pytest.mark.parametrize(
    "look",
    [
        lambda x, _: x[0].item(),
        lambda x, _: x.tolist(),
        lambda x, i: x.__setitem__(i, 1),
        lambda x, i: x.__setitem__(i, torch.tensor([1, 1])),
        lambda x, _: x[x > 0],
        lambda x, _: bool((x > 0).any()),
        lambda x, _: x + torch.tensor(1),
    ],
)
def test_the_audit_sees_what_it_is_for(look: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    """Each way in which a step would wait for the device is refused; what stays there is not."""
    x, places = torch.zeros(4, dtype=torch.long), torch.arange(2)
    with Audit():
        x.index_fill_(0, places, 1)
        x[places] = x[places] * 2 + 1
        with pytest.raises(HostError):
            look(x, places)
