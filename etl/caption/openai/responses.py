"""What an endpoint's answers mean: a caption, the failure of one picture, trouble of the endpoint, or the run's end."""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etl.caption.openai.request_format import Complaint
from etl.caption.thinking import split_thinking
from etl.domain.statuses import FinishReason
from etl.errors import (
    CaptionError,
    ContentFilterError,
    EmptyAnswerError,
    EndpointAnswerError,
    EndpointRefusedError,
    ModelError,
    PromptTooLongError,
)
from etl.net.responses import retry_after_s
from etl.units import SECONDS, parse

_REASONING = ("reasoning", "reasoning_content", "thinking")

MAX_SHOWN = 300
"""Characters of a server's words in a message."""

_MAX_WORDS = 10_000
"""Bytes of an answer in which a time to wait is looked for."""

_CONTEXT = re.compile(
    r"context[ _](length|window|size)|maximum model length|prompt is too long|too many tokens"
    r"|exceeds? the (available |maximum )?context|`?inputs`? tokens \+ `?max_new_tokens`?|longer than the maximum",
    re.IGNORECASE,
)
_FILTER = re.compile(r"content[ _](filter|policy|management)|moderation|flagged|safety system", re.IGNORECASE)
_EMPTY_ACCOUNT = "insufficient_quota"
_QUOTA = re.compile(
    r"insufficient[ _](quota|balance|credits|funds)|exceeded your current quota|billing|(budget|credit|key) limit",
    re.IGNORECASE,
)
_WAIT = re.compile(
    r"(?:(?:retry|try again) (?:in|after) |retryDelay\W{1,9})((?:\d{1,9}(?:\.\d{1,9})? ?[a-z]*){1,3})\b(?!-)",
    re.IGNORECASE,
)
"""How long to wait in the words of OpenAI, Azure and Gemini, where no header says it."""

_KEY = re.compile(r"(incorrect|invalid) api[ _]key|api[ _]key (is )?(not valid|expired|not found)", re.IGNORECASE)
_NO_MODEL = re.compile(
    r"model_not_found|DeploymentNotFound|not a valid model|invalid model name"
    r"|\bmodels?(\W{1,3}[\w./:@-]+)?\W{1,3}(is |was )?(does not exist|not found|not available)",
    re.IGNORECASE,
)
_SERVER_DOWN = re.compile(r"model (has )?(crashed|(is )?unloaded)|failed to load model|out of memory", re.IGNORECASE)
"""What LM Studio says with 400 of its own failure."""
_BAD_PICTURE = re.compile(
    r"(cannot|can't|could not|failed to|unable to) (identify|decode|load|open|read|process)[^.]{0,40}image"
    r"|(invalid|unsupported|corrupt|broken)[^.]{0,20} image|image_parse_error|invalid_image",
    re.IGNORECASE,
)


_WITHHELD = re.compile(r"filter|safety|recitation|blocklist|prohibited|spii|sensitive|refusal", re.IGNORECASE)
_BROKEN_OFF = re.compile(r"error|abort|cancel|insufficient_system_resource", re.IGNORECASE)
_FULL = re.compile(r"length|max_\w*tokens|context_window", re.IGNORECASE)
"""Why generation ended, in the words of all servers: OpenAI has three, Gemini, vLLM, SGLang, OpenRouter, z.AI more."""


class EndpointBusyError(Exception):
    """The endpoint did nothing and wants fewer requests; ``seconds`` is how long it asks to wait, if it says so."""

    def __init__(self, why: str, seconds: float | None) -> None:
        super().__init__(why)
        self.seconds = seconds


class EndpointTroubleError(Exception):
    """The endpoint failed, which says nothing certain about the picture.

    Attributes:
        gone: nobody took the request at all, so the picture had no part in it.
        answered: it did answer, if only to say that it failed.
    """

    def __init__(self, why: str, *, gone: bool = False, answered: bool = False) -> None:
        super().__init__(why)
        self.gone = gone
        self.answered = answered


