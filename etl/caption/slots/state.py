"""What each slot of the engine holds, on the device: a decoding step never waits for the host.

Nothing here assigns a Python number to places that a tensor names (``x[slots] = True``): PyTorch would bring it to the
device as a tensor and wait for that, which also breaks the recording of a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from etl.caption.model import cuda
from etl.domain.items import CaptionItem


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One caption to be written.

    Attributes:
        item: what it is for.
        ids: the prompt's tokens, the image's included.
        inputs: the picture, as `etl.caption.slots.family` gives it to the model, on the host.
        limit: longest caption, in tokens.
        penalty: repetition penalty; 1 for none.
    """

    item: CaptionItem
    ids: tuple[int, ...]
    inputs: Mapping[str, torch.Tensor]
    limit: int
    penalty: float = 1.0

    @property
    def max_seq_len(self) -> int:
        """Positions of a slot that it may need."""
        return len(self.ids) + self.limit


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine has room for.

    Attributes:
        slots: captions at once.
        max_seq_len: tokens of one slot: prompt, picture and caption.
        limit: longest caption, in tokens.
        penalised: whether captions may ask for a repetition penalty, which takes time and `vocab_size` bytes a slot.
    """

    slots: int
    max_seq_len: int
    limit: int
    penalised: bool = False

    def holds(self, request: Request) -> bool:
        """Return whether a slot has room for the request."""
        fits = request.max_seq_len <= self.max_seq_len and request.limit <= self.limit
        return fits and (self.penalised or request.penalty == 1.0)


class SlotState:
    """The captions in their slots, greedily chosen token by token.

    Every tensor stays where it is for the life of the state, so that CUDA can replay what was recorded with it.

    Attributes:
        live: [slots] which slots hold an unfinished caption.
        count: [slots] tokens written.
        overflowed: [slots] whether the logits of the caption stopped being numbers.
        written: [slots, limit + 1] the tokens; the last column takes what free slots write.
        token: [slots] the last token, which the next step reads.
    """

    def __init__(self, config: EngineConfig, eos: Sequence[int], vocab_size: int, device: torch.device) -> None:
        """``vocab_size`` is the size of the vocabulary, ``eos`` the tokens that end a caption."""
        self._device = device
        self.live = self._column(config, torch.bool)
        self.count = self._column(config, torch.long)
        self.overflowed = self._column(config, torch.bool)
        self.token = self._column(config, torch.long)
        self.written = torch.zeros(config.slots, config.limit + 1, dtype=torch.long, device=device)
        self._length = self._column(config, torch.long)
        self._shift = self._column(config, torch.long)
        self._limit = self._column(config, torch.long)
        self._penalty = self._column(config, torch.float32, 1.0)
        self._eos = torch.tensor(list(eos), dtype=torch.long, device=device)
        # One position more than any request needs: free slots write there while the others go on.
        self._spare = self._column(config, torch.long, config.max_seq_len)
        self._one = self._column(config, torch.long, 1)
        self._behind = self._column(config, torch.long, config.limit)
        self._yes = torch.ones(1, dtype=torch.bool, device=device)
        self._used: torch.Tensor | None = None
        if config.penalised:
            self._used = torch.zeros(config.slots, vocab_size, dtype=torch.bool, device=device)

    def _column(self, config: EngineConfig, dtype: torch.dtype, value: float = 0) -> torch.Tensor:
        return torch.full((config.slots,), value, dtype=dtype, device=self._device)

    @property
    def outcomes(self) -> tuple[torch.Tensor, ...]:
        """What the host looks at between steps: live, count, overflowed, written."""
        return self.live, self.count, self.overflowed, self.written

    def enter(
        self,
        slots: torch.Tensor,
        requests: Sequence[Request],
        ids: torch.Tensor,
        lengths: torch.Tensor,
        shift: torch.Tensor | None,
    ) -> None:
        """Begin new captions in free slots; their first tokens follow with `append_tokens`.

        ``ids``, [rows, tokens], are the prompts, padded with tokens of their own; ``lengths``, [rows], without padding;
        ``shift``, [rows], what `etl.caption.slots.family.Prefilled` says.
        """
        self._length[slots] = lengths
        if shift is not None:
            self._shift[slots] = shift
        self._limit[slots] = cuda.to_device(torch.tensor([request.limit for request in requests]), self._device)
        self.count.index_fill_(0, slots, 0)
        self.overflowed.index_fill_(0, slots, False)
        self.live.index_fill_(0, slots, True)
        if self._used is not None:
            penalties = torch.tensor([request.penalty for request in requests], dtype=torch.float32)
            self._penalty[slots] = cuda.to_device(penalties, self._device)
            self._used.index_fill_(0, slots, False)
            self._used[slots[:, None], ids] = self._yes

    def next_position(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return where each slot writes its next keys and values, which position that is for the model, and how many
        the slot then has, int32.

        What a free slot computes counts for nothing: it writes into its spare position and reads a single one.
        """
        place = torch.where(self.live, self._length, self._spare)
        return place, place + self._shift, torch.where(self.live, self._length + 1, self._one).int()

    def advance(self) -> None:
        """Note that the live slots have written a position."""
        self._length += self.live

    def append_tokens(self, slots: torch.Tensor, logits: torch.Tensor) -> None:
        """Append the likeliest token of each slot, [rows, vocab_size], and end the captions that it ends."""
        scores = logits.float()
        live = self.live[slots]
        finite = torch.isfinite(scores).all(-1)
        if self._used is not None:
            scores = penalise(scores, self._used[slots], self._penalty[slots])
        token = scores.argmax(-1)
        if self._used is not None:
            self._used[slots, token] = self._yes
        count = self.count[slots]
        self.written[slots, torch.where(live, count, self._behind[slots])] = token
        count = count + live
        self.count[slots] = count
        self.token[slots] = token
        self.overflowed[slots] = self.overflowed[slots] | (live & ~finite)
        ended = (token[:, None] == self._eos).any(-1) | (count >= self._limit[slots]) | ~finite
        self.live[slots] = live & ~ended


def penalise(scores: torch.Tensor, used: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Make the tokens that were used already less likely, as transformers does (Keskar et al., 2019, arXiv 1909.05858).

    ``scores`` and ``used`` are [slots, vocab_size], ``penalty`` [slots].
    """
    by = penalty[:, None]
    return torch.where(used, torch.where(scores < 0, scores * by, scores / by), scores)
