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


class Health(Enum):
    """Alive: the host answered.  Failing: it failed as a dead host does.  Unknown: this says nothing about it."""

    ALIVE = auto()
    FAILING = auto()
    UNKNOWN = auto()


def health_of(error: ItemError) -> Health:
    """Return what the error says about whether the host lives.

    An answer below 500 is a sign of life even when its body never came: who breaks off every long body still serves.
    """
    status = error.http_status if isinstance(error, FetchError) else None
    if isinstance(error, TooManyRequestsError | ImageError) or (status is not None and status < 500):
        return Health.ALIVE
    if isinstance(error, TransientFetchError):
        return Health.FAILING
    return Health.ALIVE if isinstance(error, FetchError) and not isinstance(error, _NOT_ASKED) else Health.UNKNOWN


def is_overload(error: ItemError) -> bool:
    """Whether fewer requests at once might have prevented it."""
    if isinstance(error, ServerError):
        return error.http_status in _OVERLOAD_STATUSES
    return isinstance(error, _OVERLOAD)
