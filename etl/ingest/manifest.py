"""A manifest and its lines: whatever its format, a stream of JSON lines.

Offsets and hashes are taken over this stream, so checkpoints mean the same for every format and compression.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

from etl.archives import is_archive
from etl.compression import SUFFIXES as COMPRESSIONS
from etl.errors import InvalidUrlError, ManifestError
from etl.images.formats import suffixes
from etl.ingest import manifest_formats
from etl.ingest.manifest_formats.file import ManifestFile
from etl.net.documents import Documents
from etl.net.signatures import without_signature
from etl.net.urls import file_name, folder_of, host_of
from etl.redaction import redact_url
from etl.settings import Settings
from etl.text import clean, nearest

STDIN = "-"
ARCHIVES = "archives"
"""The directory of a state with the archives of pictures that lie elsewhere."""


class Manifest:
    """One manifest: a file, archive or directory of pictures, standard input (``-``), or a file or folder elsewhere.

    Attributes:
        path: the name under which the state knows it: an absolute path, ``-``, or a URL without its signature.
        name: a short one for messages and for the keys of records that have none.
        rereadable: whether it can be read more than once.
    """

    def __init__(self, path: str) -> None:
        self._url = self._folder = ""
        if path == STDIN:
            self._file = ManifestFile(None)
            self.path, self.name, self.rereadable = STDIN, self._file.name, False
            return
        if not path.strip():
            raise ManifestError("the name of a manifest is empty; `.` is the directory that you are in")
        file = Path(path)
        if "://" in path and not _exists(file):
            self._folder = folder_of(path) or ""
            self._url = self._folder or path.strip()
            self.path = _checked(self._url)
            self.name, self.rereadable = remote_name(self.path.rstrip("/")), True
            return
        if not _exists(file):
            raise ManifestError(f"there is no manifest {path}").with_cure(_cure(file))
        try:
            str(file.resolve()).encode()
        except UnicodeEncodeError as error:
            raise ManifestError(f"the name of {path} is not UTF-8, so it cannot be stored; rename the file") from error
        self._file = ManifestFile(file)
        # A pipe, such as a shell's <(zcat ...), gives its lines once.
        self.path, self.name, self.rereadable = str(file.resolve()), file.name, file.is_file() or file.is_dir()

    @property
    def base(self) -> Path | str:
        """What relative image paths are resolved against, as `ManifestFile` tells."""
        return self._file.base

    @property
    def skipped(self) -> dict[str, int]:
        """How many files of a directory were passed over when it was read last, by kind."""
        return dict(self._file.skipped)

    @contextmanager
    def at_hand(self, settings: Settings, should_stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Have a file that lies elsewhere on this machine during the block; yield whether nothing stopped that.

        What it names itself can be asked for meanwhile.  Raises `ManifestError` when it cannot be brought.
        """
        with Documents(settings, should_stop) as documents:
            if self._folder:
                self._file = ManifestFile(None, folder=self._folder, read_page=documents.page)
                self._file.base = self._folder
                yield True
                return
            if not self._url:
                self._file.read_url = documents.read
                yield True
                return
            # The HTTP client takes a tenth of a second to import.
            from etl.ingest.remote import brought

            kept = kept_archive(settings.state, self.path)
            was_kept = kept.exists()
            with nullcontext(kept) if was_kept else brought(self._url, settings, should_stop) as file:
                if file is not None and not was_kept and is_archive(ManifestFile(file).head):
                    kept.parent.mkdir(exist_ok=True)
                    file = file.replace(kept)
                self._file = ManifestFile(file, called=self.name, read_url=documents.read)
                self._file.base = self.path
                try:
                    yield file is not None
                except ManifestError:
                    self._file.base = self.path
                    raise
                finally:
                    if file == kept and not was_kept and isinstance(self._file.base, str):
                        # A list, which has been read, or a damaged archive.
                        kept.unlink()

    def lines(
        self, encoding: str | None = None, sidecars: Sequence[str] = (), image_field: str | None = None
    ) -> Iterator[bytes]:
        """Return every line with its line end, blank ones included; ``encoding`` is that of a text, if it is known.

        Of the ``sidecars`` beside a directory's pictures, by their suffixes, fields are made.  A list in an archive is
        known by the ``image_field``, or by the usual names.

        One that lies elsewhere must be `at_hand`.  Raises `ManifestError`, while they are read, when the file cannot
        be read to its end.
        """
        self._file.encoding, self._file.sidecars, self._file.image_field = encoding, sidecars, image_field
        return manifest_formats.lines(self._file)


def kept_archive(state: Path, url: str) -> Path:
    """Return where a state keeps the archive of pictures that lies at a URL, once it was brought."""
    return state / ARCHIVES / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{remote_name(url.rstrip('/'))}"


def remote_name(url: str) -> str:
    """Return what a file is called that is brought from a URL; never empty."""
    name = file_name(url).replace("/", "_").replace("\0", "")
    return name.encode()[-_LONGEST_NAME:].decode(errors="ignore").lstrip(".") or "manifest"


def _checked(url: str) -> str:
    """Return the URL of a manifest as it may be stored.  Raises `ManifestError` for one that cannot be asked for."""
    try:
        host_of(f"{url}_" if folder_of(url) else url)
    except InvalidUrlError as error:
        raise ManifestError(f"there is no manifest {clean(redact_url(url), 200)}: {error}") from error
    scheme, _, rest = without_signature(url).partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


_LONGEST_NAME = 200
"""Bytes of a file's name that are kept: the end, where the suffixes are."""

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".zip", ".tar", ".tgz")
_SHOWN = 3
"""Of each kind."""

_LOOKED_AT = 1000
"""Entries of a directory: a hint is not worth minutes of a slow disk."""


def near_manifests(directory: Path) -> list[str]:
    """Return names of what looks like manifests in a directory: a few files, then a few directories of pictures."""
    endings = tuple(f"{suffix}{packed}" for suffix in _SUFFIXES for packed in ("", *COMPRESSIONS))
    try:
        here = sorted(islice(directory.iterdir(), _LOOKED_AT))
    except OSError:
        return []
    files = [file.name for file in here if file.name.lower().endswith(endings)]
    folders = (f"{file.name}/" for file in here if _has_pictures(file))
    return [clean(name, 80) for name in (*files[:_SHOWN], *islice(folders, _SHOWN))]


def _has_pictures(directory: Path) -> bool:
    try:
        some = islice(directory.iterdir(), _LOOKED_AT) if directory.is_dir() else ()
        return any(file.suffix.lower() in suffixes() for file in some)
    except OSError:
        return False


def _cure(file: Path) -> str:
    """Return what may have been meant by a name that is not there; empty where nothing is near."""
    try:
        names = [entry.name for entry in file.parent.iterdir()]
    except OSError:
        return ""
    # A name without the ending, or with another one, is nearer than its letters tell.
    near = [name for name in names if name.split(".")[0] == file.name.split(".")[0]]
    near = near or list(filter(None, (nearest(file.name, names, 0.7),)))
    if near:
        return f"did you mean {clean(str(file.with_name(min(near, key=len))), 200)}?"
    here = near_manifests(file.parent)
    where = "here" if file.parent == Path() else f"in {clean(str(file.parent), 100)}"
    return f"what is {where}: {', '.join(here)}" if here else ""


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:
        # A name too long for the system, or a directory above it that may not be entered.
        return False
