"""What endpoints say, in the forms of several servers: each answer gets its meaning."""

import json
from typing import Any

import pytest

from etl.caption.openai.concurrency import ConcurrencyLimit
from etl.caption.openai.model_names import is_same
from etl.caption.openai.request_format import RequestFormat
from etl.caption.openai.responses import (
    EndpointBusyError,
    EndpointTroubleError,
    RefusedRequestError,
    answer_of,
    complaint_of,
    error_of,
)
from etl.domain.statuses import FinishReason
from etl.errors import (
    ContentFilterError,
    EmptyAnswerError,
    EndpointAnswerError,
    EndpointRefusedError,
    ModelError,
    PromptTooLongError,
)


def said(message: str, code: Any = None, kind: str = "invalid_request_error", param: str | None = None) -> Any:
    """Return OpenAI's form of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


LONG_VLLM = "This model's maximum context length is 4096 tokens. However, you requested 4300 tokens"
LONG_SGLANG = "The input (4300 tokens) is longer than the model's context length (4096 tokens)."
LONG_TGI = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4300 and 200"
LONG_LLAMA = "the request exceeds the available context size. try increasing the context size"
QUOTA = "You exceeded your current quota, please check your plan and billing details."
PARSE = "You uploaded an unsupported image. Please make sure your image is valid."
LONG_LM_STUDIO = "The number of tokens to keep is greater than the context length (n_keep: 13055>= n_ctx: 4096)."
CRASHED = "The model has crashed without additional information. (Exit code: null)"


def gemini(message: str, code: int = 400, state: str = "INVALID_ARGUMENT", **more: Any) -> Any:
    """Return Gemini's form of an error."""
    return [{"error": {"code": code, "message": message, "status": state, **more}}]


def provider(code: int, raw: str) -> Any:
    """Return OpenRouter's form of what a provider said."""
    return {"error": {"message": "Provider returned error", "code": code, "metadata": {"raw": raw}}}


ERRORS: list[tuple[int, Any, type[Exception]]] = [
    (400, said(LONG_VLLM, 400, "BadRequestError"), PromptTooLongError),
    (400, {"object": "error", "message": LONG_VLLM, "type": "BadRequestError", "code": 400}, PromptTooLongError),
    (400, {"object": "error", "message": LONG_SGLANG, "type": "BadRequestError", "code": 400}, PromptTooLongError),
    (422, {"error": LONG_TGI, "error_type": "validation"}, PromptTooLongError),
    (400, said("too long", "context_length_exceeded"), PromptTooLongError),
    (500, said(LONG_LLAMA, None, "api_error"), PromptTooLongError),
    (400, said(PARSE, "image_parse_error"), EndpointRefusedError),
    (400, said("cannot identify image file <_io.BytesIO object>", 400, "BadRequestError"), EndpointRefusedError),
    (500, said("failed to decode image: unknown format", None, "api_error"), EndpointRefusedError),
    (413, "<html>413 Request Entity Too Large</html>", EndpointRefusedError),
    (400, said("The response was filtered", "content_filter"), ContentFilterError),
    (400, said("Your input was flagged by our safety system.", "content_policy_violation"), ContentFilterError),
    (403, said("Your input was flagged: moderation"), ContentFilterError),
    (400, said("Something else is wrong"), RefusedRequestError),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, RefusedRequestError),
    (401, said("Incorrect API key provided", "invalid_api_key"), ModelError),
    (403, {"detail": "Forbidden"}, ModelError),
    (402, said("Insufficient Balance"), ModelError),
    (429, said(QUOTA, "insufficient_quota", "insufficient_quota"), ModelError),
    (404, said("The model `x` does not exist.", "model_not_found"), ModelError),
    (404, said('model "x" not found, try pulling it first', None, "api_error"), ModelError),
    (400, said("Model 'x' not found"), ModelError),
    (404, {"detail": "Not Found"}, ModelError),
    (404, gemini("models/x is not found for API version v1main.", 404, "NOT_FOUND"), ModelError),
    (404, said("The API deployment for this resource does not exist.", "DeploymentNotFound"), ModelError),
    (400, {"error": {"message": "x is not a valid model ID", "code": 400}}, ModelError),
    (400, gemini("API key not valid. Please pass a valid API key."), ModelError),
    (400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xai-1"}, ModelError),
    (403, {"error": {"code": 403, "message": "Budget limit exceeded"}}, ModelError),
    (402, said("Insufficient Balance. Add more, then try again."), ModelError),
    (400, gemini('Invalid JSON payload received. Unknown name "seed": Cannot find field.'), RefusedRequestError),
    (400, provider(400, "This endpoint's maximum context length is 4096 tokens."), PromptTooLongError),
    (400, {"error": LONG_LM_STUDIO}, PromptTooLongError),
    (500, said("Context size has been exceeded.", 500, "server_error"), PromptTooLongError),
    (
        400,
        said("The response was filtered by Azure's content management policy.", "content_filter"),
        ContentFilterError,
    ),
    (400, {"error": 'Failed to load model "x". Error: Operation canceled.'}, EndpointTroubleError),
    (400, {"error": CRASHED}, EndpointTroubleError),
    (500, said("image input is not supported - hint: you may need to provide the mmproj", 500), EndpointRefusedError),
    (503, said("Loading model", 503, "unavailable_error"), EndpointBusyError),
    (307, "", ModelError),
    (429, said("Rate limit reached for gpt-4o", "rate_limit_exceeded", "tokens"), EndpointBusyError),
    (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, EndpointBusyError),
    (529, "", EndpointBusyError),
    (500, "Internal Server Error", EndpointTroubleError),
    (502, "<html>502 Bad Gateway</html>", EndpointTroubleError),
    (408, "", EndpointTroubleError),
]


