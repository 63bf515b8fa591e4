"""What a server says beside a status: the first words of the body that comes with a refusal."""

import asyncio
import re
from contextlib import aclosing, suppress
from http.client import responses
from urllib.parse import parse_qsl

import httpcore2

from etl.images.sniff import first_words
from etl.net.connections import Answer
from etl.redaction import redact_text

MAX_BYTES = 8192
"""Of the body, beyond which nothing is read."""

MAX_S = 1.0
"""Longest wait for it."""

_SECRET_CHARS = 4
"""A value of a query that is shorter tells nothing, and may be part of any word."""


async def beginning_of(answer: Answer) -> bytes:
    """Return the first bytes of a body that nobody needs whole.

    One that is read to its end leaves its connection to the next request; another one must be closed, as ever.
    """
    if answer.beginning is None:
        head = bytearray()
        with suppress(TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
            async with asyncio.timeout(MAX_S), aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    head += chunk
                    if len(head) >= MAX_BYTES:
                        break
        answer.beginning = bytes(head[:MAX_BYTES])
    return answer.beginning


async def at_most(answer: Answer, most: int) -> bytes:
    """Return the first bytes of a small body, at most so many."""
    begun = bytearray()
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            begun += chunk
            if len(begun) >= most:
                break
    return bytes(begun[:most])


def words_of(answer: Answer, body: bytes) -> str:
    """Return what a refusal says: the first words of its body, one clean line without what is secret in the URL.

    Empty where that is nothing, or no more than the status.
    """
    words = redact_text(first_words(body))
    for _, value in parse_qsl(answer.target.url.target.partition(b"?")[2].decode("ascii", "replace")):
        if len(value) >= _SECRET_CHARS:
            words = words.replace(value, "...")
    return f'says "{words}"' if _is_news(words, answer.status) else ""


def _is_news(words: str, status: int) -> bool:
    """Return whether the words say more than the status does."""
    known = {"http", "status", "error", "code", *responses.get(status, "").lower().split()}
    return bool({*re.findall(r"[^\W\d]+", words.lower())} - known)
