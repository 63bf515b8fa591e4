"""How many slots a card has room for."""

import logging

from etl.caption.model import cuda
from etl.caption.model.loading import LoadedModel
from etl.caption.slots.families import adapter_of
from etl.caption.slots.kv_cache import CacheLayout
from etl.caption.slots.state import EngineConfig
from etl.settings import Settings
from etl.units import size

log = logging.getLogger(__name__)

MOST_SLOTS = 256
"""Beyond this the weights are read often enough for each byte of them, and only latency grows."""

PREFILL = 8
"""Pictures prefilled together: enough to keep a large card busy, few enough to leave memory to the slots."""

ROUND_TO = 64
"""Tokens of a slot are a multiple of this, so that a little longer prompt finds room."""

_RESERVE = 1024**3
"""Bytes for what is not counted below: libraries' workspaces, the recorded graph, fragments."""


def max_seq_len_for(longest: int, context: int | None, *, tight: bool = False) -> int:
    """Return the tokens of a slot for requests of up to ``longest`` tokens, with some room for longer ones.

    With ``tight``, the room is only what rounding gives.
    """
    slack = 0 if tight else longest // 8
    room = -(-(longest + slack) // ROUND_TO) * ROUND_TO
    return max(longest, room if context is None else min(room, context))


def choose_slots(loaded: LoadedModel, settings: Settings, max_seq_len: int, *, penalised: bool) -> int:
    """Return how many slots of so many tokens there is room for; at least 1.

    ``settings.slots`` decides where it is given.  On a GPU the free memory does, up to ``gpu_memory_fraction`` of
    all; elsewhere ``batch_size``, as a processor gains little from more.
    """
    if settings.slots:
        return settings.slots
    if not cuda.serves(loaded.device):
        return settings.batch_size
    free, total = cuda.memory(loaded.device)
    slots = max(1, slots_within(loaded, settings, max_seq_len, (free, total), penalised=penalised))
    log.info(
        "%d slots of %d tokens: %s of %s of the GPU's memory are free",
        slots,
        max_seq_len,
        size(free),
        size(total),
    )
    return slots


def slots_within(
    loaded: LoadedModel, settings: Settings, max_seq_len: int, memory: tuple[int, int], *, penalised: bool
) -> int:
    """Return how many slots fit into a GPU's memory of which so many bytes are free, of so many in all; below 1 if
    there is no room.
    """
    free, total = memory
    budget = free - round(total * (1 - settings.gpu_memory_fraction)) - _RESERVE - prefill_bytes(loaded, max_seq_len)
    return min(MOST_SLOTS, budget // slot_bytes(loaded, max_seq_len, settings, penalised=penalised))


def slot_bytes(loaded: LoadedModel, max_seq_len: int, settings: Settings, *, penalised: bool) -> int:
    """Return the bytes of one slot: keys and values of all layers, the tokens used, and a step's logits."""
    layout = _layout(loaded)
    kept = layout.slot_bytes(max_seq_len + 1, loaded.dtype)
    # Logits in the model's type, as float32, and once more where they are changed.
    logits = layout.vocab_size * (loaded.dtype.itemsize + 4 + (9 if penalised else 0))
    return int(kept + logits + 8 * settings.max_new_tokens)


def prefill_bytes(loaded: LoadedModel, max_seq_len: int) -> int:
    """Return the bytes that a prefill of `PREFILL` pictures may need beside the cache.

    The widest moment of a layer holds a few copies of the hidden state and of the inner one of its MLP.
    """
    layout = _layout(loaded)
    return int(PREFILL * max_seq_len * (6 * layout.hidden + 3 * layout.inner) * loaded.dtype.itemsize)


def engine_config(
    loaded: LoadedModel,
    settings: Settings,
    longest: int,
    *,
    penalised: bool,
    most_slots: int | None,
    tight: bool = False,
) -> EngineConfig:
    """Return what an engine needs for requests of up to ``longest`` tokens, with at most ``most_slots`` slots."""
    max_seq_len = max_seq_len_for(longest, loaded.context, tight=tight)
    slots = choose_slots(loaded, settings, max_seq_len, penalised=penalised)
    return EngineConfig(min(slots, most_slots or slots), max_seq_len, settings.max_new_tokens, penalised)


def _layout(loaded: LoadedModel) -> CacheLayout:
    config = loaded.model.config
    # Of a model that slots do not drive, it is asked only for an estimate.
    return adapter_of(config).layout_of(config, loaded.dtype)
