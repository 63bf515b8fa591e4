"""ZIP and tar archives, compressed or not: the files in them, in their order, and each where it stands.

An archive may come from a stranger.  Nothing of it is written under a name that it says; of what it announces no more
is held than `MAX_DIRECTORY` bytes of a directory or `_BLOCK` of anything else, and `MAX_MEMBERS` names.
"""

import io
import os
import posixpath
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.compression import DAMAGED, unpacked

MAX_MEMBERS = 1_000_000
MAX_DIRECTORY = 128 * 1024**2
"""Bytes of a ZIP's directory; of a million files it has as much."""

_BLOCK = 1 << 20
_RATIO, _GRANTED = 200, 1 << 30
"""How many times its size a compressed tar may have, and the bytes that every one may have."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_SIMPLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others are unpacked by Python without any limit of memory, or not at all."""


class BadArchiveError(Exception):
    """It is no archive, a damaged one, or one that a file system could not bear; in words."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive.

    Attributes:
        name: its path within, parted by ``/``; not one that leads out of it.
        place: what its archive finds it by.
        size: its bytes, unpacked, as the archive says.
        link: the name of the file that it stands for, where it is a link.
        fault: why it cannot be read, in a word or two; empty where it can.
    """

    name: str
    place: Any = None
    size: int = 0
    link: str = ""
    fault: str = ""


class Archive(ABC):
    """An archive, open for one thread."""

    @abstractmethod
    def members(self) -> Iterator[Member]:
        """Yield its files from the first one on; directories are none."""

    def open(self, member: Member) -> "io.BufferedReader[Any]":
        """Return a file of it; while `members` is gone through, only the one that was yielded last."""
        with _faults():
            return io.BufferedReader(_Content(self._reading(member.place)), _BLOCK)

    @abstractmethod
    def _reading(self, place: Any) -> Callable[[int], bytes]:
        """Return what reads on in the file at a place."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""

    def index(self) -> dict[str, Member]:
        """Return what can be read, by name: the last of several, and what links stand for."""
        found, links = dict[str, Member](), list[Member]()
        for member in self.members():
            if member.link:
                links.append(member)
            elif not member.fault:
                found[member.name] = member
        found |= {one.name: found[one.link] for one in links if one.link in found}
        return found


def is_archive(head: bytes) -> bool:
    """Return whether something begins as a ZIP or, decompressed, as a tar archive does."""
    return head.startswith(_ZIP) or head[257:262] == b"ustar"


def open_archive(path: Path, spool: Callable[[], io.FileIO] | None = None) -> Archive:
    """Open an archive; with a ``spool``, a new empty file, a compressed tar can be read at any place.

    Raises `BadArchiveError`, as all that is done with it does, and `OSError`.
    """
    file = _Bounded(io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)))
    try:
        with _faults():
            if file.peek(4)[:4] in _ZIP:
                return _Zip(file)
            if spool is not None and unpacked(file) is not file:
                file = _decompressed(file, spool())
            return _Tar(file)
    except BaseException:
        file.close()
        raise


def _decompressed(file: "_Bounded", target: io.FileIO) -> "_Bounded":
    try:
        with file:
            packed = _Forward(file)
            while block := packed.read(_BLOCK):
                target.write(block)
    except BaseException:
        target.close()
        raise
    return _Bounded(target)


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, ValueError, OverflowError, NotImplementedError, *DAMAGED) as error:
        raise BadArchiveError(f"cut short, damaged or no archive ({error})") from error
    except OSError as error:
        # As bzip2 calls what is damaged.
        if error.errno is not None:
            raise
        raise BadArchiveError(f"cut short or damaged ({error})") from error


class _Bounded(io.BufferedReader):
    """A file of which nobody reads more at once than ``most`` bytes, whatever a header says."""

    most = _BLOCK

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise BadArchiveError(f"a header of more than {self.most} bytes")
        return super().read(size)


class _Content(io.RawIOBase):
    """A file of an archive."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _faults():
            data = self._read(min(len(buffer), _BLOCK))
        buffer[: len(data)] = data
        return len(data)


def _counted(members: Iterator[Member]) -> Iterator[Member]:
    with _faults():
        for number, member in enumerate(members):
            if number >= MAX_MEMBERS:
                raise BadArchiveError(f"more than {MAX_MEMBERS:,} files in one archive")
            yield member