def as_bytes(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


@pytest.mark.parametrize(("code", "body", "kind"), ERRORS)
def test_every_refusal_has_its_meaning(code: int, body: Any, kind: type[Exception]) -> None:
    """Status and words of vLLM, SGLang, TGI, Ollama and OpenAI tell what failed: picture, endpoint or run."""
    error = error_of(code, {}, as_bytes(body))
    assert type(error) is kind, error
    assert "\n" not in str(error) and len(str(error)) < 500


DATES = {"retry-after": "Mon, 30 Nov 2026 02:00:30 GMT", "date": "Mon, 30 Nov 2026 02:00:00 GMT"}
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "26s"}
WAITS: list[tuple[int, dict[str, str], Any, float | None]] = [
    (429, {"retry-after": "7"}, "", 7.0),
    (429, {"retry-after": "0.5"}, "", 0.5),
    (503, DATES, "", 30.0),
    (429, {"retry-after": "soon"}, "", None),
    (429, {}, "", None),
    (429, {"retry-after": "3"}, said("Please try again in 9s."), 3.0),
    (429, {}, said("Rate limit reached. Please try again in 6m0s. Visit", "rate_limit_exceeded"), 360.0),
    (429, {}, said("Limit 30000, Used 29999. Please try again in 350ms."), 0.35),
    (429, {}, said("exceeded the token rate limit of your S0 pricing tier. Please retry after 45 seconds."), 45.0),
    (429, {}, gemini(f"{QUOTA}{400 * ' '}\nPlease retry in 58.5s.", 429, "RESOURCE_EXHAUSTED"), 58.5),
    (429, {}, gemini(QUOTA, 429, "RESOURCE_EXHAUSTED", details=[RETRY_INFO]), 26.0),
    (429, {}, said(json.dumps(gemini("Slow down", 429, details=[RETRY_INFO]))), 26.0),
    (402, {"retry-after": "2"}, {"error": {"code": 402, "message": "in-flight budget exhausted"}}, 2.0),
    (429, {}, said("Please retry after 2026-12-01. " + "9" * 9000), None),
    (429, {}, said("try again in 5 lightyears"), None),
]


