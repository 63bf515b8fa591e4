"""Captioning over endpoints: right words for the right picture, whatever the endpoints do; and no key goes astray."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from caption.conftest import Scenes
from support.chat_server import TRIAL, Asked, ChatServer, Words, completion, half, hang, plain, reply, reset, status
from support.watching import wait_for

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.model.loading import LoadedModel
from etl.caption.openai.address import Address, addresses
from etl.caption.openai.captioner import EndpointCaptioner, check
from etl.caption.openai.concurrency import FIRST, ConcurrencyLimit
from etl.caption.recipe import Recipe
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason
from etl.errors import ConfigError, ModelError
from etl.settings import Settings

KEY = "sk-0123456789abcdef"

Outcomes = dict[int, CaptionResult | ItemFailure]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take keys and proxies of this machine away, and make the waits short."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.endswith("API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("etl.caption.openai.endpoint_state.FIRST_WAIT_S", 0.1)
    monkeypatch.setattr("etl.caption.openai.endpoint_state.BUSY_S", 0.02)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """Return one endpoint."""
    with ChatServer() as server:
        yield server


class Pictures:
    """Files that pass for working copies where nobody looks at the picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def items(self, count: int) -> list[CaptionItem]:
        """Return so many items, each with a picture and a prompt of its own."""
        found = []
        for number in range(1, count + 1):
            body = b"\xff\xd8\xff" + number.to_bytes(4, "big") * 50 + b"\xff\xd9"
            name = hashlib.sha256(body).hexdigest()
            self.locate(name).write_bytes(body)
            found.append(CaptionItem(number, name, f"Describe number {number}."))
        return found

    def locate(self, sha256: str) -> Path:
        """Return a file."""
        return self.folder / f"{sha256}.jpg"


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Return a place for pictures."""
    return Pictures(tmp_path)


def settings_for(*servers: ChatServer | str, **changes: Any) -> Settings:
    """Return settings for these endpoints."""
    urls = tuple(one if isinstance(one, str) else one.url for one in servers)
    values: dict[str, Any] = {"backend": "openai", "endpoint": urls, "max_new_tokens": 40, "endpoint_timeout": 20.0}
    return Settings(**(values | changes))


@contextlib.contextmanager
def opened(pictures: Pictures, *servers: ChatServer | str, **changes: Any) -> Iterator[EndpointCaptioner]:
    """Yield a captioner over these endpoints; no thread is left behind it."""
    before = threading.active_count()
    captioner = EndpointCaptioner(settings_for(*servers, **changes), pictures.locate, 1024)
    try:
        yield captioner
    finally:
        captioner.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoints"], before


def caption_all(captioner: EndpointCaptioner, items: list[CaptionItem]) -> Outcomes:
    """Return the one outcome of each item."""
    outcomes = list(captioner.caption(items))
    assert sorted(one.id for one in outcomes) == sorted(item.id for item in items)
    return {one.id: one for one in outcomes}


def test_a_model_that_reasons(server: ChatServer, pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    """Its reasoning is kept beside the caption; where it comes to none that is flagged, and the run says what to do."""
    items = pictures.items(3)
    with opened(pictures, server) as captioner:
        assert "only reasons" not in caplog.text
        server.caption = lambda asked: Words(
            f"A ship, number {asked.prompt[-2]}." if "1" in asked.prompt else None, 40, "length", "It floats. " * 20
        )
        found = caption_all(captioner, items)
    outcomes = [one for _, one in sorted(found.items()) if isinstance(one, CaptionResult)]
    assert [one.text for one in outcomes] == ["A ship, number 1.", "", ""]
    assert {one.thinking for one in outcomes} == {("It floats. " * 20).strip()}
    assert [one.flags for one in outcomes] == [("truncated",), *[("empty", "thought_only", "truncated")] * 2]
    with opened(pictures, server, chat_template_arg=("enable_thinking=false",)) as captioner:
        assert captioner.recipe.generation["chat_template_kwargs"] == '{"enable_thinking": false}'
    assert server.trials[-1].body["chat_template_kwargs"] == {"enable_thinking": False}
    [said] = [one.getMessage() for one in caplog.records if "only reasons" in one.getMessage()]
    assert said.endswith("give --chat-template-arg enable_thinking=false, or raise --max-new-tokens")


def test_a_server_without_words_ends_the_run_with_a_hint(server: ChatServer, pictures: Pictures) -> None:
    """A null content without reasoning is told at the trial, with what may help."""
    server.caption = lambda _: Words(None, 40, "length")
    with pytest.raises(ModelError, match=r"has no words .*--max-new-tokens or give --chat-template-arg"):
        EndpointCaptioner(settings_for(server), pictures.locate, 1024)


def right(item: CaptionItem) -> str:
    """Return the plain server's words for an item."""
    return f"{item.prompt} {item.working_sha256[:8]}"


