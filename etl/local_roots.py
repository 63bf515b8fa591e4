"""The directories that this user, on this machine, has opened by ingesting a manifest that lies there.

A state may come from elsewhere, and its database name any path as that of a manifest.  So ingest stores each directory
with a seal, which needs a secret that never leaves the user's own files; fetch reads below the directories whose seal
is right.
"""

import hashlib
import hmac
import logging
import os
import platform
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from etl.files import sync_chosen
from etl.user_files import STATE, user_file

log = logging.getLogger(__name__)

_BYTES = 32

_OF_THIS_PROCESS = secrets.token_bytes(_BYTES)
"""Seals where no secret can be kept, as in a container with a read-only home: what a command has ingested itself."""

_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def seal(directory: str) -> str:
    """Return the seal of a directory that the user is opening; makes the user's secret where there is none yet."""
    return _seal(_kept_secret(make=True) or _OF_THIS_PROCESS, directory)


def opened(rows: Iterable[tuple[str, str | None, str | None]]) -> tuple[list[str], list[str]]:
    """Tell apart the directories of manifests, given with path and seal: those whose seal is right, and the others."""
    keys = [key for key in (_kept_secret(make=False), _OF_THIS_PROCESS) if key is not None]
    right, others = list[str](), list[str]()
    for path, directory, found in rows:
        # Of a stranger, the text may be anything.
        given = (found or "").encode("utf-8", "replace")
        if directory is not None and any(hmac.compare_digest(_seal(key, directory).encode(), given) for key in keys):
            right.append(directory)
        else:
            # States of earlier versions name the manifest alone.
            others.append(directory or str(Path(path).parent))
    return right, [directory for directory in others if directory not in right]


def _seal(key: bytes, directory: str) -> str:
    text = "\0".join(("caption-etl local root", _machine(), directory))
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def _machine() -> str:
    """Return what tells this machine from others that share the user's home."""
    for path in _MACHINE_IDS:
        with suppress(OSError):
            if text := path.read_text(encoding="ascii", errors="replace").strip():
                return text
    return platform.node()


def _kept_secret(*, make: bool) -> bytes | None:
    """Return the user's secret; ``None`` where there is none that can be used."""
    path = user_file(STATE, "secret")
    if path is None:
        return None
    try:
        if make and not path.exists():
            _make(path)
        return _read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.log(logging.INFO if make else logging.DEBUG, "no secret is kept in %s: %s", path, error)
        return None


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 -- opens a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ValueError("it is no file that this user alone can read")
        key = file.read(_BYTES + 1)
    if len(key) != _BYTES:
        raise ValueError(f"it has not {_BYTES} bytes")
    return key


def _make(path: Path) -> None:
    """Make the secret, whole and private from its first byte; one that another process has made meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 -- opens a descriptor
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink()
    sync_chosen(path.parent)