@pytest.mark.parametrize(("code", "headers", "body", "seconds"), WAITS)
def test_how_long_to_wait_is_read(code: int, headers: dict[str, str], body: Any, seconds: float | None) -> None:
    """Headers say it in seconds, fractions and dates, bodies in words; a quota that comes again is no empty account."""
    error = error_of(code, headers, as_bytes(body))
    assert isinstance(error, EndpointBusyError)
    assert error.seconds == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        (404, gemini("models/x is not found for API version v1main.", 404), "does not serve the model"),
        (404, said("The API deployment for this resource does not exist.", "DeploymentNotFound"), "does not serve"),
        (404, {"detail": "Not Found"}, "has nothing at this address"),
        (400, gemini("API key not valid. Please pass a valid API key."), "does not accept the key"),
        (403, {"error": {"code": 403, "message": "Budget limit exceeded"}}, "no quota left"),
        (429, said(QUOTA, "insufficient_quota"), "no quota left"),
    ],
)
def test_what_ends_the_run_says_what_to_do(code: int, body: Any, words: str) -> None:
    """A model that is not there, a key that is not taken and an empty account each have words of their own."""
    error = error_of(code, {}, as_bytes(body))
    assert isinstance(error, ModelError) and words in str(error)


def choice(reason: str | None = "stop", **message: Any) -> bytes:
    return as_bytes({"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": 3}})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b'"text"', b'{"choices": [', b"\xff\xfe", b"[" * 100_000, as_bytes({"choices": []}),
        as_bytes({"choices": None}), as_bytes({"choices": ["text"]}), as_bytes({"error": {"message": "out of memory"}}),
        choice(content=None), choice(), choice(content=5), choice(content=[]),
        as_bytes({"choices": [{"text": "a completion, no chat", "finish_reason": "stop"}]}),
    ],
)  # fmt: skip
def test_what_is_no_caption_may_be_one_next_time(body: bytes) -> None:
    """Broken JSON, no choices and no text are retryable failures with one line."""
    with pytest.raises(EndpointAnswerError) as caught:
        answer_of(body)
    assert caught.value.retryable and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "body",
    [
        choice("content_filter", content="A pho"), choice("stop", content=None, refusal="I can't help with that."),
        choice("SAFETY", content=None), choice("PROHIBITED_CONTENT"), choice("content_filter: RECITATION", content=""),
        choice("sensitive", content="A"),
    ],
)  # fmt: skip
def test_a_withheld_caption_is_final(body: bytes) -> None:
    """A content filter and a refusal have a class of their own, and half a caption is not kept."""
    with pytest.raises(ContentFilterError) as caught:
        answer_of(body)
    assert not caught.value.retryable


LATE: list[tuple[bytes, type[Exception], str]] = [
    (as_bytes(provider(429, "x is rate-limited upstream. Please retry shortly.")), EndpointBusyError, "upstream"),
    (as_bytes(provider(502, "bad gateway")), EndpointTroubleError, "HTTP 502: Provider returned error: bad gateway"),
    (as_bytes(said("No auth credentials found", 401)), ModelError, "does not accept the key"),
    (as_bytes({"error": LONG_LM_STUDIO}), PromptTooLongError, "context length"),
    (as_bytes({"choices": [{"message": {"content": "A pho"}, "finish_reason": "error", **provider(502, "gone")}]}),
     EndpointTroubleError, "gone"),
    *((choice(reason, content="A pho"), EndpointTroubleError, "broken off")
      for reason in ("abort", "error", "network_error", "insufficient_system_resource")),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "words"), LATE)
def test_an_error_may_come_as_a_success(body: bytes, kind: type[Exception], words: str) -> None:
    """OpenRouter, LM Studio and a vLLM that is being ended tell of failures with status 200; half a caption is none."""
    with pytest.raises(kind, match=words) as caught:
        answer_of(body)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "reason", ["length", "max_tokens", "MAX_TOKENS", "model_length", "model_context_window_exceeded"]
)
def test_the_limit_has_many_names(reason: str) -> None:
    """Whatever the server calls it, a caption that reached the limit is known as cut."""
    assert answer_of(choice(reason, content="A ship at")).finish_reason is FinishReason.LENGTH


def test_captions_are_read() -> None:
    """Text, also in parts, is stripped; reason and tokens come along; what cannot be stored is replaced."""
    answer = answer_of(choice("length", content=" A ship.\0\ud800 "))
    assert (answer.text, answer.tokens, answer.finish_reason) == ("A ship.?", 3, FinishReason.LENGTH)
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "ship."}]
    assert answer_of(choice("eos", content=parts)).text == "A ship."
    assert (
        answer_of(b"\n \r\n" + choice(content="x")).text == answer_of(b"\xef\xbb\xbf" + choice(content="x")).text == "x"
    )
    bare = answer_of(as_bytes({"choices": [{"message": {"content": "x"}}], "usage": None, "model": 7}))
    assert (bare.tokens, bare.prompt_tokens, bare.model, bare.finish_reason) == (0, 0, "", FinishReason.STOP)


