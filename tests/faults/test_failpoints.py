"""SIGKILL at every failpoint: between any fsync, rename and commit, and nothing is lost or done twice."""

import hashlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from support.etl_process import EtlProcess
from support.fault_server import FaultServer, status
from support.places import Place, World
from support.tally import Tally
from support.watching import wait_for
from support.workbench import write_manifest
from support.zygote import Zygote

from etl.failpoints import FAILPOINTS
from etl.ingest.stage import BATCH
from etl.state import commands as control

KILLED = 128 + signal.SIGKILL


def nothing(_: Place) -> None:
    """Prepare nothing."""


def leave(_: Place, run: EtlProcess) -> None:
    """Do nothing beside the run."""
    run.wait(90)


@dataclass(frozen=True)
class Route:
    """How a failpoint is reached.

    Attributes:
        stage: how far the state has come.
        command: what passes the failpoint.
        later: another passing of one process at which it is killed too; 0 where there is only one.
        prepare, beside, after: what the test does before, beside and after that process.
        also: further orders to failpoints.
        more: keys that ``prepare`` has added.
        settings: of the run.
    """

    stage: str
    command: tuple[str, ...]
    later: int = 0
    prepare: Callable[[Place], None] = nothing
    beside: Callable[[Place, EtlProcess], None] = leave
    after: Callable[[Place], None] = nothing
    also: str = ""
    more: tuple[str, ...] = ()
    settings: tuple[tuple[str, object], ...] = ()


# What the test does around the process that is killed.


def execute(place: Place, sql: str) -> None:
    """Change the database behind the program's back."""
    with closing(sqlite3.connect(place.state / "state.db", isolation_level=None)) as database:
        database.execute(sql)


def flag_two(place: Place) -> None:
    """Let two captions look bad; they will be made again."""
    execute(place, "UPDATE captions SET flags = 'repetition' WHERE id IN (1, 2)")


def allow_captions_again(place: Place) -> None:
    place.ledger.forget_captions(1, 2)


def lose_a_working_copy(place: Place) -> None:
    [(url, sha256)] = place.program.rows(
        "SELECT s.url, i.working_sha256 FROM images i JOIN sources s ON s.image = i.id ORDER BY i.id LIMIT 1"
    )
    place.ledger.allow(url.removeprefix(place.world.server.base))
    next(place.state.glob(f"images/working/*/{sha256}.jpg")).unlink()


def spoil_a_working_copy(place: Place) -> None:
    """Let a file that is no picture be the working copy that the database speaks of."""
    [(image, sha256)] = place.program.rows("SELECT id, working_sha256 FROM images ORDER BY id LIMIT 1")
    spoilt = hashlib.sha256(SPOILT).hexdigest()
    (place.state / "images" / "working" / spoilt[:2] / f"{spoilt}.jpg").write_bytes(SPOILT)
    execute(place, f"UPDATE images SET working_sha256 = '{spoilt}' WHERE id = {image}")
    (place.directory / "spoilt").write_text(f"{image} {sha256}")


def mend_the_working_copy(place: Place) -> None:
    """Let the database speak of the right file again."""
    image, sha256 = (place.directory / "spoilt").read_text().split()
    execute(place, f"UPDATE images SET working_sha256 = '{sha256}' WHERE id = {image}")
    next(place.state.glob(f"images/working/*/{hashlib.sha256(SPOILT).hexdigest()}.jpg")).unlink()


def lose_an_original(place: Place) -> None:
    next(place.state.glob("images/original/*/*")).unlink()


def verify_again(place: Place) -> None:
    """Let what was found, and perhaps not committed, be found once more."""
    assert place.run("verify").code in (0, 3)


def allow_everything_again(place: Place) -> None:
    place.ledger.allow(*place.ledger.fetched)


def collect(place: Place) -> None:
    """Sweep what the database no longer counts on."""
    assert place.run("gc").code == 0


def ask_for_a_pause(place: Place) -> None:
    """Let the host ask for a second's patience."""
    for number in range(place.world.pictures):
        place.world.server.fail(f"/{number}.jpg", status(503, retry_after="1"), times=1)


def answer_again(place: Place) -> None:
    place.world.serve()


def add_a_dead_host(place: Place) -> None:
    records = [{"id": key, "url": f"http://localhost:1/{key}.jpg"} for key in DEAD]
    path = write_manifest(place.directory / "dead.jsonl", records)
    assert place.run("ingest", str(path)).code == 0


def send_a_command(place: Place, run: EtlProcess) -> None:
    """Ask the live run for something; it dies while answering."""
    # What is asked before a run has begun was meant for another one.
    begun = "SELECT 1 FROM runs WHERE stages = 'fetch' AND ended_at IS NULL"
    wait_for(lambda: place.program.rows(begun), 60)
    control.send(place.state, control.RESUME, patience_s=0)
    run.wait(90)


