"""From the tokens of a caption to its text, with the flags that it deserves."""

import copy

from etl.caption.model.loading import LoadedModel
from etl.caption.quality import quality_flags
from etl.domain.items import CaptionItem, CaptionResult
from etl.domain.statuses import FinishReason


class Detokenizer:
    """Makes `CaptionResult`s of token ids; for one thread beside those that encode prompts."""

    def __init__(self, loaded: LoadedModel) -> None:
        # A tokenizer must not decode in one thread while another sets its padding.
        self._tokenizer = copy.deepcopy(loaded.processor.tokenizer)
        self._eos = frozenset(loaded.eos)

    def ended_at(self, ids: list[int]) -> int | None:
        """Return the index of the token that ended the caption; ``None`` when none did."""
        return next((index for index, token in enumerate(ids) if token in self._eos), None)

    def result(self, item: CaptionItem, ids: list[int], extra: tuple[str, ...] = ()) -> CaptionResult:
        """Return the finished caption of the tokens up to the one that ends it, with ``extra`` flags."""
        end = self.ended_at(ids)
        reason = FinishReason.LENGTH if end is None else FinishReason.STOP
        tokens = len(ids) if end is None else end + 1
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        flags = quality_flags(text, item.prompt, reason, tokens)
        return CaptionResult(item.id, text, tokens, reason, tuple(sorted({*flags, *extra})))