@pytest.mark.parametrize(
    ("message", "text", "thinking"),
    [
        ({"content": "A ship.", "reasoning": " It floats. "}, "A ship.", "It floats."),
        ({"content": "A ship.", "reasoning_content": "It floats."}, "A ship.", "It floats."),
        ({"content": "<think>It floats.</think>\n\nA ship."}, "A ship.", "It floats."),
        ({"content": "It floats.</think>A ship.", "reasoning": None}, "A ship.", "It floats."),
        ({"content": None, "reasoning": "It floats\0, and"}, "", "It floats, and"),
        ({"content": "", "reasoning_content": "It floats, and"}, "", "It floats, and"),
    ],
)
def test_reasoning_is_kept_apart(message: dict[str, Any], text: str, thinking: str) -> None:
    """Whether the server takes it out, under either name, or leaves it in the text, it is no part of the caption."""
    answer = answer_of(choice(**message))
    assert (answer.text, answer.thinking) == (text, thinking)


@pytest.mark.parametrize(
    "message", [{"content": None}, {"content": ""}, {"content": " \n"}, {"content": "<think></think>"}]
)
def test_no_words_at_all_have_a_class_and_a_hint(message: dict[str, Any]) -> None:
    """A null or empty content is no empty caption: it says what may help against it."""
    with pytest.raises(EmptyAnswerError, match=r"finish_reason length.*--max-new-tokens.*enable_thinking=false"):
        answer_of(choice("length", **message))


def test_arguments_of_the_chat_template_are_passed_on() -> None:
    """They are in every request and in the recipe, and never left out."""
    format_ = RequestFormat({"enable_thinking": False})
    body = format_.body("m", "p", "u", 5)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert format_.generation["chat_template_kwargs"] == '{"enable_thinking": false}'
    refusal = complaint_of(as_bytes(said("Unrecognized request argument supplied: chat_template_kwargs")))
    assert not format_.learn(refusal, body)
    assert "chat_template_kwargs" not in RequestFormat().body("m", "p", "u", 5)


