"""One captioning process: it has a GPU, or several, for itself, and a parent that gives it items and takes outcomes.

A process of its own, because a GPU that has failed can only be used again by a new one, because Python threads of one
process wait for each other, and because two models in one process would.

Messages are JSON objects of one key.  From the parent: ``item``, ``abandon``.  To it: ``ready`` (the recipe),
``outcome``, ``busy`` (slots and those in use), ``log`` and ``error`` or, where the memory was too short,
``scarce``, after which this process ends.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etl.caption.ledger import to_wire
from etl.domain.items import CaptionItem
from etl.errors import EtlError
from etl.processes import Parent
from etl.settings import Settings

SAMPLE_S = 1.0
"""Seconds between two reports of how busy this worker is; its parent keeps it busy by them."""


class _Link:
    """The way to the parent and back, for all threads of this process."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._sending = threading.Lock()
        self._items: deque[CaptionItem] = deque()
        self._abandoned = False

    def tell(self, kind: str, value: object) -> None:
        """Send a message."""
        with self._sending:
            self._parent.send(json.dumps({kind: value}).encode())

    def next_item(self) -> CaptionItem:
        """Return the next item, once there is one."""
        self._abandoned = False
        while not self._items:
            self._take_in(self._parent.recv())
        return self._items.popleft()

    def items(self, first: CaptionItem) -> Iterator[CaptionItem | None]:
        """Yield what there is, and ``None`` while there is nothing."""
        yield first
        while not self.abandoned():
            yield self._items.popleft() if self._items else None

    def abandoned(self) -> bool:
        """Return whether the parent wants nothing any more of what it has asked for."""
        while self._parent.pending():
            self._take_in(self._parent.recv())
        return self._abandoned

    def _take_in(self, message: bytes) -> None:
        match json.loads(message):
            case {"item": fields}:
                self._items.append(CaptionItem(**fields))
            case {"abandon": _}:
                self._items.clear()
                self._abandoned = True


class _Forward(logging.Handler):
    """Sends log records to the parent, which knows where they belong."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self._link.tell("log", [record.levelno, record.name, record.getMessage()])


def main(config: Mapping[str, Any], parent: Parent) -> None:
    """Caption what the parent sends until it is gone.

    ``config``: ``settings`` as `Settings.to_json` gives them, ``cache`` (root of the image cache), ``longest_edge``,
    ``spread`` (divide the model among all GPUs that are visible), ``number`` (of this worker), ``log_level``.
    """
    link = _Link(parent)
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward(link)])
    # As much of our own as somebody wants to read: the run's log, or the terminal.
    logging.getLogger("etl").setLevel(config["log_level"])
    try:
        _work(config, link)
    except EtlError as error:
        link.tell(_kind(error), str(error))
    except Exception as error:
        # The parent starts another worker; what happened is told where the user looks.
        logging.getLogger(__name__).exception("unexpected error in captioning worker %d", config["number"])
        link.tell(_kind(error), f"unexpected error: {type(error).__name__}: {error}")


def _kind(error: Exception) -> str:
    from etl.caption.model.faults import is_out_of_memory

    return "scarce" if is_out_of_memory(error) else "error"


def _work(config: Mapping[str, Any], link: _Link) -> None:
    from etl.caption.local import open_local
    from etl.images.cache import ImageCache

    locate = ImageCache(Path(config["cache"])).working_path
    captioner = open_local(
        Settings.from_json(config["settings"]), locate, config["longest_edge"], spread=config["spread"]
    )

    def report() -> None:
        for sample in captioner.samples():
            link.tell("busy", [sample.slots, sample.in_use])

    report()
    link.tell("ready", captioner.recipe.to_json())
    while True:
        report_at = 0.0
        for outcome in captioner.caption(link.items(link.next_item()), should_stop=link.abandoned):
            link.tell("outcome", to_wire(outcome))
            if time.monotonic() >= report_at:
                report()
                report_at = time.monotonic() + SAMPLE_S
        report()
