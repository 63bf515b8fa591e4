"""Going on with a broken download: asked for right, checked, and never trusted too far."""

import asyncio
import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fault_cases import RESTS, Case
from support.fault_server import Behaviour, Exchange, FaultServer, ranged, status

from etl.errors import ClientStatusError, EtlError, ProtocolError, TransientFetchError
from etl.net import resume
from etl.net.client import Download, Downloader, Validators
from etl.settings import Settings

BODY = random.Random(4).randbytes(400_000)
HALF = len(BODY) // 2
ETAG = f'"{hashlib.sha256(BODY).hexdigest()[:16]}"'


def break_at(end: int, **headers: str) -> Behaviour:
    """Announce the whole body and reset the connection behind byte ``end``."""

    def behave(exchange: Exchange) -> None:
        length = str(len(exchange.resource.body))
        exchange.head(200, {"Content-Length": length, "ETag": exchange.resource.etag} | headers)
        exchange.send(exchange.resource.body[:end])
        exchange.close()

    return behave


Get = Callable[[], Download | EtlError]


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "a.part"


@pytest.fixture
def get(server: FaultServer, settings: Settings, part: Path) -> Get:
    """Return a function that downloads /a once and returns the result or the error."""
    server.add("/a", BODY)

    async def go() -> Download | EtlError:
        async with asyncio.timeout(8), Downloader(dataclasses.replace(settings, max_bytes=10**6)) as downloader:
            try:
                return await downloader.download(server.url("/a"), part)
            except EtlError as error:
                return error

    return lambda: asyncio.run(go())


def test_only_the_rest_is_asked_for_and_the_whole_is_hashed(server: FaultServer, part: Path, get: Get) -> None:
    """After a break the next attempt gets the missing bytes alone; hash, size and file are the whole file's."""
    server.fail("/a", break_at(HALF), times=1)
    server.fail("/a", break_at(HALF), times=1)
    assert isinstance(get(), TransientFetchError)
    assert part.stat().st_size == HALF
    server.fail("/a", ranged)
    download = get()
    assert isinstance(download, Download)
    assert (download.size, download.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert part.read_bytes() == BODY
    last = server.log[-1].headers
    assert (last["Range"], last["If-Range"]) == (f"bytes={HALF}-", ETAG)
    assert [path.name for path in part.parent.iterdir()] == ["a.part"]


def test_a_file_that_has_changed_is_taken_whole(server: FaultServer, part: Path, get: Get) -> None:
    """When the server's file is another by now, its new version is downloaded from the start."""
    server.fail("/a", break_at(HALF), times=1)
    assert isinstance(get(), TransientFetchError)
    new = BODY[::-1]
    server.heal()
    server.add("/a", new)
    server.fail("/a", ranged)
    download = get()
    assert isinstance(download, Download)
    assert download.sha256 == hashlib.sha256(new).hexdigest()
    assert part.read_bytes() == new


@pytest.mark.parametrize("case", RESTS, ids=lambda case: case.name)
def test_each_answer_to_a_request_for_the_rest_has_its_consequence(
    server: FaultServer, part: Path, get: Get, case: Case
) -> None:
    """What is not the rest that was asked for ends the attempt and the part; the next attempt succeeds anyway."""
    server.fail("/a", break_at(HALF), times=1)
    assert isinstance(get(), TransientFetchError)
    server.fail("/a", case.behaviour, times=1)
    second = get()
    assert server.log[-1].headers["Range"] == f"bytes={HALF}-"
    if case.slug is None:
        assert isinstance(second, Download)
    else:
        assert isinstance(second, TransientFetchError)
        assert second.slug == case.slug
        assert part.exists() == (case.slug == "truncated")
        server.fail("/a", ranged)
        assert isinstance(get(), Download)
    assert part.read_bytes() == BODY
    assert [path.name for path in part.parent.iterdir()] == ["a.part"]


def test_a_rest_of_another_version_is_refused(server: FaultServer, part: Path, get: Get) -> None:
    """A server that ignores If-Range and sends the rest of its new file gives itself away by the ETag."""

    def heedless(exchange: Exchange) -> None:
        body = exchange.resource.body[::-1]
        span = f"bytes {HALF}-{len(body) - 1}/{len(body)}"
        exchange.head(206, {"Content-Length": str(len(body) - HALF), "Content-Range": span, "ETag": '"another"'})
        exchange.send(body[HALF:])

    server.fail("/a", break_at(HALF), times=1)
    assert isinstance(get(), TransientFetchError)
    server.fail("/a", heedless, times=1)
    assert isinstance(get(), ProtocolError)
    server.heal()
    assert isinstance(get(), Download)
    assert part.read_bytes() == BODY


def test_a_rest_that_breaks_again_goes_on_from_there(server: FaultServer, part: Path, get: Get) -> None:
    """Each break keeps what came; the third attempt asks behind the second's bytes."""
    server.fail("/a", break_at(HALF), times=1)
    assert isinstance(get(), TransientFetchError)
    server.fail("/a", lambda exchange: ranged(exchange, cut=70_000), times=1)
    assert isinstance(get(), TransientFetchError)
    assert part.stat().st_size == HALF + 70_000
    server.fail("/a", ranged)
    assert isinstance(get(), Download)
    assert part.read_bytes() == BODY


@pytest.mark.parametrize(
    "headers",
    [{"ETag": 'W/"weak"'}, {"ETag": ""}, {"Accept-Ranges": "none"}],
    ids=["weak validator", "no validator", "no ranges"],
)
def test_what_cannot_be_resumed_begins_anew(server: FaultServer, part: Path, get: Get, headers: dict[str, str]) -> None:
    """Without a strong validator, or where ranges are refused, the whole file is asked for again."""
    server.fail("/a", break_at(HALF, **headers), times=1)
    assert isinstance(get(), TransientFetchError)
    assert resume.rest_of(part) is None
    server.fail("/a", ranged)
    assert isinstance(get(), Download)
    assert "Range" not in server.log[-1].headers
    assert part.read_bytes() == BODY


def test_a_part_from_before_a_restart_of_the_machine_is_not_trusted(server: FaultServer, part: Path, get: Get) -> None:
    """After a power cut a part may hold zeros where bytes were: it is downloaded anew."""
    server.fail("/a", break_at(HALF), times=1)
    assert isinstance(get(), TransientFetchError)
    note = part.with_name("a.part.note")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"boot": "another"}))
    part.write_bytes(bytes(HALF))
    server.fail("/a", ranged)
    assert isinstance(get(), Download)
    assert part.read_bytes() == BODY


