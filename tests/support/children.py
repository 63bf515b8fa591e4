"""Entries of child processes for `etl.processes`."""

import json
import os
import sys
import time
from typing import Any

from etl.imaging import worker
from etl.processes import Parent


def echo(config: dict[str, Any], parent: Parent) -> None:
    """Tell the config and one environment variable, then send back whatever comes."""
    parent.send(json.dumps([config, os.environ.get("CHILD_TEST")]).encode())
    while True:
        parent.send(parent.recv())


def busy(_config: dict[str, Any], parent: Parent) -> None:
    """Say so, then work without ever looking at the parent."""
    parent.send(b"ready")
    while True:
        sum(range(1000))


def leaves(config: dict[str, Any], parent: Parent) -> None:
    """Send two messages and exit with the wanted code."""
    parent.send(b"one")
    parent.send(b"two")
    sys.exit(config["code"])


def late(_config: dict[str, Any], _parent: Parent) -> None:
    """Never become ready."""
    time.sleep(60)


def looks(_config: dict[str, Any], parent: Parent) -> None:
    """For each message, tell how many more have come a moment later."""
    while True:
        parent.recv()
        time.sleep(0.2)
        more = 0
        while parent.pending():
            parent.recv()
            more += 1
        parent.send(b"%d" % more)


def shouts(_config: dict[str, Any], parent: Parent) -> None:
    """Be a decoder whose C library prints what a picture says, and which then fails in Python."""
    worker._silence_libraries()
    os.write(2, b"from C \x1b[31m\n")
    parent.send(b"done")
    raise RuntimeError("from Python \x1b]0;x\x07")


def spins_confined(_config: dict[str, Any], parent: Parent) -> None:
    """Be a decoder that never comes back from a picture, with a second of processor time."""
    worker._limit_time(0)
    parent.send(b"begun")
    while True:
        sum(range(1000))