def assert_right(outcomes: Outcomes, items: list[CaptionItem]) -> None:
    """Assert that every item has its own caption."""
    found = {key: one.text for key, one in outcomes.items() if isinstance(one, CaptionResult)}
    assert found == {item.id: right(item) for item in items}


def slugs(outcomes: Outcomes) -> Counter[str]:
    """Count the failures by class."""
    return Counter(one.slug for one in outcomes.values() if isinstance(one, ItemFailure))


class Model:
    """The tiny model behind a server's words, through the program's own `generate` engine."""

    def __init__(self, loaded: LoadedModel, folder: Path) -> None:
        settings = Settings(model="demo", device="cpu", dtype="float32", max_new_tokens=40)
        self._captioner = GenerateCaptioner(loaded, settings, lambda sha256: folder / sha256)
        self._folder = folder
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Words:
        if asked.prompt == TRIAL:
            return Words("grey")
        with self._lock:
            name = hashlib.sha256(asked.jpeg).hexdigest()
            (self._folder / name).write_bytes(asked.jpeg)
            penalty = 1 + asked.body["frequency_penalty"] if "frequency_penalty" in asked.body else None
            item = CaptionItem(1, name, asked.prompt, repetition_penalty=penalty)
            [result] = self._captioner.caption([item])
        assert isinstance(result, CaptionResult)
        return Words(result.text, result.tokens, str(result.finish_reason))


def test_the_words_are_those_of_the_model_itself(
    loaded: LoadedModel, scenes: Scenes, tmp_path: Path, pictures: Pictures
) -> None:
    """Over two endpoints the demo's scenes get, word for word, what the local backend gives them."""
    local = GenerateCaptioner(
        loaded, Settings(model="demo", device="cpu", dtype="float32", max_new_tokens=40), scenes.locate
    )
    wanted = {one.id: one for one in local.caption(scenes.items)}
    pictures.locate = scenes.locate  # type: ignore[method-assign]
    model = Model(loaded, tmp_path)
    with ChatServer(model) as one, ChatServer(model) as two, opened(pictures, one, two) as captioner:
        assert caption_all(captioner, scenes.items) == wanted
        samples = captioner.samples()
    assert one.asked and two.asked
    assert sum(sample.captions for sample in samples) == len(scenes.items)
    assert sum(sample.tokens for sample in samples) == sum(
        result.tokens for result in wanted.values() if isinstance(result, CaptionResult)
    )
    assert [(sample.worker, sample.in_use, sample.waiting) for sample in samples] == [(0, 0, 0), (1, 0, 0)]


def test_what_is_sent(server: ChatServer, pictures: Pictures) -> None:
    """A request holds the working copy's bytes, the record's prompt, greedy decoding, and no key where none is set."""
    items = pictures.items(3)
    with opened(pictures, server) as captioner:
        assert_right(caption_all(captioner, items), items)
    assert {asked.jpeg for asked in server.asked} == {pictures.locate(i.working_sha256).read_bytes() for i in items}
    asked = server.asked[0]
    assert asked.body.keys() == {"model", "messages", "max_tokens", "temperature", "seed", "stream"}
    assert (asked.body["temperature"], asked.body["max_tokens"], asked.body["stream"]) == (0, 40, False)
    assert [part["type"] for part in asked.parts] == ["image_url", "text"]
    assert "Authorization" not in asked.headers
    assert len(server.trials) == 1


def test_the_recipe_tells_of_the_model_and_not_of_the_place(pictures: Pictures) -> None:
    """Another port gives the same recipe; another name, version, limit or refused field gives another."""
    recipes: list[Recipe] = []

    def note(server: ChatServer, **changes: Any) -> None:
        with server, opened(pictures, server, **changes) as captioner:
            recipes.append(captioner.recipe)

    note(ChatServer())
    note(ChatServer())
    assert recipes[0] == recipes[1]
    assert (recipes[0].model, recipes[0].revision, recipes[0].engine) == ("tiny", "unspecified", "openai")
    assert "127.0.0.1" not in recipes[0].to_json()
    rooted = [{"id": "tiny", "root": "/srv/hub/snapshots/3f2a9c"}]
    note(ChatServer(models=rooted))
    assert recipes[2].revision == "3f2a9c"
    note(ChatServer(models=[{"id": "other"}]))
    note(ChatServer(), max_new_tokens=41)
    cold = ChatServer()
    cold.fail(status(400, "temperature is not supported"), None, lambda asked: "temperature" in asked.body)
    note(cold)
    assert "temperature" not in recipes[5].generation and "seed" in recipes[5].generation
    dated = ChatServer()
    dated.fail(reply(model="tiny-2026-05-01"), None, lambda _: True)
    note(dated)
    assert recipes[6].source == "tiny@tiny-2026-05-01"
    assert len(set(recipes)) == len(recipes) - 1


