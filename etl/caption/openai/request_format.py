"""What one endpoint accepts of a chat request; pure.

Servers that speak OpenAI's protocol differ in a few fields.  Which ones an endpoint takes is learnt from its words when
it refuses a request, once.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LIMIT, NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""The limit's name at most servers, and at OpenAI's newer models, which refuse the other."""

PENALTIES = ("repetition_penalty", "frequency_penalty")

TEMPLATE_ARGUMENTS = "chat_template_kwargs"
"""Never left out: somebody has asked for what they say."""

SEED = 0

_REFUSES = re.compile(
    r"unsupported|not support|unexpected|unknown|unrecogni[sz]ed|extra|not permitted|not allowed|forbidden|invalid"
    r"|only the default|cannot be specified",
    re.IGNORECASE,
)
_WANTS_TEXT = re.compile(r"string|\bstr\b", re.IGNORECASE)


@dataclass(frozen=True)
class Complaint:
    """What a server said of a request that it refused.

    Attributes:
        text: for people, on one line.
        code: its kind in the server's words, such as ``context_length_exceeded``; empty when it names none.
        field: the field that it speaks of, where it says so apart.
        status: the HTTP status that it names, for those who name one after they have sent another; else 0.
    """

    text: str
    code: str = ""
    field: str = ""
    status: int = 0


class RequestFormat:
    """The fields of one endpoint.

    Attributes:
        left_out: optional fields that it has refused.
    """

    def __init__(self, template_arguments: Mapping[str, Any] | None = None) -> None:
        """``template_arguments`` are for the model's chat template, which vLLM, SGLang and others pass on."""
        self.left_out: set[str] = set()
        self._asked = {TEMPLATE_ARGUMENTS: dict(template_arguments)} if template_arguments else {}
        self._limit = LIMIT
        self._limit_settled = False
        self._bare_url = False

    def body(self, model: str, prompt: str, picture: str, limit: int, penalty: float | None = None) -> dict[str, Any]:
        """Return the request for one caption; ``picture`` is a data URI, ``limit`` the most tokens."""
        image: Any = picture if self._bare_url else {"url": picture}
        content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": prompt}]
        optional: dict[str, Any] = {"temperature": 0, "seed": SEED, "stream": False}
        if penalty is not None:
            # The second is not the same thing, but all that OpenAI itself offers against loops.
            usual, other = PENALTIES
            optional |= {other: round(penalty - 1, 4)} if usual in self.left_out else {usual: penalty}
        kept = {name: value for name, value in optional.items() if name not in self.left_out}
        message = {"role": "user", "content": content}
        return {"model": model, "messages": [message], self._limit: limit, **kept, **self._asked}

    @property
    def generation(self) -> dict[str, Any]:
        """What of the request decides the words, for the recipe; what was left out is the server's choice."""
        decided = {"temperature": 0, "seed": SEED}
        asked = {name: json.dumps(value, sort_keys=True) for name, value in self._asked.items()}
        return {name: value for name, value in decided.items() if name not in self.left_out} | asked

    def learn(self, complaint: Complaint, body: dict[str, Any], *, settled: bool = False) -> bool:
        """Change what the complaint is about; return whether another request may do better.

        Once the format is ``settled``, only penalties are left out.
        """
        text = f"{complaint.field} {complaint.text} {complaint.code}"
        if settled:
            return bool(_REFUSES.search(text)) and self._leave_out(PENALTIES, text, body)
        if not _REFUSES.search(text):
            return self._learn_picture(text)
        if self._limit in body and _names(self._limit, text) and not self._limit_settled:
            self._limit_settled = True
            self._limit = NEW_LIMIT if self._limit == LIMIT else LIMIT
            return True
        return self._leave_out((*PENALTIES, "temperature", "seed", "stream"), text, body) or self._learn_picture(text)

    def _leave_out(self, names: tuple[str, ...], text: str, body: dict[str, Any]) -> bool:
        for name in names:
            if name in body and _names(name, text):
                self.left_out.add(name)
                return True
        return False

    def _learn_picture(self, text: str) -> bool:
        if self._bare_url or "image_url" not in text or not _WANTS_TEXT.search(text):
            return False
        self._bare_url = True
        return True


def _names(name: str, text: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None
