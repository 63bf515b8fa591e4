"""One endpoint: its HTTP exchange, what it serves, and how it fares."""

import asyncio
import base64
import contextlib
import functools
import io
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from etl.caption.openai.address import Address
from etl.caption.openai.concurrency import ConcurrencyLimit
from etl.caption.openai.model_names import is_same, revision
from etl.caption.openai.request_format import RequestFormat
from etl.caption.openai.responses import (
    Answer,
    EndpointTroubleError,
    OtherModelError,
    RefusedRequestError,
    answer_of,
    error_of,
    refused,
)
from etl.errors import (
    CaptionError,
    ContentFilterError,
    EndpointAnswerError,
    EndpointTimeoutError,
    EtlError,
    ModelError,
)
from etl.net.errors import fetch_error
from etl.settings import DEFAULT_MODEL, Settings
from etl.settings.template_arguments import template_argument
from etl.text import clean, did_you_mean, nearest

log = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Longest wait for a connection."""

ASK_S = 30.0
"""Longest wait for the list of models, by which an endpoint shows that it lives."""

MAX_ANSWER = 4 * 1024 * 1024
"""Largest answer that is read, in bytes; a caption takes a few thousand."""

KEEPALIVE_S = 3.0
"""Idle connections are closed before the server does it, perhaps just as a request is on its way (uvicorn: 5 s).