NEWER = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


def test_request_formats_are_learnt_at_the_start(pictures: Pictures) -> None:
    """An endpoint that wants another limit, no seed and a bare picture is asked so from the first item on."""
    with ChatServer() as server:
        server.fail(status(400, {"error": {"message": NEWER}}), None, lambda asked: "max_tokens" in asked.body)
        server.fail(status(422, {"detail": "Unexpected field: seed"}), None, lambda asked: "seed" in asked.body)
        text = {"error": "image_url should be a valid string"}
        server.fail(status(422, text), None, lambda asked: not isinstance(asked.url, str))
        items = pictures.items(5)
        with opened(pictures, server) as captioner:
            assert_right(caption_all(captioner, items), items)
        assert (len(server.trials), len(server.asked)) == (4, 5)


def test_penalties_are_sent_in_the_form_that_is_taken(pictures: Pictures) -> None:
    """A caption that is to be made again asks for a penalty; a server that does not know it is asked for its own."""
    with ChatServer() as server:
        server.fail(
            status(422, {"detail": "Unexpected fields in the request: {'repetition_penalty'}"}), None,
            lambda asked: "repetition_penalty" in asked.body,
        )  # fmt: skip
        items = [dataclasses.replace(item, repetition_penalty=1.3) for item in pictures.items(6)]
        with opened(pictures, server, endpoint_concurrency=1) as captioner:
            assert_right(caption_all(captioner, items), items)
        assert [asked.body.get("frequency_penalty") for asked in server.asked] == [None] + [0.3] * 6
        assert all("frequency_penalty" not in asked.body for asked in server.trials)


def test_which_model_is_asked_for(pictures: Pictures) -> None:
    """The only one served, or the one that is named; everything else is one clear line before anything is sent."""
    with ChatServer(models=[{"id": "a"}, {"id": "b"}]) as many, ChatServer() as one:
        with opened(pictures, one) as captioner:
            assert captioner.recipe.model == "tiny"
        with opened(pictures, many, model="b") as captioner:
            assert captioner.recipe.model == "b"
        with opened(pictures, many, endpoint_model="served-under-no-name") as captioner:
            assert captioner.recipe.model == "served-under-no-name"
        for words, settings in {
            "serves a, b; say which with --endpoint-model": settings_for(many),
            "does not serve org/llava, but tiny; give --endpoint-model": settings_for(one, model="org/llava"),
        }.items():
            with pytest.raises(ModelError, match=words):
                check(settings)
        many.fail(status(404, {"error": {"message": "model 'bb' not found"}}), None, lambda _: True)
        many.models.append({"id": "bbb"})
        with pytest.raises(ModelError, match=r"does not serve the model .*; did you mean bbb\?$"):
            EndpointCaptioner(settings_for(many, endpoint_model="bb"), pictures.locate, 256)
        with ChatServer(models=[{"id": "other"}]) as two, pytest.raises(ModelError, match=r"different.*tiny.*other"):
            check(settings_for(one, two))
        check(settings_for(one))
        assert len(one.trials) == 1


def test_an_endpoint_that_is_another_model_is_refused(pictures: Pictures) -> None:
    """At the start one line names both; what the list of models calls it, and no name at all, are accepted."""
    with ChatServer() as server:
        server.fail(reply(model="evil/huge\x1b[31m"), None, lambda _: True)
        with pytest.raises(ModelError) as caught, opened(pictures, server):
            pass
        words = r"was asked for tiny and answers as another model, evil/huge\x1b[31m; check --endpoint-model"
        assert str(caught.value) == f"{server.url}/v1 {words}"
        assert server.asked == []
    for models, name in (([{"id": "tiny", "root": "org/huge"}], "org/huge"), ([{"id": "tiny"}], None)):
        with ChatServer(models=models) as server:
            server.fail(reply(model=name), None, lambda _: True)
            with opened(pictures, server) as captioner:
                assert len(caption_all(captioner, pictures.items(2))) == 2


