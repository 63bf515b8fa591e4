"""Who may be dialled: public addresses, and what the operator allows.

The check sits where connections are opened, so it covers every redirect hop, and the address that was checked is the
one that is dialled: a name that changes its address between check and connection (DNS rebinding) gains nothing.
TLS is not affected, because the HTTP library takes the server name from the URL and not from the dialled address.
"""

import asyncio
import ipaddress
import time
from collections.abc import Iterable, Sequence

import httpcore2

from etl.errors import BlockedAddressError, ConnectError
from etl.net.names import Address, Names
from etl.net.stream import SocketOption, TcpBackend

MAX_ADDRESSES = 4
"""Addresses of one host that are tried in turn before the connection counts as failed."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The only IPv6 space that IANA gives out for public hosts (iana.org, IPv6 Global Unicast Address Assignments)."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are the IPv4 address that the translator dials."""

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # RFC 6890, protocol assignments; `ipaddress` calls parts of it global
        "192.88.99.0/24",  # RFC 7526, the withdrawn 6to4 relays
        "168.63.129.16/32",  # Azure's platform of each virtual machine, which hands out its credentials
        "3fff::/20",  # RFC 9637, documentation; unknown to `ipaddress` before 3.13
    )
)

_ISATAP = (0x00005EFE, 0x02005EFE)
"""RFC 5214: an IPv6 address whose third 32 bits are one of these ends in the IPv4 address that is dialled."""


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine itself, which no proxy can reach for us."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith(".localhost")


def is_public(ip: str | Address) -> bool:
    """Whether the address belongs to the public internet, whatever IPv4 address it may carry inside included.

    Stricter than ``ipaddress.is_global``, which takes multicast, NAT64 and 6to4 forms of 127.0.0.1 and other
    reserved space for global.  Raises `ValueError` for text that is no address.
    """
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded_ipv4(address)
        if any(not is_public(each) for each in inner):
            return False
        if address.ipv4_mapped or address in _NAT64:
            return True
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    number = int(address)
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (number >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return [each for each in found if each is not None]


class AllowList:
    """The hosts that may be private: ``name``, ``ip``, ``name:port``, ``ip:port`` or ``[ipv6]:port``, exact.

    An IP entry allows the address under any name; a name entry allows whatever the name resolves to.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = {_entry(text) for text in entries}

    def covers(self, host: str, port: int, address: Address) -> bool:
        """Whether ``address``, found under the name ``host``, may be dialled although it is not public."""
        names = (_normal_host(host), str(address))
        return any((name, wanted) in self._entries for name in names for wanted in (None, port))


def _entry(text: str) -> tuple[str, int | None]:
    text = text.strip()
    bracketed = text.startswith("[")
    if text.count(":") > 1 and not bracketed:
        return _normal_host(text), None
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and not (bracketed and not host.endswith("]")):
        return _normal_host(host), int(port)
    return _normal_host(text), None


def _normal_host(host: str) -> str:
    host = host.strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens TCP connections to public or allowed addresses only.

    Raises `DnsError` when the name cannot be resolved, `BlockedAddressError` when any of its addresses must not be
    dialled (a name with one private address is not to be trusted with the others), httpcore2's own errors otherwise.
    """

    def __init__(self, allow_host: Iterable[str] = (), names: Names | None = None) -> None:
        self._allowed = AllowList(allow_host)
        self._names = names or Names()
        self._inner = TcpBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve once, check every address, dial the checked ones in turn within ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        addresses = await self._names.addresses(host, timeout)
        self._check(host, port, addresses)
        addresses = addresses[:MAX_ADDRESSES]
        failure: Exception = ConnectError(f"{host} has no address")
        for index, address in enumerate(addresses):
            # A share of the time that is left, so that a first address that never answers leaves some to the next.
            share = None if deadline is None else max(0.0, deadline - time.monotonic()) / (len(addresses) - index)
            try:
                return await self._inner.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002 -- the signature is httpcore2's
        socket_options: Iterable[SocketOption] | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: no URL leads to a Unix socket."""
        raise BlockedAddressError(f"Unix sockets are not dialled ({path})")

    async def sleep(self, seconds: float) -> None:
        """Wait; httpcore2 uses it between its own retries."""
        await asyncio.sleep(seconds)

    def _check(self, host: str, port: int, addresses: Sequence[Address]) -> None:
        for address in addresses:
            if not is_public(address) and not self._allowed.covers(host, port, address):
                named = f"{host} is {address}, which" if _normal_host(host) != str(address) else f"{address}"
                raise BlockedAddressError(f"{named} is not a public address (--allow-host {host} would allow it)")
