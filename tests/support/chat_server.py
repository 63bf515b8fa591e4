"""A real HTTP server on 127.0.0.1 that speaks OpenAI's chat protocol, captions, and misbehaves on request.

    with ChatServer() as server:
        server.fail(status(429, headers={"Retry-After": "1"}), times=3)
        ...                                   # three requests for captions are refused, then all are served
        assert len(server.asked) == 15

The trial with which the program introduces itself (a request that no test's picture is in) is served and counted in
``trials``; faults meet it only where they say so.  Run as a program
(``python -m support.chat_server PORT DELAY``) it is a process that can be stopped and killed.
"""

import base64
import contextlib
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from support.http_server import Handler, Headers, StandIn

MODEL = "tiny"
TRIAL = "Describe this picture."

PREFIX = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class Asked:
    """One request for a caption as it arrived; ``at`` is `time.monotonic`."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts of the one message."""
        [message] = self.body["messages"]
        parts: list[dict[str, Any]] = message["content"]
        return parts

    @property
    def prompt(self) -> str:
        """The instruction text."""
        [text] = [part["text"] for part in self.parts if part["type"] == "text"]
        return str(text)

    @property
    def url(self) -> Any:
        """The picture's field as it was sent, of whatever form."""
        [url] = [part["image_url"] for part in self.parts if part["type"] == "image_url"]
        return url

    @property
    def jpeg(self) -> bytes:
        """The picture's bytes."""
        url = self.url if isinstance(self.url, str) else self.url["url"]
        assert url.startswith(PREFIX)
        return base64.b64decode(url.removeprefix(PREFIX), validate=True)

    @property
    def limit(self) -> int:
        """The most tokens."""
        return int(self.body.get("max_completion_tokens") or self.body["max_tokens"])


@dataclass(frozen=True)
class Words:
    """A caption to be sent."""

    text: str | None
    tokens: int = 7
    finish_reason: str = "stop"
    reasoning: str | None = None


Behaviour = Callable[["_Handler", Asked], None]


def plain(asked: Asked) -> Words:
    """Caption with the prompt and the beginning of the picture's hash: right only for this picture and this prompt."""
    return Words(f"{asked.prompt} {hashlib.sha256(asked.jpeg).hexdigest()[:8]}")


def status(code: int, body: Any = "", headers: Headers | None = None) -> Behaviour:
    """Answer with a status; ``body`` is sent as JSON unless it is a text."""
    return lambda handler, _: handler.say(code, body, headers)


def reply(**changes: Any) -> Behaviour:
    """Answer 200 with fields of a usual reply changed."""
    return lambda handler, asked: handler.say(200, completion(plain(asked)) | changes)


def half(handler: "_Handler", asked: Asked) -> None:
    """Announce a whole answer, send half of it, and close."""
    body = json.dumps(completion(plain(asked))).encode()
    handler.head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def reset(handler: "_Handler", _: Asked) -> None:
    """Break the connection without an answer, as a process that dies does."""
    handler.reset()


def hang(handler: "_Handler", _: Asked) -> None:
    """Say nothing until the server is closed."""
    handler.server.closing.wait(60)
    handler.close_connection = True


def completion(words: Words, model: str = MODEL) -> dict[str, Any]:
    """Return the body of an answer."""
    message = {"role": "assistant", "content": words.text}
    message |= {"reasoning": words.reasoning} if words.reasoning else {}
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": words.finish_reason}],
        "usage": {"prompt_tokens": 600, "completion_tokens": words.tokens, "total_tokens": 600 + words.tokens},
    }  # fmt: skip


@dataclass
class _Fault:
    behaviour: Behaviour
    times: int | None
    when: Callable[[Asked], bool]


@dataclass(eq=False)
class ChatServer(StandIn):
    """A context manager.

    Attributes:
        caption: what gives the words.
        models: what it lists.
        delay_s: how long each caption takes.
        port: 0 for any that is free.
        slots: captions that it writes at once; more wait.
        asked: requests for captions so far, the trials not counted.
        trials: requests of the program's introduction so far.
        most: requests that were under way at once, at most.
        captioned: answers with a caption that were sent.
        key: what every request must show; empty for none.
    """

    caption: Callable[[Asked], Words] = plain
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": MODEL, "object": "model"}])
    delay_s: float = 0.0
    port: int = 0
    slots: int = 1000
    asked: list[Asked] = field(default_factory=list)
    trials: list[Asked] = field(default_factory=list)
    most: int = 0
    captioned: int = 0
    under_way: int = 0
    key: str = ""
    _faults: list[_Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(_Handler, self.port)
        self._writing = threading.Semaphore(self.slots)

    @property
    def url(self) -> str:
        """Its address, as for ``--endpoint``."""
        return self.base

    def fail(self, behaviour: Behaviour, times: int | None = 1, when: Callable[[Asked], bool] | None = None) -> None:
        """Answer the next requests for captions, of those that ``when`` means, in this way; ``None`` for all."""
        self._faults.append(_Fault(behaviour, times, when or (lambda asked: asked.prompt != TRIAL)))

    def heal(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    def fault_for(self, asked: Asked) -> Behaviour | None:
        """Return how this request is to be answered, when not with a caption."""
        with self.lock:
            for fault in self._faults:
                if fault.times != 0 and fault.when(asked):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault.behaviour
        return None

    def write(self, asked: Asked) -> Words:
        """Return the caption, when its turn has come."""
        with self._writing:
            self.closing.wait(self.delay_s)
            return self.caption(asked)


class _Handler(Handler):
    server: ChatServer

    def do_GET(self) -> None:
        if self.refused():
            return
        if self.path.endswith("/models"):
            self.say(200, {"object": "list", "data": self.server.models})
        else:
            self.say(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        if self.refused():
            return
        asked = Asked(body, dict(self.headers), time.monotonic())
        chat = self.server
        with chat.lock:
            (chat.trials if asked.prompt == TRIAL else chat.asked).append(asked)
            chat.under_way += 1
            chat.most = max(chat.most, chat.under_way)
        try:
            fault = chat.fault_for(asked)
            if fault is not None:
                fault(self, asked)
                return
            words = chat.write(asked)
            with chat.lock:
                chat.captioned += asked.prompt != TRIAL
            self.say(200, completion(words, body["model"]))
        finally:
            with chat.lock:
                chat.under_way -= 1

    def refused(self) -> bool:
        """Refuse a request that shows another key than it must; return whether it did."""
        key = self.server.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.say(401, {"error": "Unauthorized"})
        return True

    def say(self, code: int, body: Any, headers: Headers | None = None) -> None:
        """Send a whole answer; ``body`` is sent as JSON unless it is a text."""
        data = body if isinstance(body, str) else json.dumps(body)
        self.answer(code, data.encode(), "application/json", headers)


if __name__ == "__main__":
    with ChatServer(port=int(sys.argv[1]), delay_s=float(sys.argv[2])) as server:
        print(server.port, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
