"""Where an actor of a cluster puts its files."""

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "caption-etl-ray-"


def own_directory(*, in_memory: bool) -> Path:
    """Return a new directory for pictures, in memory where that is wanted and possible; it is its owner's alone.

    Those of dead processes are removed: a killed one cannot clean up.
    """
    shared = Path("/dev/shm")
    home = shared if in_memory and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    for other in home.glob(f"{PREFIX}*"):
        pid = other.name.removeprefix(PREFIX).partition("-")[0]
        if not pid.isdecimal() or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(other, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=home))