NEWER = said(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "unsupported_parameter", param="max_tokens",
)  # fmt: skip
ONLY_DEFAULT = said(
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
    "unsupported_value", param="temperature",
)  # fmt: skip
GO = {"error": {"message": "json: cannot unmarshal object into Go struct field .image_url of type string"}}
LESSONS: list[tuple[Any, str, Any]] = [
    (NEWER, "max_completion_tokens", 200),
    (ONLY_DEFAULT, "temperature", None),
    ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, "seed", None),
    ({"detail": "Unexpected fields in the request: {'repetition_penalty'}"}, "frequency_penalty", 0.3),
    (GO, "image_url", "data:x"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field", "value"), LESSONS)
def test_request_formats_are_learnt_once(body: Any, field: str, value: Any) -> None:
    """A refusal that names a field changes that field alone, once; said again, nothing else is changed."""
    format_ = RequestFormat()
    before = format_.body("m", "p", "data:x", 200, 1.3)
    assert format_.learn(complaint_of(as_bytes(body)), before)
    after = format_.body("m", "p", "data:x", 200, 1.3)
    if field == "image_url":
        assert after.pop("messages")[0]["content"][0] == {"type": "image_url", "image_url": value}
        before.pop("messages")
        assert after == before
    else:
        assert after.get(field) == value
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        assert field in changed and len(changed) <= 2
    assert not format_.learn(complaint_of(as_bytes(body)), format_.body("m", "p", "data:x", 200, 1.3))


@pytest.mark.parametrize("body", [said("Something is wrong"), said(LONG_VLLM), said("Invalid base64 in image_url"), ""])
def test_nothing_is_learnt_from_other_words(body: Any) -> None:
    """What names no field leaves the requests as they are."""
    format_ = RequestFormat()
    request = format_.body("m", "p", "data:x", 200)
    assert not format_.learn(complaint_of(as_bytes(body)), request)
    assert format_.body("m", "p", "data:x", 200) == request


def test_a_settled_format_learns_of_penalties_alone() -> None:
    """After the trial a picture's refusal cannot change how the others are sent."""
    format_ = RequestFormat()
    request = format_.body("m", "p", "data:x", 200, 1.2)
    for lesson in (NEWER, ONLY_DEFAULT, GO):
        assert not format_.learn(complaint_of(as_bytes(lesson)), request, settled=True)
    assert format_.learn(complaint_of(as_bytes(said("Unknown parameter: 'repetition_penalty'"))), request, settled=True)


class Simulated:
    """A server that gives ``slots`` captions a second at most, each of them taking a second at least."""

    def __init__(self, most: int, slots: int) -> None:
        self.concurrency, self.slots, self.now, self.number = ConcurrencyLimit(most), slots, 0.0, 0

    def run(self, captions: int) -> int:
        """Keep it as busy as is allowed; return what is allowed then."""
        for _ in range(captions):
            self.number += 1
            self.now += 1 / min(self.concurrency.allowed, self.slots)
            self.concurrency.success(self.number, self.concurrency.allowed, self.now)
        return self.concurrency.allowed


@pytest.mark.parametrize("slots", [1, 8, 50])
def test_the_pace_finds_what_a_server_bears(slots: int) -> None:
    """The number of requests grows to what brings captions, and no further than the limit."""
    server = Simulated(64, slots)
    server.run(2000)
    assert slots / 2 <= max(server.run(50) for _ in range(20)) <= max(2 * slots, 6)
    assert Simulated(3, 1000).run(500) == 3


def test_the_pace_is_halved_once_for_a_bad_moment() -> None:
    """Many refusals of requests that were under way together halve once; a later one halves again."""
    server = Simulated(64, 1000)
    allowed = server.run(3000)
    assert allowed == 64
    for number in range(server.number - 30, server.number):
        server.concurrency.overload(number, server.number)
    assert server.concurrency.allowed == 32
    server.concurrency.overload(server.number + 1, server.number + 1)
    assert server.concurrency.allowed == 16
    server.number += 1
    assert server.run(2000) > 32


def test_a_server_that_becomes_much_slower_gets_less() -> None:
    """Without a word of the server, captions that take far longer halve the requests."""
    server = Simulated(64, 1000)
    assert server.run(3000) == 64
    server.slots = 2
    assert server.run(1000) <= 16


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("tiny", ""),
        ("tiny", "tiny"),
        ("Tiny", "tiny"),
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-4", "gpt-4-0613"),
        ("claude-sonnet-latest", "claude-sonnet-20241022"),
        ("gemini-1.5-pro", "gemini-1.5-pro-002"),
        ("models/gemini-1.5-flash", "gemini-1.5-flash-002"),
        ("llava", "llava:latest"),
        ("llava:latest", "llava"),
        ("qwen3-vl:8b", "qwen3-vl:8b"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b-hf"),
        ("llava-1.5-7b-hf", "/models/llava-1.5-7b-hf/"),
        ("/srv/checkpoint", "/srv/checkpoint@main"),
        ("llava", "org/llava-1.5"),
        ("llava", "vendor/llava-20250101"),
        ("llava", "second name"),
    ],
)
def test_names_of_the_same_model(asked: str, answered: str) -> None:
    """Versions, tags, owners and paths, and what the list of models calls it, are no other model; nor is no name."""
    listed = {"id": asked, "root": "org/llava-1.5", "canonical_slug": "vendor/llava-20250101",
              "aliases": ["second name", 7]}  # fmt: skip
    assert is_same(asked, answered, listed)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("tiny", "huge"),
        ("gpt-4o", "gpt-4o-mini"),
        ("gpt-4o-mini", "gpt-4o"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-05-13"),
        ("qwen3-vl:8b", "qwen3-vl:2b"),
        ("qwen3-vl:8b", "qwen3-vl:latest"),
        ("a/llava", "b/llava"),
        ("llava", "my-llava"),
        ("llava-1.5-7b", "llava-1.5-13b"),
        ("tiny", "/"),
        ("tiny", "@"),
    ],
)
def test_names_of_other_models(asked: str, answered: str) -> None:
    """Another size, another owner's, another date than the one that was asked for: other models."""
    assert not is_same(asked, answered, {"id": asked, "root": None, "parent": "huge", "aliases": "huge"})
