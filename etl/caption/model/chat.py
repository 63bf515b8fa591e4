"""How a model is asked about one picture: its chat template, and the form of a message that this understands."""

import re
from collections.abc import Callable
from typing import Any

from etl.caption.model.repository_code import MODEL_OF_TODAY
from etl.errors import ModelError
from etl.text import clean

MAX_CHAT_CHARS = 20_000
"""Of a chat template beside the question; LLaVA's has 30, the longest have a system prompt of some thousands."""

_PROBE = "Describe"

_LITERAL = re.compile(r"""['"]type['"]\s*:""")
"""What is left of a message in parts where a template takes it for a text."""


class Chat:
    """Renders prompts by a processor's chat template.

    Most templates take a message in parts, one of them the picture.  Some take a text alone, and put the picture's
    placeholder there by themselves or want it in the text; what they make of parts is their Python spelling.

    Attributes:
        placeholder: stands for the picture, once in each chat.
        form: ``parts``, ``text``, ``text behind picture``, or ``part behind picture``: parts of text alone.
    """

    def __init__(self, processor: Any) -> None:
        """Raises `ModelError` when the processor cannot show one picture and a prompt to the model."""
        self._processor = processor
        self.placeholder: str = getattr(processor, "image_token", None) or ""
        if not self.placeholder:
            raise ModelError(f"the model's processor names no image token; use another model, such as {MODEL_OF_TODAY}")
        fault: ModelError | None = None
        for self.form in _FORMS:
            try:
                text = self.render(_PROBE)
                if _PROBE in text and not _LITERAL.search(text):
                    return
                raise ModelError("the model's chat template does not show the prompt to the model")
            except ModelError as error:
                # What is wrong with the usual form is what its author should hear of.
                fault = fault or error
        assert fault is not None
        raise fault

    def render(self, prompt: str) -> str:
        """Return the chat that asks this.  Raises `ModelError` for a template that fails or shows no one picture."""
        chat = [{"role": "user", "content": _FORMS[self.form](prompt, self.placeholder)}]
        try:
            text: str = self._processor.apply_chat_template(chat, add_generation_prompt=True)
        # A template of a stranger may fail in every way that an expression can, the sandbox's refusal among them.
        except Exception as error:
            said = clean(str(error) or type(error).__name__, 300)
            raise ModelError(f"the model's chat template failed: {said}") from error
        if len(text) > len(prompt) + MAX_CHAT_CHARS:
            raise ModelError(f"the model's chat template makes {len(text):,} characters of one short question")
        if (count := text.count(self.placeholder)) != 1:
            raise ModelError(f"the model's chat template gives {count} image placeholders for one picture")
        return text


_FORMS: dict[str, Callable[[str, str], Any]] = {
    "parts": lambda prompt, _: [{"type": "image"}, {"type": "text", "text": prompt}],
    "text": lambda prompt, _: prompt,
    "text behind picture": lambda prompt, placeholder: f"{placeholder}\n{prompt}",
    "part behind picture": lambda prompt, placeholder: [{"type": "text", "text": f"{placeholder}\n{prompt}"}],
}
