"""Named places where the project's own tests make a process die, fail or wait: between fsync, rename and commit.

    ETL_FAILPOINTS="cache.before_rename=kill@3,export.row.before_commit=error:ENOSPC"

does so at the third passing of the one and the first of the other.  ``@3+`` means the third and all after it.  Every
process counts its own passings; child processes inherit the variable.

| action | what happens |
|---|---|
| ``kill`` | SIGKILL to the process that passes |
| ``error:NAME`` | an `OSError` with that ``errno``, such as ENOSPC or EIO |
| ``sleep:SECONDS`` | a wait |

The variable is read once, when this module is imported; without it `failpoint` is a function that does nothing.
"""

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from etl.errors import UsageError

VARIABLE = "ETL_FAILPOINTS"

_STEPS = {
    "cache.prepared": "The directories of the cache are there and last.",
    "cache.before_fsync": "A finished file has its content, which may not be on the disk yet.",
    "cache.before_rename": "Its content is on the disk, under the name of a part.",
    "cache.renamed": "It has its own name, which may not be on the disk yet.",
    "cache.synced": "Its name is on the disk too; the database does not know of it.",
    "cache.before_remove": "A file is about to be removed that the database no longer counts on.",
    "part.before_note": "A body begins to come; what the server says of it is about to be noted.",
    "part.noted": "The note is written; there is no part yet.",
    "part.before_write": "Bytes of a body have come and are about to be written to its part.",
    "part.closed": "A part has all that came, whole or broken off.",
    "part.before_forget": "A part, or only its note, is no longer needed and about to be removed.",
    "export.begun": "The part of an export was made and is empty.",
    "export.before_fsync": "All lines are written to the part, which may not be on the disk yet.",
    "export.before_rename": "The part is on the disk; the old export is still there.",
    "export.renamed": "The export has its name, which may not be on the disk yet.",
    "export.synced": "The export is there for good; the database does not know of it.",
    "schema.before_migrations": "A database without the newest tables is about to get them.",
    "schema.before_commit": "The statements of one migration were run, not committed.",
    "schema.migrated": "All migrations were committed; the version number is still the old one.",
    "schema.versioned": "The version number is the new one.",
}

_COMMITS = {
    "recover": "what dead runs held",
    "run.begin": "the beginning of a run",
    "run.heartbeat": "a heartbeat",
    "run.end": "the end of a run",
    "run.engine_sample": "a sample of the caption engine",
    "run.gpu_sample": "a sample of a GPU",
    "command.answer": "the answer to a command of another process",
    "ingest.begin": "a new generation of a manifest",
    "ingest.batch": "a batch of records and the place in the manifest behind it",
    "ingest.finish": "that a manifest was read to its end",
    "ingest.reselect": "another selection of records",
    "fetch.refresh": "that fetched sources are to be asked for again",
    "fetch.claim": "leases of sources",
    "fetch.commit": "fetched sources and their images",
    "fetch.fail": "failed attempts to fetch",
    "fetch.postpone": "sources put back until later",
    "fetch.release": "sources put back",
    "fetch.release_all": "all sources of a run put back",
    "fetch.give_up": "the sources of a host that was given up",
    "fetch.hosts": "how hosts fare",
    "caption.recipe": "the current recipe",
    "caption.enqueue": "captions that have become possible",
    "caption.claim": "leases of captions",
    "caption.commit": "finished captions",
    "caption.fail": "failed attempts to caption",
    "caption.lose": "captions that wait for a picture which was lost, and that it is to be fetched again",
    "caption.release_all": "all captions of a run put back",
    "images.evict": "images that leave the cache",
    "images.drop_originals": "originals that are gone",
    "images.revive": "captions that get another chance, because their picture is there",
    "images.requeue": "pictures that were lost and must be fetched again",
    "retry.dead": "dead items that get another chance",
    "retry.again": "captions that are to be made again",
    "export.row": "what was exported",
}


def _registry() -> dict[str, str]:
    known = dict(_STEPS)
    for name, what in _COMMITS.items():
        known[f"{name}.before_commit"] = f"A transaction has written {what}; it is not committed."
        known[f"{name}.committed"] = f"A transaction has committed {what}; nobody was told."
    return known


FAILPOINTS = _registry()
"""Every name, and in a sentence where its place is."""


@dataclass(frozen=True)
class Order:
    """What is to happen at one failpoint.

    Attributes:
        action, argument: as in the table above.
        first: the passing at which it happens, from 1.
        onwards: whether at all later passings too.
    """

    action: str
    argument: str = ""
    first: int = 1
    onwards: bool = False


def parsed(text: str) -> dict[str, Order]:
    """Return the order for each failpoint that the variable names.

    Raises `UsageError` for an unknown failpoint, action or errno, and for a number that is none.
    """
    return dict(_parsed_one(part.strip()) for part in text.split(",") if part.strip())


def _parsed_one(text: str) -> tuple[str, Order]:
    name, _, order = text.partition("=")
    order, at, when = order.partition("@")
    action, _, argument = order.partition(":")
    if name not in FAILPOINTS:
        raise UsageError(f"{VARIABLE}: there is no failpoint {name!r}; etl/failpoints.py has the list")
    valid = {"kill": not argument, "error": hasattr(errno, argument), "sleep": _is_number(argument)}
    number = when.removesuffix("+") if at else "1"
    if not valid.get(action) or not number.isdecimal() or int(number) < 1:
        raise UsageError(f"{VARIABLE}: {text!r} is not NAME=kill, error:ERRNO or sleep:SECONDS, with @N or @N+")
    return name, Order(action, argument, int(number), when.endswith("+"))


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


class _Armed:
    """Counts passings and does what was ordered; any thread may pass."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed: Counter[str] = Counter()
        self._orders: dict[str, Order] = {}

    def arm(self, text: str) -> None:
        self._passed.clear()
        self._orders = parsed(text)

    def __call__(self, name: str) -> None:
        if name not in FAILPOINTS:
            raise KeyError(name)
        with self._lock:
            self._passed[name] += 1
            passing = self._passed[name]
        order = self._orders.get(name)
        if order is not None and (passing == order.first or (order.onwards and passing > order.first)):
            _act(name, order)


def _act(name: str, order: Order) -> None:
    match order.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(float(order.argument))
        case "error":
            number = getattr(errno, order.argument)
            raise OSError(number, f"{os.strerror(number)} (failpoint {name})")


def _unarmed(name: str) -> None:
    """Do nothing."""


def arm(text: str) -> None:
    """Take other orders, in a process that was forked from one with the variable set; passings count anew.

    Raises `UsageError` as `parsed` does, and RuntimeError where the variable was not set at the start.
    """
    if failpoint is _unarmed:
        raise RuntimeError(f"{VARIABLE} was not set when etl was imported")
    _armed.arm(text)


_armed = _Armed()
failpoint: Callable[[str], None] = _unarmed

if os.environ.get(VARIABLE):
    failpoint = _armed
    try:
        _armed.arm(os.environ[VARIABLE])
    except UsageError as error:
        # Imported before any command can render an error.
        raise SystemExit(f"etl: {error}") from None
