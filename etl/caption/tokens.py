"""From a working copy and a prompt to what the model's processor takes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from etl.caption.model.loading import LoadedModel
from etl.caption.quality import quality_flags
from etl.domain.items import CaptionItem, CaptionResult
from etl.domain.statuses import FinishReason
from etl.errors import (
    CaptionError,
    ModelError,
    PromptTooLongError,
)
from etl.text import clean

MAX_CHAT_CHARS = 20_000
"""Of a chat template beside the question; LLaVA's has 30, the longest have a system prompt of some thousands."""


CACHED_PROMPTS = 1024
"""Encoded prompts kept; one takes about 6 KB with the 576 image tokens of LLaVA-1.5."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    Attributes:
        text: the rendered chat, with one image placeholder.
        ids: token ids with the placeholder expanded to all image tokens, special tokens included.
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

    def __init__(self, processor: Any, max_new_tokens: int, context: int | None) -> None:
        """``context`` is the model's limit in tokens for prompt and caption together; ``None`` for no limit.

        Raises `ModelError` when the processor cannot show one picture to the model.
        """
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._max_new_tokens = max_new_tokens
        self._context = context
        self._placeholder: str = getattr(processor, "image_token", None) or ""
        if not self._placeholder:
            raise ModelError("the model's processor names no image token; use a LLaVA model")
        self._special = {token for token in self._tokenizer.all_special_tokens if token} | {self._placeholder}
        self.image_tokens = self._count_image_tokens()
        rendered = self._render("x")
        bos = self._tokenizer.bos_token
        self.add_special_tokens = not (bos and rendered.startswith(bos))
        self.encode: Callable[[str], EncodedPrompt] = lru_cache(CACHED_PROMPTS)(self._encode)
        """Return the encoded prompt.

        Raises `PromptTooLongError` when prompt, image tokens and new tokens do not fit the context, and
        `CaptionError` when the prompt spells a special token.
        """

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
        text = self._render(prompt)
        expanded = text.replace(self._placeholder, self._placeholder * self.image_tokens)
        ids = tuple(self._tokenizer(expanded, add_special_tokens=self.add_special_tokens)["input_ids"])
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:2] == (bos, bos):
            raise ModelError("the model's chat template and its tokenizer both add a start token")
        self.check_length(len(ids))
        return EncodedPrompt(text, ids)

    def _render(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        chat = [{"role": "user", "content": content}]
        try:
            text: str = self._processor.apply_chat_template(chat, add_generation_prompt=True)
        # A template of a stranger may fail in every way that an expression can, the sandbox's refusal among them.
        except Exception as error:
            raise ModelError(f"the model's chat template failed: {_one_line(error)}") from error
        if len(text) > len(prompt) + MAX_CHAT_CHARS:
            raise ModelError(f"the model's chat template makes {len(text):,} characters of one short question")
        if (count := text.count(self._placeholder)) != 1:
            raise ModelError(f"the model's chat template gives {count} image placeholders for one picture")
        return text

    def _count_image_tokens(self) -> int:
        """Count what the processor makes of the placeholder, for a square picture."""
        blank = Image.new("RGB", (64, 64))
        try:
            ids = self._processor(images=blank, text=self._placeholder, add_special_tokens=False)["input_ids"]
        # Whatever a configuration with impossible values ends in: numbers below one, unknown filters, no memory.
        except Exception as error:
            raise ModelError(f"the model's processor fails on a plain picture: {_one_line(error)}") from error
        row = ids[0] if len(ids) and not isinstance(ids[0], int) else ids
        return len(row)


def _one_line(error: Exception) -> str:
    return clean(str(error) or type(error).__name__, 300)


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
