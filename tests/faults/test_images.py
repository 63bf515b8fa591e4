"""Files of the image cache that are deleted, cut or changed by a bit: `verify` finds them, the next run heals them."""

import json
from collections import Counter
from pathlib import Path

from support.common_check import check_state
from support.etl_process import Program
from support.fault_server import FaultServer
from support.workbench import PlainCaptioner, Workbench, scenes, write_manifest
from support.zygote import Zygote

from etl.images.cache import ImageCache
from etl.run_control import RunControl

KEYS = [f"r{n}" for n in range(8)]


def damage(path: Path, how: int) -> None:
    """Delete a file, cut it in half, or change one bit in its middle."""
    content = path.read_bytes()
    middle = len(content) // 2
    if how == 0:
        path.unlink()
    elif how == 1:
        path.write_bytes(content[:middle])
    else:
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_damaged_pictures_are_fetched_again_and_captioned_once(tmp_path: Path, plain_zygote: Zygote) -> None:
    """Of captioned pictures and of others, working copies and originals alike; those not damaged are left alone."""
    program = Program(tmp_path, zygote=plain_zygote, keep_originals="yes")
    bench, output = Workbench(tmp_path, longest_edge=224, batch_size=2), tmp_path / "out.jsonl"
    cache = ImageCache.of_state(program.state)
    control, first, second = RunControl(), PlainCaptioner(), PlainCaptioner()
    with FaultServer() as server:
        urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(len(KEYS)))]
        records = [{"id": key, "url": url} for key, url in zip(KEYS, urls, strict=True)]
        assert program.run("ingest", write_manifest(tmp_path / "manifest.jsonl", records)).code == 0
        assert program.run("fetch").code == 0
        first.before = lambda _: control.stop() if first.captions == 2 else None
        assert bench.caption(first, control).done == 4
        captioned = bench.rows("SELECT id, text, done_at FROM captions WHERE status = 'done'")

        # In the order of their URLs: downloads end in any.
        files = bench.rows(
            "SELECT i.working_sha256, i.sha256 FROM sources s JOIN images i ON i.id = s.image ORDER BY s.id"
        )
        for n in (0, 1, 2, 4, 5, 6):
            damage(cache.working_path(files[n][0]), n % 4)
            damage(cache.original_path(files[n][1]), n % 4)
        found = json.loads(program.run("verify", "--json").stdout)
        assert (found["missing"], found["damaged"], found["requeued"]) == (2, 4, 6)
        assert (found["missing_originals"], found["damaged_originals"], found["problems"]) == (2, 4, [])
        assert program.run("fetch").code == 0
        assert server.requests == {f"/{n}.jpg": 1 if n in (3, 7) else 2 for n in range(len(KEYS))}
    assert bench.caption(second).done == 4
    assert set(captioned) <= set(bench.rows("SELECT id, text, done_at FROM captions"))
    pulled = Counter(item.id for captioner in (first, second) for call in captioner.calls for item in call)
    assert set(pulled.values()) == {1}, "a caption was made twice"
    assert program.run("export", output).code == 0
    exported = check_state(program.state, output=output, keys=KEYS, program=program)
    assert exported is not None and not exported.failed
