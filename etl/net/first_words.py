"""What a server says beside a status: the first words of the body that comes with a refusal."""

import asyncio
import re
from contextlib import aclosing, suppress
from http.client import responses
from typing import cast
from urllib.parse import parse_qsl

import httpx2

from etl.images.sniff import first_words
from etl.redaction import redact_text

MAX_BYTES = 8192
"""Of the body, beyond which nothing is read."""

MAX_S = 1.0
"""Longest wait for it."""

_READ = "etl.beginning"
"""Where it is kept for who asks for it again."""

_SECRET_CHARS = 4
"""A value of a query that is shorter tells nothing, and may be part of any word."""


async def beginning_of(response: httpx2.Response) -> bytes:
    """Return the first bytes of a body that nobody needs whole.

    One that is read to its end leaves its connection to the next request; another one must be closed, as ever.
    """
    if _READ in response.extensions:
        return cast(bytes, response.extensions[_READ])
    head = bytearray()
    with suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(MAX_S), aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                head += chunk
                if len(head) >= MAX_BYTES:
                    break
    response.extensions[_READ] = bytes(head[:MAX_BYTES])
    return bytes(head[:MAX_BYTES])


async def at_most(response: httpx2.Response, most: int) -> bytes:
    """Return the first bytes of a small body, at most so many."""
    begun = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            begun += chunk
            if len(begun) >= most:
                break
    return bytes(begun[:most])


def words_of(response: httpx2.Response, body: bytes) -> str:
    """Return what a refusal says: the first words of its body, one clean line without what is secret in the URL.

    Empty where that is nothing, or no more than the status.
    """
    words = redact_text(first_words(body))
    for _, value in parse_qsl(response.url.query.decode("ascii", "replace")):
        if len(value) >= _SECRET_CHARS:
            words = words.replace(value, "...")
    return f'says "{words}"' if _is_news(words, response.status_code) else ""


def _is_news(words: str, status: int) -> bool:
    """Return whether the words say more than the status does."""
    known = {"http", "status", "error", "code", *responses.get(status, "").lower().split()}
    return bool({*re.findall(r"[^\W\d]+", words.lower())} - known)
