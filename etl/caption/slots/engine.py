"""The slot engine: as many captions at once as the memory holds, each begun the moment another one ends.

`generate()` runs a batch until its longest caption ends; the rows that ended before are dead weight.  Here a batch is
a fixed number of slots.  Pictures and prompts are prefilled in small groups into free slots, then one decoding step of
fixed shape, which on CUDA is replayed as a graph, adds a token to every slot.  A slot whose caption has ended is given
to the next one at once.

The modules are transformers' own, called with a cache (`etl.caption.slots.kv_cache`) whose rows have lengths of their
own.  Padding is on the right and exact: no causal query sees what lies to its right.

The host never waits for a step that it has just started.  On CUDA it reads the state of one iteration (``poll`` steps)
while the next is running, and prefills run beside the decoding on a stream of their own, whose captions join in once
they are ready.  So a finished slot stays idle for one to two iterations, and the GPU for none.
"""

import contextlib
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from etl.caption.model import cuda
from etl.caption.model.checkpoint import one_line
from etl.caption.model.faults import BATCH_FAULTS, is_out_of_memory
from etl.caption.model.loading import LoadedModel
from etl.caption.slots.candidates import Candidates
from etl.caption.slots.family import Family, Prefilled
from etl.caption.slots.kernel_check import Kernel, usable_kernel
from etl.caption.slots.kv_cache import ATTENTION, CacheLayout, Placement, slot_cache
from etl.caption.slots.readings import Reading
from etl.caption.slots.state import EngineConfig, Request, SlotState
from etl.caption.slots.timing import Timings

log = logging.getLogger(__name__)

PAD_TO = 16
"""Prefills are padded to a multiple of so many tokens: few shapes are faster than tight ones."""

POLL = 4
"""Steps between two looks at the slots.  More leave finished slots idle longer, fewer make the host wait more often."""

_ROOM = 512 * 1024**2
"""Free bytes of a card with which memory was not short, whatever an error says: a recorded step takes far fewer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A caption that has ended: its tokens, and whether the logits stayed finite to its end."""

    request: Request
    ids: list[int]
    finite: bool


@dataclass(frozen=True, slots=True)
class _Occupied:
    """A slot in use.  What was read of the slots before iteration ``since`` says nothing of this request.

    ``since`` is ``None`` until the decoding has taken the request over.
    """

    request: Request
    since: int | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Entering:
    """A prefilled group that the decoding has not taken over yet."""

    places: dict[int, Request]
    slots: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor
    prefilled: Prefilled
    computed: cuda.Event | None

    def is_computed(self) -> bool:
        """Return whether the device has got so far."""
        return self.computed is None or cuda.is_past(self.computed)