def remove_working_copies(place: Place, run: EtlProcess) -> None:
    """Take each working copy away before its source is committed, as an eviction beside the run may."""
    deadline = time.monotonic() + 60
    while run.process.poll() is None and time.monotonic() < deadline:
        for file in place.state.glob("images/working/*/*.jpg"):
            file.unlink(missing_ok=True)
        time.sleep(0.005)
    run.wait(30)


def pretend_a_gpu(place: Place) -> None:
    tool = place.directory / "nvidia-smi"
    tool.write_text("#!/bin/sh\nwhile echo '0, 50, 100, 200, 75.5'; do sleep 0.2; done\n")
    tool.chmod(0o755)


def both(name: str, route: Route) -> dict[str, Route]:
    """Return the route to both sides of a commit."""
    return {f"{name}.before_commit": route, f"{name}.committed": route}


INGEST, FETCH, CAPTION, EXPORT = ("ingest", "MANIFEST"), ("fetch", "-q"), ("caption", "-q"), ("export", "OUT")
RESELECT = ("run", "-q", "--offset", "1")
AGAIN = ("retry-failed", "--flag", "repetition")
SLOW = "fetch.commit.before_commit=sleep:1.2@1+"

SPOILT = b"no picture"

DEAD = tuple(f"dead{number}" for number in range(20))
"""Keys of pictures on a host that gives no sign of life: enough of them for it to be parked."""

GIVE_UP = (("host_patience", 1), ("max_attempts", 100))

ROUTES: dict[str, Route] = {
    "schema.before_migrations": Route("new", INGEST),
    "schema.before_commit": Route("new", INGEST, later=3),
    "schema.migrated": Route("new", INGEST),
    "schema.versioned": Route("new", INGEST),
    **both("ingest.begin", Route("new", INGEST)),
    **both("ingest.batch", Route("new", INGEST, later=2)),
    **both("ingest.finish", Route("new", INGEST)),
    **both("recover", Route("ingested", INGEST)),
    **both("run.begin", Route("ingested", INGEST)),
    **both("fetch.release_all", Route("ingested", INGEST)),
    **both("caption.release_all", Route("ingested", INGEST)),
    **both("run.end", Route("ingested", INGEST)),
    "cache.prepared": Route("ingested", FETCH),
    **both("fetch.fail", Route("ingested", FETCH)),
    **both("fetch.claim", Route("ingested", FETCH, later=2)),
    "part.before_note": Route("ingested", FETCH, later=3),
    "part.noted": Route("ingested", FETCH, later=3),
    "part.before_write": Route("ingested", FETCH, later=5),
    "part.closed": Route("ingested", FETCH, later=3),
    "cache.before_fsync": Route("ingested", FETCH, later=3),
    "cache.before_rename": Route("ingested", FETCH, later=3),
    "cache.renamed": Route("ingested", FETCH, later=3),
    "cache.synced": Route("ingested", FETCH, later=3),
    "part.before_forget": Route("ingested", FETCH, later=9),
    **both("fetch.commit", Route("ingested", FETCH, later=2)),
    **both("fetch.hosts", Route("ingested", FETCH)),
    **both("run.heartbeat", Route("ingested", FETCH, later=2, also=SLOW)),
    **both("command.answer", Route("ingested", FETCH, beside=send_a_command, also=SLOW)),
    **both("fetch.postpone", Route("ingested", FETCH, prepare=ask_for_a_pause, after=answer_again)),
    **both(
        "fetch.give_up",
        Route("ingested", FETCH, prepare=add_a_dead_host, more=DEAD, settings=GIVE_UP),
    ),
    **both(
        "fetch.release",
        Route(
            "ingested", FETCH, beside=remove_working_copies, also="cache.synced=sleep:0.1@1+",
            settings=(("max_cache_size", 10**12),),
        ),
    ),
    **both("run.gpu_sample", Route("ingested", FETCH, prepare=pretend_a_gpu, also=SLOW)),
    **both("fetch.refresh", Route("fetched", ("fetch", "-q", "--refresh"), after=allow_everything_again)),
    **both("ingest.reselect", Route("ingested", RESELECT)),
    **both("caption.recipe", Route("fetched", CAPTION)),
    **both("caption.enqueue", Route("fetched", CAPTION)),
    **both("caption.claim", Route("fetched", CAPTION, later=2)),
    **both("caption.commit", Route("fetched", CAPTION, later=2)),
    **both("caption.fail", Route("fetched", CAPTION, prepare=spoil_a_working_copy, after=mend_the_working_copy)),
    **both("caption.lose", Route("fetched", CAPTION, prepare=lose_a_working_copy)),
    **both("run.engine_sample", Route("fetched", CAPTION, later=2)),
    "export.begun": Route("captioned", EXPORT),
    "export.before_fsync": Route("captioned", EXPORT),
    "export.before_rename": Route("captioned", EXPORT),
    "export.renamed": Route("captioned", EXPORT),
    "export.synced": Route("captioned", EXPORT),
    **both("export.row", Route("captioned", EXPORT)),
    **both("images.revive", Route("captioned", ("verify",), after=verify_again)),
    **both("images.requeue", Route("captioned", ("verify",), prepare=lose_a_working_copy, after=verify_again)),
    **both("images.drop_originals", Route("captioned", ("verify",), prepare=lose_an_original, after=verify_again)),
    **both("images.evict", Route("captioned", ("gc", "--originals"), after=collect)),
    "cache.before_remove": Route("captioned", ("gc", "--originals"), later=3, after=collect),
    **both("retry.dead", Route("captioned", ("retry-failed",))),
    **both("retry.again", Route("captioned", AGAIN, prepare=flag_two, after=allow_captions_again)),
}  # fmt: skip
"""How each failpoint is reached, in an order in which one state can be killed at one after the other."""


