"""One request to each host, step by step, against a real server."""

import contextlib
import socket
from dataclasses import replace

import pytest
from huggingface_hub import constants
from support.fault_server import FaultServer, disconnect, hang, status
from support.s3_server import S3Server

from etl.net import probe as module
from etl.net.probe import probe, unreachable
from etl.settings import Settings


def test_one_polite_request_says_how_long_each_step_took(server: FaultServer, settings: Settings) -> None:
    """The first byte of one picture is asked for, once; connection and answer have their seconds, any status counts."""
    found = probe(settings, {"a": server.add("/a.jpg", b"x" * 5000), "b": server.fail("/b.jpg", status(403))})
    assert [request.headers["Range"] for request in server.log] == ["bytes=0-0"] * 2
    assert server.log[0].headers["User-Agent"].startswith("caption-etl/")
    assert (found["a"].status, found["b"].status) == (200, 403)
    assert list(found["a"].steps) == ["DNS", "connect", "first byte"]
    assert all(0 <= seconds < 5 for seconds in found["a"].steps.values())


def test_a_store_is_asked_as_it_is_fetched_from(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed, where the user says that it is, though that may be a private address."""
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.add("/bucket/a+b.jpg", b"x")
        found = probe(replace(settings, allow_host=()), {"s3": "s3://bucket/a+b.jpg", "other": server.base})
    assert (found["s3"].status, found["s3"].error) == (200, "")
    assert list(found["s3"].steps) == ["DNS", "connect", "first byte"]
    assert "not a public address" in found["other"].error


def test_what_fails_is_told_with_how_far_it_came(
    server: FaultServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection, a private address, a silent host: each has its reason, and none keeps the others."""
    monkeypatch.setattr(module, "PROBE_S", 1.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = probe(settings, {
            "refused": f"http://127.0.0.1:{taken.getsockname()[1]}/a.jpg",
            "private": "http://127.0.0.2/a.jpg",
            "silent": server.fail("/hang.jpg", hang),
            "cut": server.fail("/cut.jpg", disconnect),
            "good": server.add("/a.jpg", b"x"),
        })  # fmt: skip
    assert "no connection" in found["refused"].error and "connect" not in found["refused"].steps
    assert "not a public address" in found["private"].error
    assert "no data in time" in found["silent"].error and "connect" in found["silent"].steps
    assert "without an answer" in found["cut"].error
    assert [name for name, reached in found.items() if reached.status is not None] == ["good"]


def test_a_quick_look_asks_for_a_name_and_a_connection(
    server: FaultServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All hosts are looked at side by side within one bound, no request is sent, and behind a proxy nobody is asked."""
    monkeypatch.setattr(module, "LOOK_S", 0.3)

    def addresses(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host == "nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (host, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    with socket.socket() as taken, socket.socket() as full:
        taken.bind(("127.0.0.1", 0))
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as waiting:
            for _ in range(3):
                # What is in nobody's queue gets no answer at all.
                other = waiting.enter_context(socket.socket())
                other.setblocking(False)
                other.connect_ex(full.getsockname())
            urls = {
                "good": server.add("/a.jpg", b"x"),
                "refused": f"http://127.0.0.1:{taken.getsockname()[1]}/a.jpg",
                "silent": f"http://127.0.0.1:{full.getsockname()[1]}/a.jpg",
                "misspelt": "https://nowhere.example/a.jpg",
                "s3://here": "s3://bucket/a.jpg",
                "hf://datasets": "hf://datasets/o/n/a.jpg",
            }
            monkeypatch.setattr(constants, "ENDPOINT", server.base)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.base + "/{repo_id}/{filename}")
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
            monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            found = {host: str(error) for host, error in unreachable(settings, urls).items()}
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
            assert unreachable(settings, urls) == {}
    assert found.keys() == {"refused", "silent", "misspelt", "s3://here"}
    assert found["refused"].startswith("no connection") and found["silent"] == "no connection within 0.3 s"
    assert found["misspelt"] == "the name nowhere.example cannot be resolved (no such name)"
    assert not server.log
