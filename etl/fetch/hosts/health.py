"""What a failed request says about the host that was asked."""

from enum import Enum, auto

from etl.errors import (
    BlockedAddressError,
    BrokenConnectionError,
    ConnectError,
    FetchError,
    FetchTimeoutError,
    HostDownError,
    ImageError,
    InvalidUrlError,
    ItemError,
    LocalFileError,
    RobotsError,
    ServerError,
    TooManyRequestsError,
    TransientFetchError,
)

_OVERLOAD = (TooManyRequestsError, FetchTimeoutError, BrokenConnectionError, ConnectError)

_OVERLOAD_STATUSES = (408, 503, 504)

_NOT_ASKED = (RobotsError, HostDownError, InvalidUrlError, BlockedAddressError, LocalFileError)
"""The host was not asked, so they say nothing about it."""


class Sign(Enum):
    """Alive: the host answered.  Trouble: it failed as a dead host does.  None: nothing is known from this."""

    ALIVE = auto()
    TROUBLE = auto()
    NONE = auto()


def sign_of(error: ItemError) -> Sign:
    """Return what the error says about whether the host lives.

    An answer below 500 is a sign of life even when its body never came: who breaks off every long body still serves.
    """
    status = error.http_status if isinstance(error, FetchError) else None
    if isinstance(error, TooManyRequestsError | ImageError) or (status is not None and status < 500):
        return Sign.ALIVE
    if isinstance(error, TransientFetchError):
        return Sign.TROUBLE
    return Sign.ALIVE if isinstance(error, FetchError) and not isinstance(error, _NOT_ASKED) else Sign.NONE


def is_overload(error: ItemError) -> bool:
    """Whether fewer requests at once might have prevented it."""
    if isinstance(error, ServerError):
        return error.http_status in _OVERLOAD_STATUSES
    return isinstance(error, _OVERLOAD)
