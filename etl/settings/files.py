"""The files that settings come from, and what speaks against them.

Two are looked for: the user's own, and ``etl.toml`` in the working directory.  The second may have come there with a
stranger's manifest, so it counts only for what does no harm in a stranger's hands (`Trust`).
"""

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.errors import ConfigError
from etl.user_files import CONFIG, user_file

FOUND = Path("etl.toml")
"""What is looked for in the working directory."""

_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SettingFile:
    """One file that was read.

    Attributes:
        path: as it is shown.
        table: what it says.
        doubt: why it counts for harmless settings alone; empty where it is the user's word.
    """

    path: Path
    table: dict[str, Any]
    doubt: str = ""


def setting_files(named: Path | None, environment: Mapping[str, str]) -> list[SettingFile]:
    """Return the files that settings come from, the one that counts least first.

    ``named``, the user's word, takes the place of what would be found in the working directory.  Raises `ConfigError`
    for a file that cannot be read, is too large or no TOML; what is looked for must be a regular file.
    """
    files = []
    own = user_file(CONFIG, "etl.toml", environment)
    here = named or FOUND
    if own is not None and (status := _status(own)) is not None and not _is_same(status, here):
        strange = status.st_uid not in (os.getuid(), 0) or status.st_mode & stat.S_IWOTH
        files.append(SettingFile(own, _read(own), "can be written by others" if strange else ""))
    if named is not None:
        files.append(SettingFile(named, _read(named, named=True)))
    elif _status(FOUND) is not None:
        doubt = "was only found in the working directory, and may have come there with somebody's pictures"
        files.append(SettingFile(FOUND, _read(FOUND), doubt))
    return files


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_same(status: os.stat_result, other: Path) -> bool:
    there = _status(other)
    return there is not None and os.path.samestat(status, there)


def _read(path: Path, *, named: bool = False) -> dict[str, Any]:
    try:
        # A name may stand for a pipe, as a shell's <(...) does; what is only found would hang whoever opens it.
        if not named and not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"cannot read the configuration {path}: it is no regular file; move it away")
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ConfigError(f"cannot read the configuration {path}: it is larger than {_MAX_BYTES} bytes")
        # Windows' editors begin with a byte order mark.
        return tomllib.loads(text.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"cannot read the configuration {path}: {why}") from error
    # Not only `tomllib.TOMLDecodeError`: numbers and nesting may be more than Python itself reads.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