Without TLS none is kept at all.  To open one costs less than a millisecond, and servers close one after an error (of
uvicorn's 500, just behind the answer), which would break the next request on it.
"""

_ATTEMPTS_TO_LEARN = 8
"""More forms of a request than there are to try."""

# httpx2 logs every URL at INFO; httpcore2 the raw requests, with their keys, at DEBUG.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Identity:
    """What decides an endpoint's words, as far as it can be known.

    Attributes:
        model: the name under which it is served.
        revision: what the server tells of the version behind the name (`etl.caption.openai.model_names`).
        generation: fields of the requests that decide the words.
    """

    model: str
    revision: str
    generation: tuple[tuple[str, Any], ...]


class Endpoint:
    """One server; for one event loop.

    Attributes:
        address: where it is.
        concurrency: how many requests it bears.
        identity: what it serves, once it was probed.
        latest: number of the newest request.
        captions, tokens, prompt_tokens: of the captions that came.
        heard_at: when it last said anything, on `time.monotonic`'s clock.
    """

    def __init__(self, address: Address, settings: Settings) -> None:
        self.address = address
        self.concurrency = ConcurrencyLimit(settings.endpoint_concurrency)
        self.identity: Identity | None = None
        self.captions = self.tokens = self.prompt_tokens = self.latest = 0
        self.heard_at = time.monotonic()
        self._settings = settings
        self._arguments = dict(map(template_argument, settings.chat_template_arg))
        self._format = RequestFormat(self._arguments)
        self._listed: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()
        self._client: httpx2.AsyncClient | None = None

    def __str__(self) -> str:
        return self.address.base

    async def models(self) -> list[dict[str, Any]] | None:
        """Return the models that it names; ``None`` when it has no such list.

        Raises as `caption` does, but for `CaptionError`.
        """
        with self._errors():
            async with asyncio.timeout(ASK_S):
                status, headers, body = await self._exchange("GET", "/models", None)
        if status == 200:
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(body)
                data = found.get("data") if isinstance(found, dict) else found
                rows = data if isinstance(data, list) else []
                return [one for one in rows if isinstance(one, dict) and isinstance(one.get("id"), str)]
            return None
        error = error_of(status, headers, body)
        if status in (404, 405, 410) or isinstance(error, RefusedRequestError):
            return None
        raise self._named(error)

    async def choose_model(self) -> tuple[str, dict[str, Any]]:
        """Return the name to ask for, and what the list of models says of it.  Raises as `models` does."""
        settings = self._settings
        try:
            models = await self.models()
        except EndpointTroubleError as error:
            # Some servers cannot list what they can serve.
            if not (error.answered and settings.endpoint_model):
                raise
            models = None
        listed = {str(one["id"]): one for one in models or []}
        self._names = tuple(listed)
        if settings.endpoint_model:
            return settings.endpoint_model, listed.get(settings.endpoint_model, {})
        if settings.model in listed:
            return settings.model, listed[settings.model]
        names = ", ".join(list(listed)[:5]) + (", ..." if len(listed) > 5 else "")
        if settings.model != DEFAULT_MODEL:
            if models is None:
                return settings.model, {}
            said = f"{self} does not serve {settings.model}, but {names or 'nothing'}; give --endpoint-model"
            raise ModelError(said + self._meant(settings.model))
        if len(listed) == 1:
            return next(iter(listed.items()))
        raise ModelError(f"{self} serves {names or 'no model that it names'}; say which with --endpoint-model")

    async def probe(self) -> Identity:
        """Have a grey picture captioned: learn what it serves and which requests it takes.

        Raises as `caption` does, but `ModelError` in place of a `CaptionError` that is final.
        """
        model, listed = await self.choose_model()
        format_ = RequestFormat(self._arguments)
        self._listed = listed
        try:
            answer = await self._ask(format_, model, "Describe this picture.", _grey_picture(), None)
        except ContentFilterError:
            answer = None
        except OtherModelError as error:
            raise ModelError(f"{error}; check --endpoint-model{self._meant(model)}") from error
        except ModelError as error:
            raise ModelError(f"{error}{self._meant(model)}") from error
        except CaptionError as error:
            if error.retryable:
                raise
            raise ModelError(f"{self} cannot caption a plain picture with {model}: {error}") from error
        if answer is not None and not answer.text:
            log.warning(
                "%s: %s only reasons, and comes to no caption within %d tokens; give --chat-template-arg "
                "enable_thinking=false, or raise --max-new-tokens",
                self, model, self._settings.max_new_tokens,
            )  # fmt: skip
        self._format = format_
        version = revision(model, answer.model if answer else "", listed.get("root"))
        return Identity(model, version, tuple(sorted(format_.generation.items())))

    def _meant(self, model: str) -> str:
        """Return the question after a name that it lists, for the end of a line, where the model is none of those."""
        meant = did_you_mean(None if model in self._names else nearest(model, self._names))
        return f"; {clean(meant.rstrip(), 200)}" if meant else ""

    async def caption(self, prompt: str, jpeg: bytes, penalty: float | None = None) -> Answer:
        """Return the caption of a picture.

        Raises `CaptionError` when it is this picture that fails, `EndpointBusyError` and `EndpointTroubleError` when
        it is the endpoint, `OtherModelError` when it serves something else, `ModelError` when the run cannot go on.
        """
        assert self.identity is not None
        answer = await self._ask(self._format, self.identity.model, prompt, jpeg, penalty)
        self.captions += 1
        self.tokens += answer.tokens
        self.prompt_tokens += answer.prompt_tokens
        return answer

    async def _ask(self, format_: RequestFormat, model: str, prompt: str, jpeg: bytes, penalty: float | None) -> Answer:
        picture = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
        limit = self._settings.max_new_tokens
        for _ in range(_ATTEMPTS_TO_LEARN):
            body = format_.body(model, prompt, picture, limit, penalty)
            try:
                answer = await self._post(body)
                if not is_same(model, answer.model, self._listed):
                    named = clean(answer.model, 100)
                    raise OtherModelError(f"{self} was asked for {model} and answers as another model, {named}")
                return answer
            except RefusedRequestError as error:
                # Another request may have learnt it meanwhile.  Once probed, what a picture is refused for is the
                # picture's fault: only the penalties, which the trial did without, are still to be learnt.
                changed = format_.body(model, prompt, picture, limit, penalty) != body
                if not changed and not format_.learn(error.complaint, body, settled=format_ is self._format):
                    raise self._named(refused(error)) from error
                log.info("%s: %s; asking in another form", self, self._scrub(error.complaint.text))
        raise EndpointAnswerError("the endpoint refuses every form of the request")

    async def _post(self, body: dict[str, Any]) -> Answer:
        limit = self._settings.endpoint_timeout
        try:
            with self._errors():
                async with asyncio.timeout(limit):
                    content = json.dumps(body).encode()
                    status, headers, answer = await self._exchange("POST", "/chat/completions", content)
        except TimeoutError as error:
            raise EndpointTimeoutError(f"no caption within {limit:g} s from {self}") from error
        try:
            if status != 200:
                raise error_of(status, headers, answer)
            return answer_of(answer)
        except Exception as error:
            raise self._named(error) from None

    async def _exchange(self, method: str, path: str, content: bytes | None) -> tuple[int, httpx2.Headers, bytes]:
        """Return status, headers and body of one answer."""
        if self._client is None:
            self._client = _client(self.address)
        self._require_ours()
        async with self._client.stream(method, self.address.base + path, content=content) as response:
            self.heard_at = time.monotonic()
            chunks, size = [], 0
            async for chunk in response.aiter_bytes():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER:
                    raise EndpointAnswerError(f"{self} sent an answer of more than {MAX_ANSWER} bytes")
            self.heard_at = time.monotonic()
            self._require_ours()
            return response.status_code, response.headers, b"".join(chunks)

    def _require_ours(self) -> None:
        if not self.address.is_ours():
            raise EndpointTroubleError(f"the server that was started at {self} listens there no more", gone=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Give the exceptions of httpx2 their meaning; a `TimeoutError` of the caller's own clock goes through."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise EndpointTroubleError(self._scrub(str(fetch_error(error))), gone=True) from error
        except httpx2.RemoteProtocolError as error:
            if "peer closed connection" in str(error):
                raise EndpointAnswerError(f"the answer of {self} was cut short") from error
            raise EndpointTroubleError(self._scrub(str(fetch_error(error)))) from error
        except httpx2.DecodingError as error:
            raise EndpointAnswerError(f"the answer of {self} cannot be decompressed") from error
        except (httpx2.HTTPError, OSError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, httpx2.TimeoutException):
                raise
            raise EndpointTroubleError(self._scrub(str(fetch_error(error)))) from error

    def _named(self, error: Exception) -> Exception:
        """Return the error with this endpoint's name, and without its key, should the server repeat it."""
        text = self._scrub(str(error))
        if isinstance(error, ModelError):
            return ModelError(f"{self} {text}")
        if isinstance(error, EtlError):
            return type(error)(f"{text} ({self})")
        error.args = (text,)
        return error

    def _scrub(self, text: str) -> str:
        return text.replace(self.address.key, "[key]") if self.address.key else text

    async def renew(self) -> None:
        """Close all connections; the next request opens another."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _client(address: Address) -> httpx2.AsyncClient:
    kept = None if address.base.startswith("https:") else 0
    return httpx2.AsyncClient(
        # Cancelled requests leak places in a bounded pool; the limit is the bound.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=KEEPALIVE_S),
        timeout=httpx2.Timeout(None, connect=CONNECT_S),
        follow_redirects=False,
        trust_env=not address.direct,
        headers={"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        | ({"Authorization": f"Bearer {address.key}"} if address.key else {}),
    )


@functools.cache
def _grey_picture() -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.new("RGB", (224, 224), (128, 128, 128)).save(target, "JPEG")
    return target.getvalue()
