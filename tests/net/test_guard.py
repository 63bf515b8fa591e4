"""Which addresses count as public, and that only those are dialled."""

import asyncio
import ipaddress
import socket
from typing import Any

import httpcore2
import pytest
from support.fault_server import FaultServer

from etl.errors import BlockedAddressError, DnsError, InvalidUrlError
from etl.net.address_guard import AllowList, GuardedBackend, is_public

PRIVATE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001:db8::1",
    "2001:10::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001:0:808:808:0:0:80ff:fffe",
    "2606:4700::5efe:7f00:1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "2606:4700::1111",
    "2a00:1450:4001:82b::200e",
    "2620:4f:8000::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_special_addresses_are_not_public(address: str) -> None:
    """Private, reserved and multicast space is refused, also when an IPv6 form carries it inside."""
    assert not is_public(address)
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_ordinary_addresses_are_public(address: str) -> None:
    """Public addresses pass, in their translated forms too."""
    assert is_public(address)


@pytest.mark.parametrize(
    ("entry", "host", "port", "address", "covered"),
    [
        ("127.0.0.1", "127.0.0.1", 80, "127.0.0.1", True),
        ("127.0.0.1", "any.example", 80, "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", 80, "127.0.0.2", False),
        ("127.0.0.1:8080", "127.0.0.1", 8080, "127.0.0.1", True),
        ("127.0.0.1:8080", "127.0.0.1", 80, "127.0.0.1", False),
        ("NAS.local.", "nas.local", 80, "10.0.0.5", True),
        ("nas.local", "nas.local.", 80, "10.0.0.5", True),
        ("nas.local", "evil.nas.local", 80, "10.0.0.5", False),
        ("nas.local:8443", "nas.local", 80, "10.0.0.5", False),
        ("::1", "::1", 80, "::1", True),
        ("[::1]", "::1", 80, "::1", True),
        ("[0:0::1]:81", "::1", 81, "::1", True),
        ("[::1]:81", "::1", 80, "::1", False),
    ],
)
def test_the_allow_list_is_exact(entry: str, host: str, port: int, address: str, covered: bool) -> None:
    """An entry covers its own name or address and, when it names one, its own port; nothing near it."""
    assert AllowList([entry]).covers(host, port, ipaddress.ip_address(address)) is covered


class FakeDns:
    """Answers `getaddrinfo` from a list and records what was asked; connections stay real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            ipaddress.ip_address(host)
        except (ValueError, TypeError):
            self.asked.append(host)
            found = self.answers.pop(0)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]
        return self._real(host, port, *args, **kwargs)


def _connect(host: str, port: int, *, allow: tuple[str, ...] = (), timeout: float = 2.0) -> tuple[str, int]:
    async def go() -> tuple[str, int]:
        stream = await GuardedBackend(allow).connect_tcp(host, port, timeout=timeout)
        address = stream.get_extra_info("server_addr")
        await stream.aclose()
        return str(address[0]), int(address[1])

    return asyncio.run(go())


def test_a_rebinding_name_is_resolved_once(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was checked is the one that is dialled: a second, different answer is never asked for."""
    dns = FakeDns(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    assert _connect("rebind.example", server.port, allow=("127.0.0.1",)) == ("127.0.0.1", server.port)
    assert dns.asked == ["rebind.example"]


def test_one_private_address_blocks_the_name(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with an allowed and a private address is refused before anything is dialled."""
    FakeDns(monkeypatch, ["127.0.0.1", "10.0.0.1"])
    with pytest.raises(BlockedAddressError, match=r"mixed\.example is 10\.0\.0\.1"):
        _connect("mixed.example", server.port, allow=("127.0.0.1",))
    assert not server.log


def test_the_next_address_is_tried_when_one_does_not_answer(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that refuses does not fail a host that has another."""
    FakeDns(monkeypatch, ["127.0.0.3", "127.0.0.1"])
    assert _connect("two.example", server.port, allow=("two.example",))[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1", "2130706433", "0", "::1", "::ffff:7f00:1"])
def test_every_spelling_of_loopback_is_blocked(server: FaultServer, host: str) -> None:
    """Short, hexadecimal and decimal forms lead to the same refusal as the address itself."""
    with pytest.raises(BlockedAddressError, match="not a public address"):
        _connect(host, server.port)
    assert not server.log


def test_a_name_without_address_is_a_dns_error() -> None:
    """A name that does not resolve is retryable and named."""
    with pytest.raises(DnsError, match=r"nowhere\.invalid"):
        _connect("nowhere.invalid", 80)


def test_an_impossible_name_is_an_invalid_url() -> None:
    """A label that no resolver takes is the URL's fault, not the network's."""
    with pytest.raises(InvalidUrlError):
        _connect("a" * 64 + ".example", 80)


def test_refused_connections_stay_the_library_s_error() -> None:
    """The guard does not change what a closed port looks like."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(httpcore2.ConnectError):
            _connect("127.0.0.1", closed.getsockname()[1], allow=("127.0.0.1",))


def test_unix_sockets_are_refused() -> None:
    """No way leads to a Unix socket."""
    with pytest.raises(BlockedAddressError):
        asyncio.run(GuardedBackend().connect_unix_socket("/run/docker.sock"))
