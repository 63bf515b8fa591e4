"""From a working copy and a prompt to what the model's processor takes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from etl.caption.model.chat import Chat
from etl.caption.model.loading import LoadedModel
from etl.caption.model.resolution import image_tokens, keeps_shape
from etl.caption.quality import quality_flags
from etl.caption.thinking import MARKS, opens_thinking, split_thinking
from etl.domain.items import CaptionItem, CaptionResult
from etl.domain.statuses import FinishReason
from etl.errors import (
    CaptionError,
    ModelError,
    PromptTooLongError,
)

_SQUARE = (512, 512)

CACHED_PROMPTS = 1024
"""Encoded prompts kept; one takes about 6 KB with the 576 image tokens of LLaVA-1.5."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    Attributes:
        text: the rendered chat, with one image placeholder; of a captioner without a chat, what it is asked.
        ids: token ids with the placeholder expanded to all image tokens of a square picture, special tokens included;
            without a chat none.
    """

    text: str
    ids: tuple[int, ...]


class PromptEncoder:
    """Wraps prompts in the model's chat template and tokenises them; each distinct prompt once.

    The prompt is data.  One that spells a special token of this model (``</s>``, ``<image>``, ``[INST]``) is
    refused.  Tokenisers could split such text into plain tokens, but only for the whole chat at once, which
    would split the template's own special tokens too; and tokenising the pieces apart moves token boundaries.
    Fields of records were made harmless before (`etl.ingest.prompts.clean_field`), so a refusal points to
    a faulty template.

    Not thread-safe, as tokenisers are not.
    """

    def __init__(self, processor: Any, max_new_tokens: int, context: int | None, *, native: str | None = None) -> None:
        """``context`` is the model's limit in tokens for prompt and caption together; ``None`` for no limit.

        With ``native``, every picture is asked that and no chat is rendered.  Raises `ModelError` when the processor
        cannot show one picture to the model.
        """
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._max_new_tokens = max_new_tokens
        self._context = context
        self.add_special_tokens = True
        self.image_tokens = 0
        """Of a square picture; where pictures keep their shape (`keeps_shape`), others take more or fewer."""
        self.encode: Callable[[str], EncodedPrompt]
        """Return the encoded prompt.

        Raises `PromptTooLongError` when prompt, image tokens and new tokens do not fit the context, and
        `CaptionError` when the prompt spells a special token.
        """
        if native is not None:
            self.encode = lambda _: EncodedPrompt(native, ())
            return
        self._chat = chat = Chat(processor)
        self._special = _special_tokens(self._tokenizer) | {chat.placeholder}
        self.image_tokens = image_tokens(processor, *_SQUARE)
        self._same_for_all = not keeps_shape(processor.image_processor)
        bos = self._tokenizer.bos_token
        self.add_special_tokens = not (bos and chat.render("x").startswith(bos))
        self.encode = lru_cache(CACHED_PROMPTS)(self._encode)

    def check_length(self, tokens: int) -> None:
        """Raise `PromptTooLongError` when a prompt of so many tokens leaves no room for the longest caption."""
        if self._context is not None and tokens + self._max_new_tokens > self._context:
            raise PromptTooLongError(
                f"{tokens} tokens of prompt and picture and {self._max_new_tokens} new ones do not fit "
                f"the model's context of {self._context}; shorten the prompt or lower max_new_tokens"
            )

    def _encode(self, prompt: str) -> EncodedPrompt:
        if spelled := sorted(token for token in self._special if token in prompt):
            raise CaptionError(f"the prompt contains {', '.join(spelled)}, which is a special token of the model")
        text = self._chat.render(prompt)
        expanded = text.replace(self._chat.placeholder, self._chat.placeholder * self.image_tokens)
        ids = tuple(self._tokenizer(expanded, add_special_tokens=self.add_special_tokens)["input_ids"])
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:2] == (bos, bos):
            raise ModelError("the model's chat template and its tokenizer both add a start token")
        # Where pictures keep their shape, some take hardly any tokens.
        self.check_length(len(ids) if self._same_for_all else len(ids) - self.image_tokens + 1)
        return EncodedPrompt(text, ids)


def _special_tokens(tokenizer: Any) -> set[str]:
    """Return the tokens that are no words: those with a role, and those that a chat is made of."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {token for token in tokenizer.all_special_tokens if token} | {str(one) for one in added if one.special}


class Detokenizer:
    """Makes `CaptionResult`s of token ids; for one thread beside those that encode prompts."""

    def __init__(self, loaded: LoadedModel) -> None:
        # A tokenizer must not decode in one thread while another sets its padding.
        self._tokenizer = copy.deepcopy(loaded.processor.tokenizer)
        self._eos = frozenset(loaded.eos)
        self._thinks_at_once = loaded.native is None and opens_thinking(Chat(loaded.processor).render("x"))
        special = _special_tokens(self._tokenizer)
        marks = [mark for mark in MARKS if mark in special]
        self._marks = dict(zip(self._tokenizer.convert_tokens_to_ids(marks), marks, strict=True))
        """Special tokens around reasoning, by id: the others of a caption are left out of its text."""

    def ended_at(self, ids: list[int]) -> int | None:
        """Return the index of the token that ended the caption; ``None`` when none did."""
        return next((index for index, token in enumerate(ids) if token in self._eos), None)

    def result(self, item: CaptionItem, ids: list[int], extra: tuple[str, ...] = ()) -> CaptionResult:
        """Return the finished caption of the tokens up to the one that ends it, with ``extra`` flags."""
        end = self.ended_at(ids)
        reason = FinishReason.LENGTH if end is None else FinishReason.STOP
        tokens = len(ids) if end is None else end + 1
        text, thinking = split_thinking(self._text(ids[:end]), opened=self._thinks_at_once)
        flags = quality_flags(text, item.prompt, reason, tokens, thinking)
        return CaptionResult(item.id, text, tokens, reason, tuple(sorted({*flags, *extra})), thinking)

    def _text(self, ids: list[int]) -> str:
        pieces, begin = [], 0
        for place, token in enumerate(ids) if self._marks else ():
            if token in self._marks:
                pieces += [self._decoded(ids[begin:place]), self._marks[token]]
                begin = place + 1
        return "".join([*pieces, self._decoded(ids[begin:])])

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