def test_an_endpoint_that_becomes_another_model_is_given_up(
    pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had goes to the others without a charge; when none is left, one line ends the run and nothing failed."""
    items = pictures.items(12)
    with ChatServer() as good, ChatServer() as turned:
        with opened(pictures, good, turned) as captioner:
            turned.fail(reply(model="huge"), None)
            assert_right(caption_all(captioner, items), items)
        assert len(turned.asked) >= 1
    assert caplog.text.count("given up: ") == 1
    with ChatServer() as turned, opened(pictures, turned) as captioner:
        turned.fail(reply(model="huge"), None)
        with pytest.raises(ModelError, match=r"no endpoint is left: .* was asked for tiny and answers as another"):
            list(captioner.caption(items))


def test_endpoints_of_other_versions_or_requests_do_not_mix(pictures: Pictures) -> None:
    """The same name is not enough: a second version behind it, or a field that one refuses, ends the start."""
    with ChatServer() as one, ChatServer(models=[{"id": "tiny", "root": "tiny-v2"}]) as two:
        with pytest.raises(ModelError, match="different models"), opened(pictures, one, two):
            pass
        with ChatServer() as three:
            three.fail(status(400, "seed is not supported"), None, lambda asked: "seed" in asked.body)
            with pytest.raises(ModelError, match="different requests"), opened(pictures, one, three):
                pass


def test_keys_are_shown_to_whom_they_belong(monkeypatch: pytest.MonkeyPatch, pictures: Pictures) -> None:
    """A key per position beats the common one; OpenAI's own variable is for OpenAI; none is sent in the clear."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    with ChatServer() as one, ChatServer() as two:
        monkeypatch.setenv("ETL_API_KEY", KEY)
        monkeypatch.setenv("ETL_API_KEY_2", "second")
        with opened(pictures, one, two):
            pass
        assert [s.trials[0].headers["Authorization"] for s in (one, two)] == [f"Bearer {KEY}", "Bearer second"]
    monkeypatch.delenv("ETL_API_KEY")
    found = addresses(settings_for("https://api.openai.com/v1", "https://else.example", "http://10.0.0.1:80/x/v1/"))
    assert [one.base for one in found] == [
        "https://api.openai.com/v1", "https://else.example/v1", "http://10.0.0.1:80/x/v1"
    ]  # fmt: skip
    assert [one.key for one in found] == ["sk-openai", "second", ""]
    assert "sk-openai" not in repr(found)
    monkeypatch.setenv("ETL_API_KEY", KEY)
    with pytest.raises(ConfigError, match=r"unencrypted to 8\.8\.8\.8") as caught:
        addresses(settings_for("http://8.8.8.8/v1"))
    assert KEY not in str(caught.value)
    assert addresses(settings_for("http://8.8.8.8/v1", insecure=True))[0].key == KEY
    monkeypatch.setenv("ETL_API_KEY", "two words\u00e9")
    with pytest.raises(ConfigError, match="ETL_API_KEY holds characters"):
        addresses(settings_for("https://else.example"))


@pytest.mark.parametrize(
    "url", ["https://me:secret@gpu/v1", "https://gpu/v1?key=secret", "gpu:8000", "ftp://gpu", "http://", "http://[gpu"]
)
def test_bad_addresses_are_refused_without_being_shown(url: str) -> None:
    """An address with a secret, or one that is none, is named by its place alone, as errors are kept."""
    with pytest.raises(ConfigError, match="endpoint 2") as caught:
        settings_for("http://gpu", url)
    assert "secret" not in str(caught.value)


def test_a_redirect_is_not_followed(server: ChatServer, monkeypatch: pytest.MonkeyPatch, pictures: Pictures) -> None:
    """An endpoint that sends elsewhere is told of; the other place sees neither picture nor key."""
    monkeypatch.setenv("ETL_API_KEY", KEY)
    with ChatServer() as other:
        server.fail(status(307, "", {"Location": f"{other.url}/v1/chat/completions"}), None, lambda _: True)
        with pytest.raises(ModelError, match=rf"redirects to {other.url}"), opened(pictures, server):
            pass
        assert not other.trials and not other.asked


def test_a_storm_of_429_costs_no_attempt(server: ChatServer, pictures: Pictures) -> None:
    """What is refused for being too much is asked again, not before the time that was named, and with fewer at once."""
    items = pictures.items(30)
    server.delay_s = 0.01
    with opened(pictures, server) as captioner:
        server.fail(status(429, "slow down", {"Retry-After": "1"}), times=FIRST)
        assert_right(caption_all(captioner, items), items)
        assert captioner.samples()[0].slots < FIRST + 2
    assert len(server.asked) == FIRST + len(items)
    first, later = server.asked[0], server.asked[FIRST:]
    assert all(asked.at > first.at + 0.9 for asked in later)
    assert server.most <= FIRST


@pytest.mark.parametrize("code", [429, 503])
def test_busy_endpoints_without_a_time_are_asked_again(server: ChatServer, pictures: Pictures, code: int) -> None:
    """429 and 503 without Retry-After pause a little longer each time, and cost no attempt."""
    items = pictures.items(8)
    with opened(pictures, server) as captioner:
        server.fail(status(code), times=7)
        assert_right(caption_all(captioner, items), items)


class Process:
    """An endpoint in a process of its own, which can be stopped and killed."""

    def __init__(self, port: int = 0, delay_s: float = 0.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.chat_server", str(port), str(delay_s)],
            cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def endless(items: list[CaptionItem], wanted: Callable[[], bool]) -> Iterator[CaptionItem]:
    """Yield the items over and over, each time under new numbers, until enough is done."""
    turn = 0
    while not wanted():
        yield from (dataclasses.replace(item, id=1000 * turn + item.id) for item in items)
        turn += 1


def test_a_killed_endpoint_costs_nothing_and_comes_back(server: ChatServer, pictures: Pictures) -> None:
    """When one of two dies, its items go to the other without a failure; started again it gets its share."""
    items = pictures.items(10)
    server.delay_s = 0.02
    outcomes: Outcomes = {}
    killed_after, deadline = 0, time.monotonic() + 60
    with contextlib.ExitStack() as stack:
        mortal = stack.enter_context(Process(delay_s=0.02))
        captioner = stack.enter_context(opened(pictures, server, mortal.url))

        def enough() -> bool:
            return 0 < killed_after < captioner.samples()[1].captions or time.monotonic() > deadline

        for outcome in captioner.caption(endless(items, enough)):
            assert outcome.id not in outcomes
            outcomes[outcome.id] = outcome
            seen = captioner.samples()[1]
            if seen.captions >= 3 and mortal.process.poll() is None and not killed_after:
                mortal.process.kill()
                mortal.process.wait()
            elif mortal.process.poll() is not None and not killed_after and seen.slots == 0:
                killed_after = seen.captions
                stack.enter_context(Process(mortal.port, 0.02))
        assert 0 < killed_after < captioner.samples()[1].captions
    assert not slugs(outcomes)
    by_number = {item.id: right(item) for item in items}
    assert all(one.text == by_number[one.id % 1000] for one in outcomes.values() if isinstance(one, CaptionResult))


def test_a_hung_endpoint_loses_its_items_to_the_other(
    server: ChatServer, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped takes connections and says nothing: what it had goes to the other, uncharged."""
    monkeypatch.setattr("etl.caption.openai.pool.HEALTH_CHECK_S", 0.3)
    monkeypatch.setattr("etl.caption.openai.endpoint.ASK_S", 0.5)
    items = pictures.items(40)
    with Process(delay_s=0.02) as hung, opened(pictures, server, hung.url) as captioner:
        outcomes: Outcomes = {}
        for outcome in captioner.caption(items):
            outcomes[outcome.id] = outcome
            if captioner.samples()[1].captions >= 2:
                hung.process.send_signal(signal.SIGSTOP)
        assert captioner.samples()[1].slots == 0
        hung.process.send_signal(signal.SIGCONT)
    assert_right(outcomes, items)


def test_an_endpoint_that_is_down_at_the_start_joins_later(server: ChatServer, pictures: Pictures) -> None:
    """One of two that answers is enough to begin; none is a clear line."""
    items = pictures.items(10)
    with Process() as gone:
        port = gone.port
    with pytest.raises(ModelError, match=r"no endpoint can be used: .*no connection.*is the server up"):
        check(settings_for(f"http://127.0.0.1:{port}"))
    with opened(pictures, server, f"http://127.0.0.1:{port}") as captioner:
        assert_right(caption_all(captioner, items), items)
        assert [sample.captions for sample in captioner.samples()] == [10, 0]
        with Process(port):
            wait_for(lambda: captioner.samples()[1].slots > 0, 30)


def test_an_endpoint_that_comes_back_with_another_model_is_given_up(
    server: ChatServer, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    """Restarted with something else, an endpoint gets nothing more; the others go on."""
    items = pictures.items(20)
    with ChatServer() as changed, opened(pictures, server, changed) as captioner:
        changed.fail(reset, None)
        changed.models = [{"id": "other"}]
        outcomes = caption_all(captioner, items)
        wait_for(lambda: "given up" in caplog.text, 30)
        assert_right(outcomes, items)
        assert [sample.slots > 0 for sample in captioner.samples()] == [True, False]


ANSWERS = [
    (half, "endpoint_answer"), (status(200, "{no json"), "endpoint_answer"), (reply(choices=[]), "endpoint_answer"),
    (reply(choices=[{"message": {"content": None}, "finish_reason": "stop"}]), "empty_answer"),
    (status(200, "x" * (5 * 1024 * 1024)), "endpoint_answer"), (hang, "endpoint_timeout"),
]  # fmt: skip


def test_answers_that_are_no_captions_are_charged_and_retried(server: ChatServer, pictures: Pictures) -> None:
    """Half an answer, broken JSON, no choices, no text, far too much and none in time: each fails its own item."""
    items = pictures.items(12)
    with opened(pictures, server, endpoint_concurrency=2, endpoint_timeout=0.5) as captioner:
        for number, (behaviour, _) in enumerate(ANSWERS):
            prompt = items[2 * number].prompt
            server.fail(behaviour, 1, lambda asked, prompt=prompt: asked.prompt == prompt)  # type: ignore[misc]
        outcomes = caption_all(captioner, items)
    failed = {key: one for key, one in outcomes.items() if isinstance(one, ItemFailure)}
    assert {key: one.slug for key, one in failed.items()} == {2 * n + 1: slug for n, (_, slug) in enumerate(ANSWERS)}
    assert all(one.retryable and not one.crashed for one in failed.values())


def test_what_was_broken_off_is_asked_again_uncharged(server: ChatServer, pictures: Pictures) -> None:
    """Half a caption of a server that ends, and errors that come with status 200, are the endpoint's: none is kept."""
    items = pictures.items(6)
    half_a_caption = {"message": {"content": "A pho"}, "finish_reason": "abort"}
    late = [
        reply(choices=[half_a_caption]),
        *(status(200, {"error": {"code": code, "message": "x"}}) for code in (429, 502)),
    ]
    with opened(pictures, server) as captioner:
        for behaviour, item in zip(late, items[::2], strict=True):
            server.fail(behaviour, 1, lambda asked, prompt=item.prompt: asked.prompt == prompt)  # type: ignore[misc]
        assert_right(caption_all(captioner, items), items)
    assert len(server.asked) == 9


def test_what_is_not_ours_is_neither_asked_nor_believed(server: ChatServer, pictures: Pictures) -> None:
    """An answer that comes when another program has taken the port is no caption, and that one is sent nothing more."""
    ours = threading.Event()

    def taken_over(handler: Any, asked: Asked) -> None:
        ours.clear()
        handler.say(200, completion(plain(asked)))

    settings = settings_for(server, endpoint_patience=0.2, endpoint_concurrency=1)
    address = Address(f"{server.url}/v1", is_ours=ours.is_set)
    outcomes: list[CaptionResult | ItemFailure] = []
    for asked in (1, 0):
        ours.set()
        captioner = EndpointCaptioner(settings, pictures.locate, 256, [address])
        server.asked.clear()
        server.fail(taken_over, asked)
        if not asked:
            ours.clear()
        with contextlib.closing(captioner), pytest.raises(ModelError, match="listens there no more"):
            outcomes.extend(captioner.caption(pictures.items(3)))
        assert (outcomes, len(server.asked)) == ([], asked)


def test_what_is_refused_is_final(server: ChatServer, pictures: Pictures) -> None:
    """A bad picture, a prompt that is too long and a refusal each have their class, and are not asked again."""
    items = pictures.items(9)
    long = {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400}
    refusal = reply(choices=[{"message": {"content": None, "refusal": "I can't help."}, "finish_reason": "stop"}])
    cut = reply(choices=[{"message": {"content": "A pho"}, "finish_reason": "content_filter"}])
    wanted = {
        1: (status(400, {"error": {"message": "cannot identify image file"}}), "endpoint_refused"),
        3: (status(400, long), "prompt_too_long"),
        4: (status(413), "endpoint_refused"),
        6: (refusal, "content_filter"),
        7: (cut, "content_filter"),
        8: (status(422, {"error": "image_url: invalid string"}), "endpoint_refused"),
    }
    for number, (behaviour, _) in wanted.items():
        server.fail(behaviour, None, lambda asked, prompt=items[number - 1].prompt: asked.prompt == prompt)  # type: ignore[misc]
    with opened(pictures, server) as captioner:
        outcomes = caption_all(captioner, items)
    failed = {key: one for key, one in outcomes.items() if isinstance(one, ItemFailure)}
    assert {key: one.slug for key, one in failed.items()} == {key: slug for key, (_, slug) in wanted.items()}
    assert not any(one.retryable for one in failed.values())
    assert len(server.asked) == 9
    assert all(isinstance(asked.url, dict) for asked in server.asked), "one picture's refusal changes no other request"


def test_empty_and_cut_captions_are_flagged(server: ChatServer, pictures: Pictures) -> None:
    """The server's reason and its count of tokens are kept; a text without letters is a caption with a flag."""
    items = pictures.items(2)
    server.caption = lambda asked: Words("." if "1" in asked.prompt else "A ship at", 40, "length")
    with opened(pictures, server) as captioner:
        outcomes = caption_all(captioner, items)
    empty, cut = outcomes[1], outcomes[2]
    assert isinstance(empty, CaptionResult) and isinstance(cut, CaptionResult)
    assert (empty.text, empty.flags) == (".", ("empty", "truncated"))
    assert (cut.tokens, cut.finish_reason, cut.flags) == (40, FinishReason.LENGTH, ("empty", "truncated"))


FATAL = [
    (status(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), "does not accept the key"),
    (status(403, {"detail": "Forbidden"}), "does not accept the key"),
    (status(404, {"error": {"message": "The model `tiny` does not exist.", "code": "model_not_found"}}), "not serve"),
    (status(429, {"error": {"message": "x", "code": "insufficient_quota"}}, {"Retry-After": "1"}), "no quota left"),
]


@pytest.mark.parametrize(("behaviour", "words"), FATAL)
def test_what_no_retry_can_cure_ends_the_run(
    server: ChatServer, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, behaviour: Any, words: str
) -> None:
    """A key that is refused, a model that is not there, an empty account: one line, without the key."""
    monkeypatch.setenv("ETL_API_KEY", KEY)
    with opened(pictures, server) as captioner:
        server.fail(behaviour, None)
        with pytest.raises(ModelError, match=words) as caught:
            list(captioner.caption(pictures.items(5)))
    assert server.url in str(caught.value) and KEY not in str(caught.value)
    server.fail(behaviour, None, lambda _: True)
    with pytest.raises(ModelError, match=words), opened(pictures, server):
        pass


def test_patience_ends(server: ChatServer, pictures: Pictures) -> None:
    """When no endpoint captions for longer than the patience, the run ends and says why of each."""
    with ChatServer() as other, opened(pictures, server, other, endpoint_patience=0.5) as captioner:
        for one in (server, other):
            one.fail(status(500, "boom"), None, lambda _: True)
        with pytest.raises(ModelError, match=rf"0\.5 s: {server.url}/v1: HTTP 500: boom; {other.url}"):
            list(captioner.caption(pictures.items(50)))


def test_idle_time_is_no_failure(server: ChatServer, pictures: Pictures) -> None:
    """A failure before a long time with nothing to do does not end the patience with an endpoint that is well."""
    first, *items = pictures.items(30)
    with opened(pictures, server, endpoint_patience=0.3) as captioner:
        server.fail(status(200, "no json"))
        assert slugs(caption_all(captioner, [first])) == {"endpoint_answer": 1}
        time.sleep(0.5)
        server.delay_s = 0.05
        assert_right(caption_all(captioner, items), items)


def test_a_busy_endpoint_is_waited_for_at_the_start(server: ChatServer, pictures: Pictures) -> None:
    """Being asked to wait at the start is no reason to end, within the patience."""
    server.fail(status(429, "slow down", {"Retry-After": "1"}), 1, lambda _: True)
    with opened(pictures, server):
        assert len(server.trials) == 2
    server.fail(status(429, "slow down", {"Retry-After": "900"}), 1, lambda _: True)
    with pytest.raises(ModelError, match=r"no endpoint can be used: .*slow down"), opened(pictures, server):
        pass


def test_a_wait_beyond_all_patience_ends_the_run(server: ChatServer, pictures: Pictures) -> None:
    """An endpoint that asks for a day is not waited for."""
    with opened(pictures, server) as captioner:
        server.fail(status(429, "daily limit", {"Retry-After": "86400"}), None)
        with pytest.raises(ModelError, match=r"asks to wait longer than 600 s: .*daily limit"):
            list(captioner.caption(pictures.items(5)))


@pytest.mark.parametrize("behaviour", [status(500, "boom"), reset])
def test_one_picture_that_breaks_the_endpoint_fails_alone(
    server: ChatServer, pictures: Pictures, behaviour: Any
) -> None:
    """A picture under which the endpoint fails again and again is charged at last; its neighbours are captioned."""
    items = pictures.items(12)
    server.fail(behaviour, None, lambda asked: asked.prompt == items[4].prompt)
    with opened(pictures, server) as captioner:
        outcomes = caption_all(captioner, items)
    assert slugs(outcomes) == {"endpoint_failed": 1}
    failed = outcomes.pop(items[4].id)
    assert isinstance(failed, ItemFailure) and failed.retryable
    assert_right(outcomes, [item for item in items if item is not items[4]])
    assert sum(asked.prompt == items[4].prompt for asked in server.asked) == 3


def test_missing_and_damaged_copies_fail_alone(server: ChatServer, pictures: Pictures) -> None:
    """A working copy that is gone or cut short is not sent, and says nothing about the endpoint."""
    items = pictures.items(8)
    pictures.locate(items[0].working_sha256).unlink()
    for item in items[1:4]:
        pictures.locate(item.working_sha256).write_bytes(b"\xff\xd8\xff but no picture")
    with opened(pictures, server) as captioner:
        outcomes = caption_all(captioner, items)
        assert captioner.samples()[0].slots > 0
    assert slugs(outcomes) == {"working_copy": 4}
    assert len(server.asked) == 4


def test_a_stop_is_obeyed_at_once(server: ChatServer, pictures: Pictures) -> None:
    """With a request that hangs, a stop ends the work within a second or so; late words are not taken for new ones."""
    items = pictures.items(6)
    server.fail(hang, 2)
    stop = threading.Event()
    with opened(pictures, server, endpoint_concurrency=2) as captioner:
        work = captioner.caption(items, should_stop=stop.is_set)
        threading.Timer(0.3, stop.set).start()
        assert list(work) == []
        assert stop.is_set()
        before = len(server.asked)
        assert_right(caption_all(captioner, items), items)
        assert len(server.asked) == before + len(items), "what waited was forgotten"


def test_nothing_at_the_moment_ends_when_all_is_finished(server: ChatServer, pictures: Pictures) -> None:
    """``None`` among the items lets what was pulled be finished, and then ends; nothing more is pulled meanwhile."""
    items = pictures.items(3)
    source = iter([items[0], items[1], None, None, *[None] * 100_000, items[2]])
    with opened(pictures, server) as captioner:
        assert {one.id for one in captioner.caption(source)} == {1, 2}


def test_a_slow_endpoint_gets_less(pictures: Pictures) -> None:
    """Both are kept busy; the one that takes ten times as long captions a small part."""
    items = pictures.items(120)
    with ChatServer(delay_s=0.01) as fast, ChatServer(delay_s=0.2, slots=2) as slow:
        with opened(pictures, fast, slow) as captioner:
            assert_right(caption_all(captioner, items), items)
        assert 0 < slow.captioned < fast.captioned / 2


def test_requests_grow_to_what_an_endpoint_bears(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that does many at once, in as long as one, is sent many, never more than the limit."""
    items, counts, clock = pictures.items(120), [1], [0.0]
    success = ConcurrencyLimit.success

    def timed(limit: ConcurrencyLimit, number: int, under_way: int, _: float) -> None:
        counts.append(under_way)
        clock[0] += 1 / under_way
        success(limit, number, under_way, clock[0])

    monkeypatch.setattr(ConcurrencyLimit, "success", timed)
    with ChatServer(delay_s=0.01) as server, opened(pictures, server, endpoint_concurrency=12) as captioner:
        assert_right(caption_all(captioner, items), items)
    assert 8 <= max(counts) <= 12 and server.most <= 12


def test_what_it_read_is_no_number_of_the_server(server: ChatServer, pictures: Pictures) -> None:
    """Counts that are none become 0, and do not spoil the caption."""
    items = pictures.items(1)
    with opened(pictures, server) as captioner:
        server.fail(reply(usage={"completion_tokens": "many"}))
        [outcome] = captioner.caption(items)
    assert isinstance(outcome, CaptionResult) and outcome.tokens == 0
    assert json.dumps(dataclasses.asdict(outcome))
