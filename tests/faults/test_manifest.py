"""A manifest that is edited, reordered, cut or garbled, also under a killed ingest: nothing is captioned twice."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.common_check import check_export, check_state
from support.etl_process import Program
from support.states import assert_sound
from support.workbench import PlainCaptioner, Workbench, scenes
from support.zygote import Zygote

from etl.domain.statuses import Stage
from etl.domain.views import IngestSummary
from etl.export.stage import ExportOptions
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.run.pipeline import export_manifest
from etl.state.store import Store

pytestmark = pytest.mark.usefixtures("forked_decoders")

KILLED = """
import os, signal, sys
from pathlib import Path
from etl.settings import Settings
from etl.ingest import stage as module
from etl.ingest.options import IngestOptions
from etl.ingest.manifest import Manifest
from etl.state.store import Store
module.BATCH = 2
with Store.open(Settings(state=Path(sys.argv[1]))) as store, store.run(("ingest",)):
    kill = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    module.ingest(store, Manifest(sys.argv[2]), IngestOptions(), on_batch=kill)
"""
"""Ingests two records of a manifest and is gone."""

PICTURES = 6


def line(key: int, picture: int | None = None, title: str = "") -> bytes:
    """Return one record; with a ``title`` it has a prompt of its own."""
    record = {"id": f"r{key}", "path": f"{key if picture is None else picture}.jpg"} | (
        {"name": title} if title else {}
    )
    return json.dumps(record).encode() + b"\n"


WHOLE = [line(n) for n in range(PICTURES)]


@dataclass(frozen=True)
class Edit:
    """One version of the manifest.

    Attributes:
        content: its bytes.
        keys: the records that its export holds.
        captions: captions that nobody has made before.
        invalid: error classes of its invalid records.
    """

    content: bytes
    keys: tuple[int, ...]
    captions: int = 0
    invalid: tuple[str, ...] = ()


ALL = tuple(range(PICTURES))

EDITS = {
    "as it was at first": Edit(b"".join(WHOLE), ALL, PICTURES),
    "a title and a picture changed": Edit(
        b"".join([WHOLE[0], line(1, title="Rue Saint-Antoine"), line(2, picture=5), *WHOLE[3:]]), ALL, 1
    ),
    "reordered": Edit(b"".join(reversed(WHOLE)), ALL[::-1]),
    "without its last lines": Edit(b"".join(WHOLE[:4]), ALL[:4]),
    "cut within a line": Edit(b"".join(WHOLE)[:-9], ALL[:5], invalid=("invalid_json",)),
    "with line ends of Windows": Edit(b"".join(WHOLE).replace(b"\n", b"\r\n"), ALL),
    "with a mark of its byte order": Edit(b"\xef\xbb\xbf" + b"".join(WHOLE), ALL),
    "with a line that is no UTF-8": Edit(b"".join([*WHOLE[:3], b'{"id": "caf\xe9"}\n', *WHOLE[3:]]), ALL,
                                         invalid=("invalid_json",)),
    "with a line twice": Edit(b"".join([*WHOLE[:4], WHOLE[1], *WHOLE[4:]]), (0, 1, 2, 3, 1, 4, 5),
                              invalid=("duplicate_key",)),
    "whole again": Edit(b"".join(WHOLE), ALL),
}  # fmt: skip


class Archive:
    """A manifest file, its pictures, and a state."""

    def __init__(self, directory: Path, zygote: Zygote) -> None:
        self._zygote = zygote
        self.bench = Workbench(directory)
        self.path = directory / "manifest.jsonl"
        self.output = directory / "out.jsonl"
        self.captioner = PlainCaptioner()
        for n, (_, body) in enumerate(scenes(PICTURES)):
            (directory / f"{n}.jpg").write_bytes(body)

    def kill(self, content: bytes) -> None:
        """Write the manifest, and kill its ingest in the middle."""
        self.path.write_bytes(content)
        assert self._zygote.run_script(KILLED, self.bench.state, self.path) == -signal.SIGKILL

    def ingest(self) -> IngestSummary:
        """Ingest what the manifest says now."""
        with Store.open(self.bench.settings) as store, store.run((Stage.INGEST,)):
            return ingest(store, Manifest(str(self.path)), IngestOptions())

    def work(self) -> int:
        """Fetch, caption and export; return how many captions were made."""
        before = self.captioner.captions
        self.bench.fetch()
        self.bench.caption(self.captioner)
        export_manifest(self.bench.settings, str(self.output), ExportOptions())
        return self.captioner.captions - before

    def check(self, edit: Edit) -> None:
        """Assert that the export follows the manifest, and that the state is sound and of one generation."""
        keys = [f"r{n}" for n in edit.keys]
        if "duplicate_key" in edit.invalid:
            # The second line of the key is exported too, so that the export has as many lines as the manifest.
            exported = [json.loads(each) for each in self.output.read_bytes().splitlines()]
            assert [record["id"] for record in exported] == keys
            assert [record.get("vlm_error") for record in exported if not record["vlm_caption"]] == list(edit.invalid)
        else:
            assert not check_export(self.output, keys).failed
        assert_sound(self.bench.state)
        sql = "SELECT error_class FROM records WHERE state = 'invalid'"
        assert [slug for (slug,) in self.bench.rows(sql)] == list(edit.invalid)
        sql = "SELECT count(*) FROM records r JOIN manifests m ON m.id = r.manifest WHERE r.state <> 'removed' "
        assert self.bench.rows(f"{sql} AND r.generation <> m.generation") == [(0,)]

    @property
    def generation(self) -> int:
        """Generation of the manifest, which must have been read to its end."""
        [(generation, complete)] = self.bench.rows("SELECT generation, complete FROM manifests")
        assert complete
        return int(generation)


@pytest.fixture
def archive(tmp_path: Path, plain_zygote: Zygote) -> Iterator[Archive]:
    made = Archive(tmp_path, plain_zygote)
    yield made
    pulled = Counter(item.id for call in made.captioner.calls for item in call)
    assert set(pulled.values()) == {1}, "a caption was made twice"
    export_manifest(made.bench.settings, str(made.output), ExportOptions())
    program = Program(tmp_path, zygote=plain_zygote)
    check_state(made.bench.state, output=made.output, keys=[f"r{n}" for n in ALL], program=program)


def test_a_manifest_that_changes_between_runs_under_a_killed_ingest(archive: Archive) -> None:
    """Each version is first ingested by a process that is killed; it is one generation, and only news is captioned."""
    for number, (name, edit) in enumerate(EDITS.items(), start=1):
        archive.kill(edit.content)
        summary = archive.ingest()
        assert (summary.resumed_at, archive.generation) == (2, number), name
        assert archive.work() == edit.captions, name
        archive.check(edit)
        assert archive.ingest().unchanged, name
        assert archive.generation == number, name


def test_a_manifest_that_changes_while_its_ingest_lies_killed(archive: Archive) -> None:
    """What a killed ingest had begun of one version is taken back by the next, whichever versions they are."""
    archive.kill(EDITS["as it was at first"].content)
    archive.kill(EDITS["reordered"].content)
    archive.kill(EDITS["a title and a picture changed"].content)
    archive.path.write_bytes(EDITS["without its last lines"].content)
    assert archive.ingest().resumed_at == 0
    assert archive.work() == 4
    archive.check(EDITS["without its last lines"])
    archive.kill(EDITS["with a mark of its byte order"].content)
    archive.path.write_bytes(EDITS["whole again"].content)
    archive.ingest()
    assert archive.work() == 2
    archive.check(EDITS["whole again"])
