"""Working copies are opened as the model is to see them; what is damaged is told from what cannot be read."""

import os
import resource
from pathlib import Path

import pytest
from PIL import Image
from support.workbench import encoded

from etl.demo.scenes import Scene, Shape
from etl.errors import CacheUnreadableError, WorkingCopyError
from etl.images.working_copies import open_working_copy, working_copy_bytes

SCENE = Scene("blue", (Shape("large", "red", "circle", "top left"),), 1)


def test_working_copies_open_as_rgb(tmp_path: Path) -> None:
    """A greyscale file comes back as RGB of the same size, with its file closed."""
    path = tmp_path / "copy.jpg"
    SCENE.draw(60, 40).convert("L").save(path)
    picture = open_working_copy(path)
    assert (picture.mode, picture.size) == ("RGB", (60, 40))


def huge_jpeg(jpeg: bytes) -> bytes:
    """Return the file with a header that says 65000 x 65000 pixels."""
    frame = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:frame] + (65000).to_bytes(2) * 2 + jpeg[frame + 4 :]


def broken_files() -> dict[str, bytes]:
    """Return damaged pictures by kind of damage."""
    jpeg, png = encoded(SCENE.draw()), encoded(SCENE.draw(), "PNG")
    return {
        "empty": b"",
        "html": b"<html>not found</html>",
        "cut": jpeg[:-2000],
        "huge": huge_jpeg(jpeg),
        "png checksum": png[:40] + b"\0\0\0\0" + png[44:],
    }


@pytest.mark.parametrize("kind", broken_files())
def test_damaged_working_copies(tmp_path: Path, kind: str) -> None:
    """Whatever Pillow raises for a damaged file becomes a `WorkingCopyError` that names the file."""
    path = tmp_path / "copy.jpg"
    path.write_bytes(broken_files()[kind])
    with pytest.raises(WorkingCopyError, match=r"copy\.jpg cannot be read"):
        open_working_copy(path)


def test_missing_working_copies(tmp_path: Path) -> None:
    """A missing file, or a directory in its place, is a `WorkingCopyError`."""
    with pytest.raises(WorkingCopyError, match="not in the cache"):
        open_working_copy(tmp_path / "none.jpg")
    with pytest.raises(WorkingCopyError):
        open_working_copy(tmp_path)


def test_what_is_not_the_files_fault_is_told_apart(tmp_path: Path) -> None:
    """With no descriptor left, or a name that no file can have, nothing is said against the working copy."""
    path = tmp_path / "copy.jpg"
    Image.new("RGB", (4, 3)).save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open("rb") as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), hard))
        try:
            with pytest.raises(CacheUnreadableError, match=r"Too many open files.*nothing was charged.*ulimit -n"):
                open_working_copy(path)
            with pytest.raises(CacheUnreadableError, match="Too many open files"):
                working_copy_bytes(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(CacheUnreadableError, match="name too long"):
        open_working_copy(tmp_path / ("n" * 300))
    # The memory of this process at address 0: opened well, and read with EIO as from a disk that has lost a sector.
    with pytest.raises(WorkingCopyError, match="Input/output error") as caught:
        working_copy_bytes(Path(f"/proc/{os.getpid()}/mem"))
    assert type(caught.value) is WorkingCopyError
