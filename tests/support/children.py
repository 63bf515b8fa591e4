"""Entries of child processes for `etl.processes`."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

from etl import confinement
from etl.images import decoder_worker as worker
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
    confinement.limit_time_of_next(0)
    parent.send(b"begun")
    while True:
        sum(range(1000))


def tells(_config: dict[str, Any], parent: Parent) -> None:
    """Tell the names of its environment, and device and inode of everything that it holds open."""
    opened = []
    for descriptor in range(256):
        with contextlib.suppress(OSError):
            found = os.fstat(descriptor)
            opened.append([found.st_dev, found.st_ino])
    parent.send(json.dumps({"names": list(os.environ), "opened": opened}).encode())


def grasps(_config: dict[str, Any], parent: Parent) -> None:
    """Be a decoder that was taken over: limit itself, then try to have everything back; tell what it could raise."""
    confinement.limit_memory(2**30, 0)
    confinement.limit_time(3600)
    confinement.limit_time_of_next(100)
    raised = []
    for name, more in (("AS", 2**40), ("CPU", 36_000), ("CORE", 2**20), ("AS", -1), ("CPU", -1), ("CORE", -1)):
        kind = getattr(resource, f"RLIMIT_{name}")
        for attempt in (
            lambda kind=kind, more=more: resource.setrlimit(kind, (more, more)),
            lambda kind=kind, more=more: resource.prlimit(0, kind, (more, more)),
        ):
            with contextlib.suppress(OSError, ValueError):
                attempt()
                raised.append(name)
    # What another program might do that it executes, as root would have all rights again.
    for flag in "vct":
        if subprocess.run(["sh", "-c", f"ulimit -H{flag} unlimited"], check=False, capture_output=True).returncode == 0:
            raised.append(flag)
    with contextlib.suppress(OSError):
        os.setuid(0 if os.getuid() else 12345)
        raised.append("uid")
    parent.send(json.dumps(raised).encode())
