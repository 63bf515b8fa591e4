"""Where the endpoints are, and who may be shown which key.

Keys come from the environment alone and never leave this process but in the ``Authorization`` header: settings, the
database, logs and errors hold addresses only.
"""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from etl.errors import ConfigError, ModelError
from etl.net.address_guard import is_loopback, is_public
from etl.settings import Settings

KEY = "ETL_API_KEY"
"""The key of all endpoints; with ``_1``, ``_2`` and so on behind it that of the first, the second."""

OPENAI_KEY, OPENAI_HOST = "OPENAI_API_KEY", "api.openai.com"
"""The variable that OpenAI's own programs read; it may be set for those, so no other host is shown it."""


@dataclass(frozen=True)
class Address:
    """One endpoint.

    Attributes:
        base: up to and with ``/v1``, without a slash at the end.
        key: what it is shown; empty for none.
        direct: whether it is reached without the environment's proxy, being on this machine or network.
        is_ours: whether what listens there may be asked, and what it has answered be believed, at this moment.
    """

    base: str
    key: str = field(default="", repr=False)
    direct: bool = False
    is_ours: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)


def addresses(settings: Settings, environment: Mapping[str, str] | None = None) -> list[Address]:
    """Return the endpoints of the settings with their keys.

    Raises `ConfigError` when there are none or a key would be sent in the clear, `ModelError` for an unknown host.
    """
    if not settings.endpoint:
        raise ConfigError("--backend openai needs --endpoint, such as --endpoint http://localhost:8000/v1")
    environment = os.environ if environment is None else environment
    return [
        _address(url, _key(environment, number, urlsplit(url).hostname or ""), insecure=settings.insecure)
        for number, url in enumerate(settings.endpoint, start=1)
    ]


def _address(url: str, key: str, *, insecure: bool) -> Address:
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    base = f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
    if parts.scheme == "https":
        return Address(base, key, direct=is_loopback(parts.hostname or ""))
    private = _is_private(parts.hostname or "", parts.port or 80)
    if key and not private and not insecure:
        raise ConfigError(
            f"the key would be sent unencrypted to {parts.hostname}, which is not on this machine or a private "
            "network; use https, or --insecure if that is meant"
        )
    return Address(base, key, direct=private)


def _key(environment: Mapping[str, str], number: int, host: str) -> str:
    names = [f"{KEY}_{number}", KEY, *([OPENAI_KEY] if host == OPENAI_HOST else [])]
    name = next((name for name in names if environment.get(name, "").strip()), None)
    if name is None:
        return ""
    key = environment[name].strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{name} holds characters that no key has; set it again")
    return key


def _is_private(host: str, port: int) -> bool:
    """Return whether all addresses of the host are loopback or private ones."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise ModelError(f"the endpoint's host {host} cannot be resolved; check --endpoint") from error
    return not any(is_public(address.partition("%")[0]) for address in found)
