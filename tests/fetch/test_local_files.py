"""Local sources, and telling them from URLs."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl.errors import BodyTooLargeError, InvalidUrlError, LocalFileError
from etl.fetch.local_files import read_local
from etl.net.urls import host_of, is_local


@pytest.mark.parametrize("named", ["{path}", "file://{path}", "file:{path}", "file://localhost{path}", "FILE://{path}"])
def test_a_local_file_is_hashed_where_it_lies(tmp_path: Path, named: str) -> None:
    """Path and file: URL give hash and size, and nothing that only a server could say."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"picture" * 300_000)
    result = read_local(named.format(path=path), max_bytes=10_000_000)
    assert (result.size, result.sha256) == (2_100_000, hashlib.sha256(b"picture" * 300_000).hexdigest())
    assert (result.http_status, result.etag, result.final_url, result.mime) == (None, None, None, None)


def test_only_file_urls_are_unquoted(tmp_path: Path) -> None:
    """`%20` is a blank in a file: URL and three characters in a path."""
    (tmp_path / "a b.jpg").write_bytes(b"12")
    (tmp_path / "a%20b.jpg").write_bytes(b"123")
    assert read_local(f"file://{tmp_path}/a%20b.jpg", max_bytes=9).size == 2
    assert read_local(f"{tmp_path}/a%20b.jpg", max_bytes=9).size == 3


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """The limit holds for local files as for downloads."""
    path = tmp_path / "big"
    path.write_bytes(bytes(101))
    assert read_local(str(path), max_bytes=101).size == 101
    with pytest.raises(BodyTooLargeError, match="100 bytes"):
        read_local(str(path), max_bytes=100)


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO, which would hang its opener, a device and a directory are refused, through links too."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    for name, reason in ((tmp_path / "fifo", "regular"), (tmp_path / "link", "regular"), (tmp_path, "directory")):
        with pytest.raises(LocalFileError, match=reason):
            read_local(str(name), max_bytes=10)
    with pytest.raises(LocalFileError, match="regular"):
        read_local("/dev/zero", max_bytes=10)


def test_a_fifo_that_takes_a_file_s_place_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the path changes between check and opening, the opened file is checked again."""
    regular = tmp_path / "regular"
    regular.touch()
    os.mkfifo(tmp_path / "fifo")
    status = regular.stat()
    monkeypatch.setattr(Path, "stat", lambda _: status)
    with pytest.raises(LocalFileError, match="not a regular file"):
        read_local(f"{tmp_path}/fifo", max_bytes=10)


@pytest.mark.parametrize("name", ["missing.jpg", "file.txt/below.jpg", "nul\0byte", "x" * 300])
def test_a_path_that_leads_nowhere_is_a_local_file_error(tmp_path: Path, name: str) -> None:
    """Each gets one printable line that names the path."""
    (tmp_path / "file.txt").touch()
    with pytest.raises(LocalFileError) as caught:
        read_local(f"{tmp_path}/{name}", max_bytes=10)
    assert str(caught.value).isprintable()
    assert str(tmp_path) in str(caught.value)


def test_an_unreadable_file_is_a_local_file_error(tmp_path: Path) -> None:
    """Missing permission is said as such; checked as another user, because root reads everything."""
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"1")
    path.chmod(0)
    code = (
        "import os, sys\n"
        "from etl.fetch.local_files import read_local\n"
        "if os.getuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
        "try: read_local(sys.argv[1], max_bytes=9)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    for parent in [tmp_path, *tmp_path.parents][:3]:
        if parent.owner() == Path(tmp_path).owner():
            parent.chmod(parent.stat().st_mode | 0o055)
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("LocalFileError not readable (permission denied)")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file://server/share/a.jpg", "another machine"), ("file://user@localhost/a.jpg", "another machine"),
        ("file:////server/share/a.jpg", "another machine"), ("//server/share/a.jpg", "another machine"),
        ("\\\\server\\share\\a.jpg", "another machine"), ("file:\\\\server\\a.jpg", "another machine"),
        ("file:%5C%5Cserver/a.jpg", "another machine"), ("//example.org/a.jpg", "https:"),
        ("file://[", "malformed"), ("file:///a%00.jpg", "no file name holds %00"),
        ("file:///a%2fb.jpg", "no file name holds %2f"), ("file:///caf%E9.jpg", "malformed"),
        ("file:///a.jpg?size=9", "%3F"), ("file:///scan#1.jpg", "%23"), ("file:///a\tb.jpg", "control"),
    ],
)  # fmt: skip
def test_what_names_no_file_of_this_machine_is_refused(name: str, said: str) -> None:
    """`file://server/share/a.jpg` is not read as `/share/a.jpg`, nor is anything else that names another file."""
    with pytest.raises(InvalidUrlError, match=said) as caught:
        read_local(name, max_bytes=10)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://Example.ORG/a.jpg", "example.org"),
        ("https://me:secret@example.org:8443/a b.jpg?x=y", "example.org"),
        (" http://example.org.\n", "example.org"),
        ("HTTP://[2001:DB8::1]:80/", "2001:db8::1"),
        ("http://bücher.example/", "bücher.example"),
        ("/pictures/a.jpg", ""),
        ("pictures/a b.jpg", ""),
        ("C:\\pictures\\a.jpg", ""),
        ("file:///pictures/a.jpg", ""),
    ],
)
def test_the_host_is_taken_from_the_url(url: str, host: str) -> None:
    """Lower case, without user, port and trailing dot; empty for what is local."""
    assert host_of(url) == host
    assert is_local(url) is (host == "")


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a.jpg",
        "http://[::1",
        "http://host:port/",
        "http://host:70000/",
        "http://host:0/",
        "http://ho%20st/",
        "http://a<b/",
        "ftp://host/a.jpg",
        "gopher://host/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "mailto:me@example.org",
        "",
        " ",
        "http://ho st/a.jpg",
        "http://host/a\nb.jpg",
        "http://ho\x00st/",
    ],
)
def test_bad_urls_are_refused(url: str) -> None:
    """Malformed URLs and other schemes raise, in one printable line."""
    with pytest.raises(InvalidUrlError) as caught:
        host_of(url)
    assert str(caught.value).isprintable()
    assert not is_local(url)


def test_local_sources_need_no_http_library() -> None:
    """Importing this module does not load httpx2, which would slow every command's start."""
    code = "import sys, etl.fetch.local_files; sys.exit('httpx2' in sys.modules or 'httpcore2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