SOAK_ALONE = {
    "fetch.hosts": "it may be passed only when all pictures are there",
    "fetch.refresh": "every picture is asked for again",
    "run.begin": "nothing is in work", "run.end": "nothing is in work", "recover": "nothing is in work",
    "run.engine_sample": "the captions in flight would be taken for those that kill",
    "caption.recipe": "nothing is in work",
    "caption.fail": "the picture may have its caption already",
    "caption.lose": "the picture may have its caption already",
}  # fmt: skip
"""What the walk leaves out, beside all that takes a second or changes the keys, and why."""


def _is_in_walk(name: str, route: Route) -> bool:
    commit, _, side = name.rpartition(".")
    both_sides = {"ingest.batch", "fetch.commit", "caption.commit", "export.row"}
    slow = route.also or route.settings or route.prepare is ask_for_a_pause or route.command == RESELECT
    return not slow and commit not in SOAK_ALONE and (side != "committed" or commit in both_sides)


WALK = [name for name, route in ROUTES.items() if _is_in_walk(name, route)]


def kill_at(place: Place, name: str, passing: int = 1) -> None:
    """Let the process of the failpoint's route die there."""
    route = ROUTES[name]
    route.prepare(place)
    order = f"{name}=kill@{passing}"
    settings = dict(route.settings)
    with place.start(*route.command, failpoints=f"{order},{route.also}", **settings) as run:
        route.beside(place, run)
        ended = run.wait(90)
    assert ended.code == KILLED, f"{name}, passing {passing}, was not reached: {ended}"
    # Decoders end themselves when the run is gone; the lock went with it.
    if route.command in (FETCH, CAPTION):
        wait_for(lambda: not place.program.processes(), 30)
    place.check_output()
    place.ledger.look()
    route.after(place)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[World]:
    with FaultServer() as server:
        yield World.made(tmp_path_factory.mktemp("world"), server, zygote)


@pytest.fixture(scope="module")
def large_world(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[World]:
    """More records than one batch of an ingest takes."""
    with FaultServer() as server:
        yield World.made(tmp_path_factory.mktemp("large"), server, zygote, records=BATCH + 100)


def test_one_state_survives_death_at_many_failpoints(world: World) -> None:
    """Killed at one failpoint after the other, from the first ingest to the export, a state still ends whole."""
    place = world.place("walk")
    stage = "new"
    for name in WALK:
        route = ROUTES[name]
        if route.stage != stage:
            stage = route.stage
            place.go_on(stage)
        kill_at(place, name)
    place.complete()


@pytest.mark.soak
@pytest.mark.parametrize("name", ROUTES)
def test_a_state_survives_death_at_each_failpoint(
    request: pytest.FixtureRequest, tally: Tally, world: World, name: str
) -> None:
    """At its first passing and at a later one, each on a state of its own, which is then run to its end."""
    for passing in filter(None, (1, ROUTES[name].later)):
        if name.startswith("ingest.batch"):
            world = request.getfixturevalue("large_world")
        place = world.place(f"{name} {passing}", ROUTES[name].stage)
        tally.add("kills at failpoints", name, tried=1)
        kill_at(place, name, passing)
        place.complete(ROUTES[name].more, tally.take)
        tally.add("kills at failpoints", name, survived=1)


def test_every_failpoint_has_a_route() -> None:
    """None is left out of the two tests above, and none is known that is not there."""
    assert ROUTES.keys() == FAILPOINTS.keys()
