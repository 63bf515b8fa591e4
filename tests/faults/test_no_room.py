"""Whatever the system calls it, no room left is the same error in every place that writes."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from etl.errors import DiskFullError, EtlError
from etl.images.cache import disk_errors
from etl.net.part import PartWriter
from etl.output_file import write_errors
from etl.state.database import translate_errors
from etl.state.lock import StateLock

Raising = Callable[[OSError], None]


def within(block: AbstractContextManager[None]) -> Raising:
    """Return what raises an error within a block."""

    def raising(error: OSError) -> None:
        with block:
            raise error

    return raising


@pytest.fixture(params=["cache", "export", "database", "download", "lock"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Raising:
    """Return one place, in which the system gives a writer an error."""
    path = tmp_path / "file"

    def fails(function: str, then: Callable[[], object]) -> Raising:
        def raising(error: OSError) -> None:
            def failing(*_: object, **__: object) -> None:
                raise error

            monkeypatch.setattr(function, failing)
            then()

        return raising

    places: dict[str, Callable[[], Raising]] = {
        "cache": lambda: within(disk_errors(path)),
        "export": lambda: within(write_errors(str(path))),
        "database": lambda: within(translate_errors(path)),
        "download": lambda: fails("os.open", PartWriter(path, max_bytes=9).__enter__),
        "lock": lambda: fails("os.pwrite", StateLock(tmp_path).__enter__),
    }
    return places[request.param]()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room(place: Raising, number: int) -> None:
    """A full disk, a used-up quota and a limit of file sizes end with the exit code of a full disk."""
    with pytest.raises(DiskFullError):
        place(OSError(number, os.strerror(number)))


def test_something_else(place: Raising) -> None:
    """A disk that cannot be written for another reason is not taken for a full one."""
    with pytest.raises((EtlError, OSError)) as caught:
        place(OSError(errno.EROFS, os.strerror(errno.EROFS)))
    assert not isinstance(caught.value, DiskFullError)
