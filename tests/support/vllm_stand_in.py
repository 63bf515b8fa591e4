"""A stand-in for `vllm serve`: its command line, its slow start, its key, its engine beside it, and its ways to die.

`install` makes an environment with it; what it does beyond serving is said in ``STAND_IN``, JSON: ``start_s`` seconds
before it serves, ``says`` text that it prints first, ``times`` how often, ``fails`` whether it ends then, ``dies_at``
the caption at which it kills itself in its first life, ``poison`` the hash of a picture that always kills it,
``stubborn`` whether it ignores SIGTERM, ``delay_s`` how long a caption takes.  Each life is a line of
``STAND_IN_LIVES``: `Life` as JSON.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.chat_server import TRIAL, Asked, ChatServer, Words, plain

SETTINGS, LIVES = "STAND_IN", "STAND_IN_LIVES"


@dataclass(frozen=True)
class Life:
    """One process of it: its id, its engine's, its arguments, its working directory and its environment."""

    pid: int
    engine: int
    arguments: list[str]
    directory: str
    environment: dict[str, str]


def install(directory: Path) -> Path:
    """Make an environment with `bin/vllm`; return its directory."""
    program = directory / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    tests = Path(__file__).parents[1]
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{tests}" exec "{sys.executable}" "{__file__}" "$@"\n')
    program.chmod(0o755)
    return directory


def lives(file: Path) -> list[Life]:
    """Return its lives so far, as it has noted them in a file."""
    return [Life(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def main(arguments: list[str]) -> None:
    """Be it."""
    orders: dict[str, Any] = json.loads(os.environ.get(SETTINGS, "{}"))
    if orders.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engine = subprocess.Popen(["sleep", "600"])
    life = Life(os.getpid(), engine.pid, arguments, str(Path.cwd()), dict(os.environ))
    record = Path(os.environ[LIVES])
    first = not record.exists()
    with record.open("a") as file:
        file.write(json.dumps(asdict(life)) + "\n")
    print(orders.get("says", "INFO loading weights") * orders.get("times", 1), flush=True)
    if orders.get("fails"):
        sys.exit(1)
    flags = dict(one.removeprefix("--").partition("=")[::2] for one in arguments[2:])
    captions = iter(range(1, 10**6))

    def caption(asked: Asked) -> Words:
        poisoned = hashlib.sha256(asked.jpeg).hexdigest() == orders.get("poison")
        if poisoned or (first and asked.prompt != TRIAL and next(captions) == orders.get("dies_at")):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(asked)

    time.sleep(orders.get("start_s", 0))
    served = [{"id": flags["served-model-name"], "root": arguments[1]}]
    with ChatServer(
        caption, served, orders.get("delay_s", 0.0), int(flags["port"]), key=os.environ["VLLM_API_KEY"]
    ):  # fmt: skip
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