def _inner(name: str) -> str:
    """Return a path as it is compared; empty for one that leads out of the archive."""
    name = posixpath.normpath(name.lstrip("/"))
    return "" if name in (".", "..") or name.startswith("../") else name


class _Zip(Archive):
    def __init__(self, file: _Bounded) -> None:
        self._file = file
        file.most = MAX_DIRECTORY
        self._zip = zipfile.ZipFile(file)

    def members(self) -> Iterator[Member]:
        return _counted(self._member(info) for info in self._zip.infolist() if not info.is_dir())

    @staticmethod
    def _member(info: zipfile.ZipInfo) -> Member:
        name = info.orig_filename
        if not info.flag_bits & 0x800:
            # Many write UTF-8 without saying so.
            name = _decoded(name.encode("cp437"), "cp437")
        name = _inner(name.replace("\\", "/"))
        if not name:
            return Member("", fault="outside of it")
        if info.flag_bits & 1:
            return Member(name, fault="encrypted")
        if stat.S_ISLNK(info.external_attr >> 16):
            return Member(name, fault="link")
        if info.compress_type not in _SIMPLE:
            return Member(name, fault=f"packed by method {info.compress_type}")
        return Member(name, info, info.file_size)

    def _reading(self, place: zipfile.ZipInfo) -> Callable[[int], bytes]:
        return self._zip.open(place).read

    def close(self) -> None:
        self._zip.close()
        self._file.close()


class _Tar(Archive):
    def __init__(self, file: _Bounded) -> None:
        self._file = file
        self._is_packed = unpacked(file) is not file
        self._stream: Any = file

    def members(self) -> Iterator[Member]:
        return _counted(self._members())

    def _members(self) -> Iterator[Member]:
        self._file.seek(0)
        if self._is_packed:
            self._stream = _Forward(self._file)
        tar: Any = tarfile.TarFile(fileobj=self._stream, tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
        while (info := tar.next()) is not None:
            # Else it keeps all of them.
            tar.members.clear()
            if not info.isdir():
                yield self._member(info)

    @staticmethod
    def _member(info: tarfile.TarInfo) -> Member:
        name = _inner(_decoded(info.name.encode("utf-8", "surrogateescape"), "latin-1"))
        if not name:
            return Member("", fault="outside of it")
        if info.issym() or info.islnk():
            target = info.linkname if info.islnk() else posixpath.join(posixpath.dirname(name), info.linkname)
            link = "" if info.linkname.startswith("/") and info.issym() else _inner(target)
            return Member(name, link=link, fault="link")
        if not info.isreg() or info.sparse is not None:
            return Member(name, fault="no plain file")
        return Member(name, (info.offset_data, info.size), info.size)

    def _reading(self, place: tuple[int, int]) -> Callable[[int], bytes]:
        at, end = place[0], sum(place)

        def read(size: int) -> bytes:
            nonlocal at
            self._stream.seek(at)
            data: bytes = self._stream.read(min(size, end - at))
            if not data and at < end:
                raise BadArchiveError("cut short")
            at += len(data)
            return data

        return read

    def close(self) -> None:
        self._file.close()


class _Header(tarfile.TarInfo):
    """A header, of which a damaged one is not the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):
                raise
            raise BadArchiveError(f"damaged ({error})") from error


class _Forward:
    """What a compressed file holds, read from its beginning on, in blocks, and no further than its limit."""

    def __init__(self, file: _Bounded) -> None:
        self._stream = unpacked(file)
        self._place = 0
        self._limit = max(_GRANTED, _RATIO * os.fstat(file.fileno()).st_size)

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> None:
        while self._place < place and self.read(min(place - self._place, _BLOCK)):
            pass

    def read(self, size: int) -> bytes:
        if size > _BLOCK:
            raise BadArchiveError(f"a header of more than {_BLOCK} bytes")
        data = self._stream.read(size)
        self._place += len(data)
        if self._place > self._limit:
            raise BadArchiveError(f"it unpacks to more than {_RATIO} times its size; unpack it yourself if it is right")
        return data


def _decoded(name: bytes, otherwise: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode(otherwise)
