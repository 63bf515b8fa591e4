"""SIGKILL at random moments of every command: nothing lost, nothing done twice."""

import contextlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from support.etl_process import Ended, EtlProcess
from support.fault_server import FaultServer
from support.places import Place, World
from support.tally import Tally
from support.watching import wait_for
from support.zygote import Zygote

COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest", "MANIFEST"),
    "fetch": ("fetch", "-q"),
    "caption": ("caption", "-q"),
    "run": ("run", "-q", "--input", "MANIFEST", "--output", "OUT"),
    "export": ("export", "OUT"),
    "verify": ("verify", "--deep"),
    "retry-failed": ("retry-failed",),
}
"""Every command that writes, in the order in which a state is brought through them."""

ENDS = (0, 3, 128 + signal.SIGKILL)
"""Exit codes: done, done but for the picture that is gone, killed."""


@dataclass
class Campaign:
    """One state that is killed in one command after the other, and run to its end in between.

    Attributes:
        killed: kills that hit a living process, by command.
        spans: seconds that each command lasts, as far as known; kills are drawn from all of it.
    """

    place: Place
    rng: random.Random
    tally: Tally
    killed: Counter[str] = field(default_factory=Counter)
    spans: dict[str, float] = field(default_factory=dict)

    def run(self, kills: dict[str, int]) -> None:
        """Kill each command so many times, then let it end."""
        for name, number in kills.items():
            for _ in range(3 * number):
                if self.killed[name] < number:
                    self.kill_once(name, self.rng.random() < 0.3)
            assert self.killed[name] == number, f"too few of the kills hit a live {name}"
            ended = self.place.run(*COMMANDS[name])
            assert ended.code in ENDS[:2], ended.stderr

    def kill_once(self, name: str, watched: bool) -> None:
        """Start the command and kill it at a random moment; maybe look on with `etl status` meanwhile."""
        begun = time.monotonic()
        with self.place.start(*COMMANDS[name]) as run:
            moment = begun + self.rng.uniform(0, self.spans.get(name, 0.5))
            with self._onlooker(watched):
                while time.monotonic() < moment and run.process.poll() is None:
                    time.sleep(0.001)
                if run.process.poll() is None:
                    run.send(signal.SIGKILL)
                ended = run.wait()
        if ended.code == 128 + signal.SIGKILL:
            self.killed[name] += 1
            self.tally.add("random kills", name, tried=1)
        else:
            self.spans[name] = time.monotonic() - begun
        self.check(ended)

    @contextlib.contextmanager
    def _onlooker(self, watched: bool) -> Iterator[None]:
        if not watched:
            yield
            return
        with self.place.start("status", "--json") as status:
            yield
            ended = status.wait()
        # Before the first ingest there is no state, or none of its tables yet; that is one clear line.
        assert ended.code == 0 or (ended.code in (1, 2) and ended.stderr.startswith("error:")), ended
        assert "Traceback" not in ended.stderr, ended.stderr
        if ended.code == 0:
            assert json.loads(ended.stdout)["sources"] is not None

    def check(self, ended: Ended) -> None:
        """What must hold after every end, by whatever moment: a sound database, and no process left over."""
        assert ended.code in ENDS, ended.stderr
        assert "Traceback" not in ended.stderr
        wait_for(lambda: not self.place.program.processes(), 30)
        if self.place.program.rows("SELECT 1 FROM sqlite_master WHERE name = 'captions'"):
            assert self.place.program.rows("PRAGMA quick_check") == [("ok",)]
        self.place.check_output()
        self.place.ledger.look()

    def end(self) -> None:
        """Run everything once more and check the whole; only then did the state survive its kills."""
        self.place.complete(count=self.tally.take)
        for name, number in self.killed.items():
            self.tally.add("random kills", name, survived=number)


QUICK = {"ingest": 1, "fetch": 2, "caption": 2, "run": 1, "export": 1, "verify": 1, "retry-failed": 1}

SOAK = {"ingest": 11, "fetch": 12, "caption": 6, "run": 5, "export": 7, "verify": 5, "retry-failed": 4}
"""50 kills of one state; ten states make 500."""


def test_a_state_survives_random_kills(tmp_path: Path, server: FaultServer, zygote: Zygote) -> None:
    """However often and wherever it is killed, each record is exported once, and no finished work is done again."""
    world = World.made(tmp_path, server, zygote, records=400, pictures=24)
    campaign = Campaign(world.place("state"), random.Random(4), Tally(0))
    campaign.run(QUICK)
    campaign.end()


@pytest.fixture(scope="module")
def large_world(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[World]:
    """Enough records for three batches of an ingest, and pictures for some seconds of a fetch."""
    with FaultServer() as server:
        yield World.made(tmp_path_factory.mktemp("large"), server, zygote, records=12_001, pictures=60, hold_s=0.1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_ten_states_survive_five_hundred_random_kills(large_world: World, tally: Tally, seed: int) -> None:
    """The same with fifty kills for each state."""
    campaign = Campaign(large_world.place(f"state {seed}"), random.Random(seed), tally)
    campaign.run(SOAK)
    campaign.end()


def kill_a_child(run: EtlProcess, rng: random.Random, *, starting: bool) -> bool | None:
    """Kill one of the processes that a run has started; return whether it was still starting, ``None`` for no kill.

    Decoders make themselves nicer than the run as their first act.
    """
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        child = rng.choice(run.family())
        young: bool = child.nice() <= psutil.Process(run.process.pid).nice()
        if starting or not young:
            child.kill()
            return young
    return None


@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        ("fetch", 2),
        pytest.param("fetch", 30, marks=pytest.mark.soak),
        pytest.param("caption", 20, marks=pytest.mark.soak),
    ],
)
def test_a_run_survives_the_death_of_its_children(
    tmp_path: Path, server: FaultServer, zygote: Zygote, tally: Tally, stage: str, kills: int
) -> None:
    """Decoders and feeders die, the run goes on with others, and no picture is lost for it."""
    rng = random.Random(kills)
    world = World.made(tmp_path, server, zygote, records=2 + 2 * kills, pictures=1 + 2 * kills, hold_s=kills / 60)
    place = world.place("state", "fetched" if stage == "caption" else "ingested")
    killed = starting = 0
    with place.start(*COMMANDS[stage], decoders=2, feeders=2) as run:
        while killed < kills and run.process.poll() is None:
            time.sleep(rng.uniform(0.02, 0.2))
            # Three deaths in a row while they start would rightly end the run.
            young = kill_a_child(run, rng, starting=starting < 2)
            killed += young is not None
            starting += young is True
        ended = run.wait(120)
    assert ended.code == 3, ended.stderr
    assert killed
    dead = place.program.rows("SELECT count(*) FROM sources WHERE status = 'dead'")
    assert dead == [(1,)], "a picture was given up for the death of a process that was killed"
    place.ledger.look()
    if kills > 2:
        tally.add("kills of children", stage, tried=killed)
        place.complete(count=tally.take)
        tally.add("kills of children", stage, survived=killed)
