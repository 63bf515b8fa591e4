"""A quick look at hosts beside the start of a run, which else names one that is silent hours later, at its end."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from etl.errors import EtlError
from etl.run.checks.check import Check
from etl.settings import Settings


@contextlib.contextmanager
def look_at_hosts(settings: Settings, tell: Callable[[Check], None]) -> Iterator[None]:
    """Look, in a thread of its own, which hosts of the state take no connection; ``tell`` of them during the block.

    Nothing waits for it.  Where others fetch, they alone could say whom they reach: then nobody looks.
    """
    over = threading.Event()

    def look() -> None:
        # What cannot be looked at now, such as for want of files, is said by those who need it.
        with contextlib.suppress(EtlError, OSError):
            # Imported here: captioning alone needs no HTTP client.
            from etl.run.checks.network import silent_hosts

            found = silent_hosts(settings)
            if found is not None and not over.is_set():
                tell(found)

    if settings.fetch_backend == "local":
        threading.Thread(target=look, name="look at hosts", daemon=True).start()
    try:
        yield
    finally:
        over.set()