@pytest.mark.parametrize("text", ["", "{", "[]", '{"validator": 1}'], ids=["empty", "cut", "list", "incomplete"])
def test_a_damaged_note_counts_as_none(part: Path, text: str) -> None:
    """Whatever is wrong with a note, the part just begins anew."""
    part.write_bytes(b"x" * 10)
    part.with_name("a.part.note").write_text(text)
    assert resume.rest_of(part) is None


def test_a_final_error_leaves_nothing(server: FaultServer, part: Path, get: Get) -> None:
    """Once the file is gone from the server, its part and its note are gone too."""
    server.fail("/a", break_at(HALF), times=1)
    assert isinstance(get(), TransientFetchError)
    server.fail("/a", status(404))
    assert isinstance(get(), EtlError)
    assert list(part.parent.iterdir()) == []


def test_a_range_that_nobody_asked_for_is_an_error(server: FaultServer, get: Get) -> None:
    """A 206 in answer to a whole request is no success."""

    def unasked(exchange: Exchange) -> None:
        exchange.head(206, {"Content-Length": "3", "Content-Range": f"bytes 0-2/{len(BODY)}"})
        exchange.send(b"abc")

    server.fail("/a", unasked)
    assert isinstance(get(), ClientStatusError)


@pytest.mark.parametrize(
    "odd",
    [{"validator": 5}, {"validator": None}, {"validator": "\u00e9"}, {"validator": "a\r\nb: c"}, {"total": 1e999},
     {"total": True}, {"total": "9"}],
)  # fmt: skip
def test_notes_that_cannot_be_used_are_none(tmp_path: Path, odd: dict[str, object]) -> None:
    """A note with a value of another kind is no note: the part begins anew instead of failing for ever."""
    part = tmp_path / "a.part"
    part.write_bytes(b"x" * 70_000)
    note = {"validator": ETAG, "total": 80_000, "boot": resume._boot()}
    Path(resume._note(part)).write_text(json.dumps(note))
    assert resume.rest_of(part) == resume.Rest(ETAG, 80_000, 70_000)
    Path(resume._note(part)).write_text(json.dumps(note | odd))
    assert resume.rest_of(part) is None
    Path(resume._note(part)).write_text("[" * 100_000)
    assert resume.rest_of(part) is None


@pytest.mark.parametrize("name", ["etag", "last-modified"])
def test_validators_that_cannot_be_sent_are_left_out(tmp_path: Path, name: str) -> None:
    """A version that is not ASCII, or long enough to be refused, is not noted and not sent: requests would fail."""
    part = tmp_path / "a.part"
    for value in ('"\u00e9"', '"' + "x" * 2000 + '"'):
        resume.take_note(part, {name: value, "content-length": "100000"})
        assert not Path(resume._note(part)).exists()
        assert Validators(value, None).headers == Validators(None, value).headers == {}
    assert Validators(ETAG, None).headers == {"If-None-Match": ETAG}
