"""Reading no more often than it is worth: answers that are kept until they may have changed."""

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

SHARE = 0.01
"""A reading that takes 20 ms is done every two seconds at most: a hundredth of a core for each kind of reading."""


class Throttled(Generic[T]):
    """One kind of reading; it is repeated when what it hangs on has changed, and never too often."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: T | None = None
        self._due = 0.0

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return what ``read`` gives, or gave last, when ``key`` is the same or it would be too early to ask."""
        now = time.monotonic()
        if self._value is None or (key != self._key and now >= self._due):
            self._value = read()
            took = time.monotonic() - now
            self._key, self._due = key, now + took / SHARE
        return self._value
