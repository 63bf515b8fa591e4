"""What travels between the driver of a fetch and its nodes: plain values, of which any version can be unpickled.

An error crosses as its class's name and what it knows, and comes out as the same class: a host that is in trouble, a
picture that is broken and a disk that is full mean the same wherever they were met.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etl.errors import EtlError, FetchError, InternalError, ItemError, item_error_classes

Fields = dict[str, Any]


class NodeFaultError(EtlError):
    """What failed is the node, not what it was given: its disk is full, or it cannot start a decoder."""


def error_fields(error: EtlError) -> Fields:
    """Return an error as plain values."""
    if not isinstance(error, ItemError):
        return {"class": "", "message": str(error)}
    return {
        "class": type(error).__name__, "message": str(error), "retry_after_s": error.retry_after_s,
        **({"http_status": error.http_status, "begun": error.begun} if isinstance(error, FetchError) else {}),
    }  # fmt: skip


def error_of(fields: Mapping[str, Any]) -> EtlError:
    """Return the error that `error_fields` was given; a `NodeFaultError` in place of one that is no item's."""
    if not fields["class"]:
        return NodeFaultError(fields["message"])
    cls = next((cls for cls in item_error_classes() if cls.__name__ == fields["class"]), InternalError)
    error = cls(fields["message"], retry_after_s=fields["retry_after_s"])
    if isinstance(error, FetchError):
        error.http_status, error.begun = fields["http_status"], fields["begun"]
    return error


def plain(value: Any) -> Fields | None:
    """Return a dataclass as plain values; ``None`` stays."""
    return None if value is None else dataclasses.asdict(value)