class OtherModelError(Exception):
    """The endpoint answered, but as another model than it was asked for: its words belong to no recipe of ours."""


class RefusedRequestError(Exception):
    """The endpoint refused the request as it was put; perhaps it takes another form of it."""

    def __init__(self, status: int, complaint: Complaint) -> None:
        super().__init__(f"HTTP {status}: {complaint.text}")
        self.complaint = complaint


@dataclass(frozen=True, slots=True)
class Answer:
    """One caption as it came.

    Attributes:
        text: stripped.
        tokens, prompt_tokens: as the server counts them; 0 when it does not tell.
        finish_reason: why generation ended.
        model: what the server says has answered.
        thinking: the model's reasoning, stripped; no part of the text.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: FinishReason
    model: str
    thinking: str = ""


def answer_of(body: bytes) -> Answer:
    """Return the caption in the body of a successful answer.

    Raises `EmptyAnswerError` when it has no words, `EndpointAnswerError` when there is none, `ContentFilterError` when
    it was withheld, `EndpointTroubleError` when it was broken off; for an error that came as a success, as `error_of`
    returns.
    """
    reply = _reply(body)
    if not isinstance(reply, dict):
        raise EndpointAnswerError(f"the answer is no JSON object: {_shown(body.decode('utf-8', 'replace'))}")
    choice = _choice(reply)
    if choice is None or choice.get("error"):
        raise _late_error(body)
    found = choice.get("message")
    message: dict[str, Any] = found if isinstance(found, dict) else {}
    reason = str(choice.get("finish_reason") or "")
    if _WITHHELD.search(reason) or message.get("refusal"):
        raise ContentFilterError(f"the caption was withheld: {_shown(str(message.get('refusal') or reason))}")
    if _BROKEN_OFF.search(reason):
        raise EndpointTroubleError(f"the caption was broken off (finish_reason {_shown(reason)})", answered=True)
    text, thinking = split_thinking(_storable(_content(message.get("content")) or ""))
    # Servers that take the reasoning out themselves call it by one of these names.
    named = next(filter(None, (_content(message.get(name)) for name in _REASONING)), "")
    thinking = "\n".join(filter(None, (_storable(named).strip(), thinking)))
    if not (text or thinking):
        raise EmptyAnswerError(
            f"the answer has no words (finish_reason {reason or 'not given'}); if the model reasons before it answers, "
            "raise --max-new-tokens or give --chat-template-arg enable_thinking=false"
        )
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    ended = FinishReason.LENGTH if _FULL.search(reason) else FinishReason.STOP
    name = reply.get("model")
    return Answer(
        text,
        _count(usage.get("completion_tokens")),
        _count(usage.get("prompt_tokens")),
        ended,
        name if isinstance(name, str) else "",
        thinking,
    )


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> Exception:
    """Return what an answer that is no success means.

    A `CaptionError` is the picture's, a `ModelError` ends the run; the others are this module's own.
    """
    complaint = complaint_of(body)
    said = f"HTTP {status}: {complaint.text}" if complaint.text else f"HTTP {status}"
    about = f"{complaint.code} {complaint.text}"
    wait = _wait(headers, body)
    if 300 <= status < 400:
        return ModelError(f"redirects to {_shown(headers.get('location', 'nowhere'))}; give that address")
    if status == 402 or (status in (403, 429) and _QUOTA.search(about)):
        # Of a limit for each minute Gemini says the same, and OpenRouter of what is under way: with a time to wait.
        if wait is not None and _EMPTY_ACCOUNT not in about:
            return EndpointBusyError(said, wait)
        return ModelError(f"the account has no quota left ({said}); see to it, then run again")
    if status == 403 and _FILTER.search(about):
        return ContentFilterError(said)
    if status in (401, 403) or (status == 400 and _KEY.search(about)):
        return ModelError(f"does not accept the key ({said}); set ETL_API_KEY")
    if status in (404, 405, 410):
        what = "does not serve the model" if _NO_MODEL.search(about) else "has nothing at this address"
        return ModelError(f"{what} ({said}); check --endpoint and --endpoint-model")
    if status in (429, 503, 529):
        return EndpointBusyError(said, wait)
    if (of_picture := _picture_error(status, said, about)) is not None:
        return of_picture
    if status >= 500 or status in (408, 409, 425) or _SERVER_DOWN.search(about):
        return EndpointTroubleError(said, answered=True)
    return RefusedRequestError(status, complaint)


def _late_error(body: bytes) -> Exception:
    """Return what an answer means that tells of an error after it has begun as a success."""
    complaint = complaint_of(body)
    if 400 <= complaint.status < 600:
        return error_of(complaint.status, {}, body)
    said = f"the answer has no choices: {complaint.text}"
    return _picture_error(400, said, f"{complaint.code} {complaint.text}") or EndpointAnswerError(said)


def _wait(headers: Mapping[str, str], body: bytes) -> float | None:
    """Return the seconds that an answer asks to wait, in its headers or its words."""
    wait = retry_after_s(headers.get("retry-after"), headers.get("date"))
    if wait is None and (found := _WAIT.search(body[:_MAX_WORDS].decode("utf-8", "replace"))):
        with contextlib.suppress(ValueError):
            return parse(found[1], SECONDS)
    return wait


def _picture_error(status: int, said: str, about: str) -> Exception | None:
    """Return the failure of the picture or prompt alone; some servers say it with 500."""
    if _NO_MODEL.search(about) and status in (400, 422):
        return ModelError(f"does not serve the model ({said}); check --endpoint-model")
    if _CONTEXT.search(about):
        return PromptTooLongError(f"{said}; shorten the prompt, or lower max_new_tokens")
    if _FILTER.search(about):
        return ContentFilterError(said)
    if status == 413:
        return EndpointRefusedError(f"{said}; fetch with a smaller longest_edge")
    if _BAD_PICTURE.search(about):
        return EndpointRefusedError(said)
    return None


def refused(error: RefusedRequestError) -> CaptionError:
    """Return what it means for the picture when no other form of the request is left to try."""
    return EndpointRefusedError(str(error))


def complaint_of(body: bytes) -> Complaint:
    """Return what the server says is wrong; every server has its own form."""
    reply = _reply(body)
    if not isinstance(reply, dict):
        return Complaint(_shown(body.decode("utf-8", "replace")))
    inner = (_choice(reply) or {}).get("error") or reply.get("error")
    holder = inner if isinstance(inner, dict) else reply
    details = reply.get("detail")
    text = _text_of(inner) or _text_of(reply.get("message")) or _text_of(details)
    metadata = holder.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        # OpenRouter's own words are "Provider returned error".
        text = f"{text}: {metadata['raw']}"
    code = holder.get("code") or holder.get("type") or reply.get("error_type") or ""
    status = _count(code)
    if isinstance(code, int):
        code = holder.get("type") or ""
    field = holder.get("param") or ""
    return Complaint(_shown(text or body.decode("utf-8", "replace")), str(code)[:100], str(field)[:100], status)


def _text_of(value: Any) -> str:
    """Return the words in a value: a text, an object with a message, or FastAPI's list of faults with their places."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        place = ".".join(map(str, value["loc"])) + ": " if isinstance(value.get("loc"), list) else ""
        words = value.get("message") or value.get("msg")
        return place + (words if isinstance(words, str) else json.dumps(value, ensure_ascii=False))
    if isinstance(value, list):
        return "; ".join(filter(None, map(_text_of, value[:5])))
    return ""


def _content(value: Any) -> str | None:
    """Return the text of a message, which may come in parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return None


def _storable(text: str) -> str:
    """Return the text without NUL, which cannot be shown, and halves of surrogate pairs, which are no text."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0


def _choice(reply: dict[str, Any]) -> dict[str, Any] | None:
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else None


def _reply(body: bytes) -> Any:
    """Return what the JSON means; Gemini has its errors in a list."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return reply[0] if isinstance(reply, list) and len(reply) == 1 else reply


def _shown(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * MAX_SHOWN]).split())
    return line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "..."
