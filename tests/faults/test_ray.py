"""A Ray cluster that loses nodes, processes and its driver: everything is captioned once, and as on one machine."""

import importlib.util
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.etl_process import Ended, EtlProcess, Program, wait_for_done
from support.ray_nodes import RayNodes
from support.workbench import scenes

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed"),
]

ITEMS = 2000


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    with RayNodes() as running:
        yield running


def prepare(directory: Path, count: int, nodes: RayNodes | None = None, **settings: Any) -> Program:
    """Return a state whose pictures are fetched, to be captioned on the cluster, or locally where there is none."""
    directory.mkdir(exist_ok=True)
    pictures = directory.parent / "pictures"
    if not pictures.is_dir():
        pictures.mkdir()
        for n, (_, body) in enumerate(scenes(count)):
            (pictures / f"{n:05}.jpg").write_bytes(body)
    if nodes is not None:
        settings |= {"backend": "ray", "ray_address": nodes.address, "ray_cpus": 1}
    program = Program(directory, batch_size=16, decoders=2, **settings)
    if nodes is not None:
        program.environment |= nodes.environment
    for command in (("ingest", pictures), ("fetch",)):
        ended = program.run(*command, timeout_s=300)
        assert ended.code == 0, ended.stderr
    return program


def captions(program: Program) -> dict[str, tuple[str, str]]:
    """Return text and recipe of every finished caption by the picture that it is of."""
    rows = program.rows(
        "SELECT i.sha256, c.text, p.sha256 FROM captions c JOIN images i ON i.id = c.image "
        "JOIN recipes p ON p.id = c.recipe WHERE c.status = 'done'"
    )
    return {image: (text, recipe) for image, text, recipe in rows}


def successes(program: Program) -> int:
    """Return how many attempts at captions succeeded."""
    rows = program.rows("SELECT count(*) FROM attempts WHERE stage = 'caption' AND error_class IS NULL")
    return int(rows[0][0])


def finish(run: EtlProcess) -> Ended:
    """Wait for the end of a run that must end well."""
    ended = run.wait(600)
    assert ended.code == 0, ended.stderr
    return ended


def test_nodes_and_the_driver_may_die(nodes: RayNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2,000 pictures: a node is killed, another joins, the driver is killed and started again.

    Every picture is captioned once, in the words and under the recipe of the local backend; what a lost node had in
    hand is charged to nobody.
    """
    second = nodes.join()
    program = prepare(tmp_path / "ray", ITEMS, nodes)
    begun = time.monotonic()
    with program.start("caption", "-v") as run:
        wait_for_done(program, run, "captions", ITEMS // 8)
        both = len(nodes.actors(0)), len(nodes.actors(second))
        nodes.kill(second)
        at_kill = program.count("captions", "done")
        wait_for_done(program, run, "captions", at_kill + ITEMS // 8)
        charged = program.rows("SELECT count(*) FROM captions WHERE crashes > 0 OR attempts > 1")[0][0]
        third = nodes.join()
        joined = nodes.wait_for_actors(third, 1)
        wait_for_done(program, run, "captions", program.count("captions", "done") + ITEMS // 8)
        run.send(signal.SIGKILL)
        assert run.wait().code == 128 + signal.SIGKILL
    before = captions(program)
    again = finish(program.start("caption", "-v"))
    seconds = time.monotonic() - begun
    local = prepare(tmp_path / "local", ITEMS)
    finish(local.start("caption"))
    found, expected = captions(program), captions(local)
    same = sum(found[image] == words for image, words in expected.items())
    with capsys.disabled():
        print(
            f"\n  {len(found)} of {ITEMS} captions, {successes(program)} made, in {seconds:.0f} s on nodes of one CPU"
            f"\n  {at_kill} before a node was killed, {charged} charged for it; {len(before)} before the driver was"
            f"\n  {same} as the local backend says"
        )
    assert both == (1, 1)
    assert joined == 1
    assert charged == 0
    assert found == expected
    assert len(found) == len(program.rows("SELECT 1 FROM images"))
    assert {image: found[image] for image in before} == before
    assert successes(program) == len(found)
    assert "Traceback" not in again.stderr
    verified = program.run("verify", "--json")
    assert (verified.code, json.loads(verified.stdout)["problems"]) == (0, []), verified.stdout


def test_a_process_that_dies_or_hangs_is_replaced(nodes: RayNodes, tmp_path: Path) -> None:
    """A killed actor's pictures are tried again with a crash to their name; a stopped one's are charged an attempt."""
    program = prepare(tmp_path / "ray", 400, nodes, ray_timeout=8, max_attempts=5)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        with program.start("caption", "-v") as run:
            # So many that the actor, which is new with each driver, has made some of them.
            done = program.count("captions", "done") + 20
            wait_for_done(program, run, "captions", done)
            [actor] = nodes.actors(0)
            actor.send_signal(number)
            wait_for_done(program, run, "captions", done + 60)
            crashed = program.rows("SELECT count(*) FROM captions WHERE crashes > 0")[0][0]
            charged = program.rows(
                "SELECT count(DISTINCT item) FROM attempts WHERE stage = 'caption' AND error_class = 'worker_timeout'"
            )[0][0]
            if number == signal.SIGKILL:
                assert (crashed > 0, charged) == (True, 0)
                run.send(signal.SIGTERM)
                assert run.wait().code == 143
            else:
                assert charged > 0
                finish(run)
    assert len(captions(program)) == successes(program) == len(program.rows("SELECT 1 FROM images"))


def test_who_has_no_token_is_not_let_in(nodes: RayNodes, tmp_path: Path) -> None:
    """A driver with another token ends with one line, and nothing is charged."""
    program = prepare(tmp_path / "ray", 4, nodes)
    program.environment |= {"RAY_AUTH_TOKEN": "0" * 64}
    ended = program.run("caption", timeout_s=180)
    assert ended.code == 2, ended.stderr
    assert "cannot be joined" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert program.rows("SELECT DISTINCT status FROM captions") in ([], [("ready",)])