class SlotEngine:
    """Writes captions greedily in ``config.slots`` slots; for one thread.

    Give it groups of requests with `admit`, at most `free` of them, and call `step` while `in_use`.  The model is
    shared: while the engine lives, its language model attends by `slot_attention`; `close` gives it back.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        family: Family,
        config: EngineConfig,
        clock: Timings,
        *,
        poll: int = POLL,
        candidates: Candidates = Candidates(),  # noqa: B008 -- frozen
    ) -> None:
        """Take all the memory that decoding needs.  Raises `torch.OutOfMemoryError`, and holds nothing then."""
        self.config = config
        self._family = family
        self._clock = clock
        self._poll = poll
        device = self._device = loaded.device
        self._occupied: dict[int, _Occupied] = {}
        self._entering: list[_Entering] = []
        self._ahead: Reading | None = None
        self._iteration = 0
        self._closed = False
        self._prefilling: cuda.Stream | None = None
        self._first: cuda.Stream | None = None
        self._graph: cuda.Graph | None = None
        self._kernel: Kernel | None = None
        self._attention: str | None = None
        try:
            with torch.inference_mode():
                layout = family.layout_of(loaded.model.config, loaded.dtype)
                if cuda.serves(device):
                    cuda.use(device)
                    self._prefilling = cuda.new_stream(device)
                    if candidates.decode_first:
                        self._first = cuda.new_stream(device, first=True)
                    self._kernel = _kernel_for(layout, device, loaded.dtype)
                self._where = Placement(config.slots, device)
                self._state = SlotState(config, loaded.eos, self._family.vocab_size, device)
                # One position for what free slots write, see `SlotState.next_position`.
                self._cache = slot_cache(
                    layout, self._where, config.slots, config.max_seq_len + 1, loaded.dtype, device
                )
                self._attention = self._family.attend_by(ATTENTION)
                if cuda.serves(device):
                    self._capture()
                    self._wait_for_device()
        except BaseException:
            self.close()
            raise

    def _wait_for_device(self) -> None:
        """Let both streams come to rest: what one of them does now must be seen by the other."""
        if self._prefilling is not None:
            cuda.synchronize(self._device)

    @property
    def in_use(self) -> int:
        """Slots that hold an unfinished caption."""
        return len(self._occupied)

    @property
    def free(self) -> int:
        """Slots that may be given a request."""
        return self.config.slots - len(self._occupied)

    def unfinished(self) -> list[Request]:
        """Return the requests in the slots, oldest first."""
        return [each.request for each in self._occupied.values()]

    def abandon(self) -> None:
        """Forget the requests in the slots; the engine is free for others."""
        self._occupied.clear()
        self._entering.clear()
        with torch.inference_mode(), _on(self._first):
            self._state.live.zero_()
        # A step under way still writes into these slots; the next prefill, on its own stream, would not wait for it.
        self._wait_for_device()

    def close(self) -> None:
        """Give back memory and model; unfinished captions are lost.  May be called twice."""
        if self._closed:
            return
        self._closed = True
        # Often it is an error that ends an engine, and that is the one to be heard of.
        with contextlib.suppress(RuntimeError):
            self._wait_for_device()
        if self._attention is not None:
            self._family.attend_by(self._attention)
        self._occupied.clear()
        self._entering.clear()
        self._ahead = self._graph = None
        for name in ("_cache", "_state", "_family"):
            # Nothing may hold the memory any longer, whoever still holds the engine.
            setattr(self, name, None)

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> None:
        """Give each request a free slot and compute its first token, beside the decoding where that is possible.

        Raises `torch.OutOfMemoryError` when this group is too large; no slot has been taken then.
        """
        assert 0 < len(requests) <= self.free
        slots = [slot for slot in range(self.config.slots) if slot not in self._occupied][: len(requests)]
        with _on(self._prefilling):
            entering = self._prefill(requests, slots)
        self._entering.append(entering)
        self._occupied |= {slot: _Occupied(request) for slot, request in entering.places.items()}

    def _prefill(self, requests: Sequence[Request], slots: list[int]) -> _Entering:
        device, family = self._device, self._family
        lengths = [len(request.ids) for request in requests]
        width = min(-(-max(lengths) // PAD_TO) * PAD_TO, self.config.max_seq_len)
        # Padded with its own last token: that one is in use anyhow, for the repetition penalty, and no picture's.
        padded = [request.ids + request.ids[-1:] * (width - len(request.ids)) for request in requests]
        ids = cuda.to_device(torch.tensor(padded), device)
        with self._clock("vision"):
            seen = family.look(requests, width)
        with self._clock("prefill"):
            where = cuda.to_device(torch.tensor(slots), device)
            ends = cuda.to_device(torch.tensor(lengths), device)
            self._where.prefill = where
            try:
                prefilled = family.prefill(ids, ends, seen, self._cache)
            finally:
                self._where.prefill = None
        computed = None if self._prefilling is None else cuda.mark()
        return _Entering(
            places=dict(zip(slots, requests, strict=True)),
            slots=where,
            ids=ids,
            lengths=ends,
            prefilled=prefilled,
            computed=computed,
        )

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Add up to ``poll`` tokens to every caption, and return those that are known to have ended.

        Raises `torch.OutOfMemoryError`; `unfinished` tells what is to be done again then, by another engine.
        """
        self._iteration += 1
        with _on(self._first):
            self._enter()
            with self._clock("decode"):
                for _ in range(self._poll):
                    if self._graph is not None:
                        cuda.replay(self._graph)
                    else:
                        self._decode()
            reading = Reading(self._iteration, self._state.outcomes, beside=self._prefilling is not None)
        if self._prefilling is None:
            return self._collect(reading)
        self._ahead, due = reading, self._ahead
        return self._collect(due) if due is not None else []

    def _enter(self) -> None:
        """Take over what was prefilled: from the next step on its slots are live.

        What is still being computed joins in later, unless there is nothing else to decode.
        """
        idle = all(each.since is None for each in self._occupied.values())
        computed = [group for group in self._entering if idle or group.is_computed()]
        for group in computed:
            self._entering.remove(group)
            if group.computed is not None:
                made = (group.slots, group.ids, group.lengths, *group.prefilled.tensors())
                cuda.wait_on(cuda.current_stream(self._device), group.computed, made)
            requests, prefilled = list(group.places.values()), group.prefilled
            for held, state in prefilled.states:
                held[group.slots] = state
            self._state.enter(group.slots, requests, group.ids, group.lengths, prefilled.shift)
            self._state.append_tokens(group.slots, prefilled.logits)
            for slot, request in group.places.items():
                self._occupied[slot] = _Occupied(request, self._iteration)

    def _decode(self) -> None:
        """Add one token to every live slot.  Fixed shapes and no look at any value, so that CUDA can replay it."""
        state = self._state
        place, position, lengths = state.next_position()
        self._where.position = place
        logits = self._family.decode(state.token, position, self._cache, slot_lengths=lengths, slot_kernel=self._kernel)
        state.advance()
        state.append_tokens(self._where.rows, logits)

    def _capture(self) -> None:
        """Record one step, while all slots are free and so nothing that it does counts.

        Where that cannot be done although there is memory, steps are begun one by one.
        """
        warm, main = cuda.new_stream(self._device), cuda.current_stream(self._device)
        cuda.follow(warm, main)
        with cuda.on_stream(warm):
            for _ in range(2):
                self._decode()
        cuda.follow(main, warm)
        try:
            self._graph = cuda.capture(self._decode, self._device, first=self._first is not None)
        except BATCH_FAULTS as error:
            scarce = is_out_of_memory(error) and cuda.memory(self._device)[0] < _ROOM
            if scarce or not cuda.still_works(self._device):
                raise
            _say_unrecorded(one_line(error))

    def _collect(self, reading: Reading) -> list[Finished]:
        live, count, overflowed, written = reading.wait()
        alive, counts, bad = live.tolist(), count.tolist(), overflowed.tolist()
        ended = []
        for slot, occupied in list(self._occupied.items()):
            if occupied.since is not None and reading.iteration >= occupied.since and not alive[slot]:
                del self._occupied[slot]
                ended.append(Finished(occupied.request, written[slot, : counts[slot]].tolist(), not bad[slot]))
        return ended


def _kernel_for(layout: CacheLayout, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """Return the decoding kernel if it serves all layers."""
    kinds = {(each.heads, each.kv_heads, each.dim, each.window is not None) for each in layout.layers}
    kernels = [usable_kernel(device, dtype, *kind) for kind in sorted(kinds)]
    return kernels[0] if all(kernels) else None


def _on(stream: cuda.Stream | None) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if stream is None else cuda.on_stream(stream)


@functools.cache
def _say_unrecorded(reason: str) -> None:
    log.warning("a decoding step cannot be recorded as a graph, so captions take longer: %s", reason)
