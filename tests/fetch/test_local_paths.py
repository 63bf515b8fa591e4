"""Local pictures of a stranger's manifest: those beside it are read, others only where the operator allows it."""

from pathlib import Path

import pytest
from support.workbench import Workbench, scenes

pytestmark = pytest.mark.usefixtures("forked_decoders")


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Return a picture outside of the directory in which the workbench keeps its manifest."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "b.jpg").write_bytes(scenes(2)[1][1])
    return tmp_path / "private" / "b.jpg"


def test_a_manifest_reads_what_lies_beside_it(tmp_path: Path, private: Path) -> None:
    """A relative path is fetched; an absolute one, dots and a link that lead out are dead, until they are allowed."""
    bench = Workbench(tmp_path / "work")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.jpg").write_bytes(scenes(2)[0][1])
    (tmp_path / "work" / "link.jpg").symlink_to(private)
    bench.ingest("a.jpg", str(private), "../private/b.jpg", "link.jpg", "/proc/self/environ")
    bench.fetch()
    rows = dict(bench.rows("SELECT r.key, s.error_class FROM records r JOIN sources s ON s.id = r.source"))
    assert rows == dict.fromkeys(("r1", "r2", "r3", "r4"), "blocked_path") | {"r0": None}
    assert "--allow-path" in bench.rows("SELECT error FROM sources WHERE error_class IS NOT NULL")[0][0]
    bench.retry()
    bench.fetch(allow_path=(str(private.parent),))
    assert bench.counts("sources") == {"done": 4, "dead": 1}
    assert bench.rows("SELECT count(*) FROM images") == [(2,)]


def test_a_name_of_another_machine_s_file_is_no_record(tmp_path: Path) -> None:
    """A share, as a URL or as a path, ends at its line, although a file of the same path lies beside the manifest."""
    bench = Workbench(tmp_path)
    (tmp_path / "a.jpg").write_bytes(scenes(1)[0][1])
    path = f"{tmp_path}/a.jpg"
    bench.ingest(f"file://server{path}", f"/{path}", f"FILE://localhost{path}", "file:a.jpg")
    rows = bench.rows("SELECT key, state, error_class FROM records ORDER BY key")
    refused = [("r0", "invalid", "invalid_url"), ("r1", "invalid", "invalid_url")]
    assert rows == [*refused, ("r2", "active", None), ("r3", "active", None)]
    assert bench.rows("SELECT url FROM sources") == [(path,)]
    assert bench.fetch().done == 1
