"""What the program makes at each start, made once in a test process, which is the program some thousand times."""

import functools
import os
from ssl import SSLContext
from typing import Any

import httpx2
import typer.main


def make_once() -> None:
    """From now on build the command line (14 ms) and read the authorities' certificates (23 ms) only once."""
    typer.main.get_command = functools.cache(typer.main.get_command)
    read = httpx2.create_ssl_context

    @functools.cache
    def context_of(*_places: str | None, **options: Any) -> SSLContext:
        return read(**options)

    def create_ssl_context(**options: Any) -> SSLContext:
        return context_of(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"), **options)

    for module in (httpx2, httpx2._transports.default):
        vars(module)["create_ssl_context"] = create_ssl_context
