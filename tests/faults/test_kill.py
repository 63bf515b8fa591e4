"""SIGKILL at random moments of `etl run`, until it completes: nothing lost, nothing done twice."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.etl_process import Ended, EtlProcess, Program
from support.fault_server import Exchange, FaultServer, ok
from support.workbench import scenes, wait_for, write_manifest

PICTURES = 200
SHARED = 100
"""Records that name a picture of another record: a third of all."""

PHASES = ("start", "fetch", "load", "caption")

LOAD_S = 4.0
"""Roughly how long the demo model takes to load; kills of the phase "load" fall anywhere before."""


@dataclass
class Campaign:
    """One state directory that is killed again and again.

    Attributes:
        fetched: requests that each URL had seen when it was first found done.
        captioned: when and as what each finished caption was first found.
        killed: kills that hit a live process, by phase.
    """

    program: Program
    server: FaultServer
    command: tuple[object, ...]
    rng: random.Random
    fetched: dict[str, int] = field(default_factory=dict)
    captioned: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)

    def kill_once(self, phase: str, kills_left: int) -> None:
        """Start the run, kill it in a phase, and look at what it left."""
        with self.program.start(*self.command) as run:
            self._moment(run, phase, kills_left)
            if run.process.poll() is None:
                run.send(signal.SIGKILL)
                self.killed[phase] += 1
            self.check(run.wait())

    def _moment(self, run: EtlProcess, phase: str, kills_left: int) -> None:
        """Return at a random moment of the phase, or when the run has ended.

        Moments in the work are drawn by its progress, so that each kill lets some of the rest be done.
        """
        table = {"fetch": "sources", "caption": "captions"}.get(phase)
        if table is None:
            seconds = self.rng.uniform(0, 1.0 if phase == "start" else LOAD_S)
            self._wait(run, lambda: False, seconds)
            return
        done = self.program.count(table, "done")
        some = self.rng.randint(1, max(1, 2 * (PICTURES - done) // (kills_left + 1)))
        goal = min(done + some, PICTURES - 1)
        self._wait(run, lambda: self.program.count(table, "done") >= goal, 60)
        time.sleep(self.rng.uniform(0, 0.15))

    @staticmethod
    def _wait(run: EtlProcess, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and run.process.poll() is None and not condition():
            time.sleep(0.01)

    def check(self, ended: Ended) -> None:
        """What must hold after every end, by whatever moment: a sound database, and no process left over."""
        assert ended.code in (0, 128 + signal.SIGKILL), ended.stderr
        assert "Traceback" not in ended.stderr
        wait_for(lambda: not self.program.processes(), 10)
        if self.program.rows("SELECT 1 FROM sqlite_master WHERE name = 'captions'"):
            assert self.program.rows("PRAGMA quick_check") == [("ok",)]
            for (url,) in self.program.rows("SELECT url FROM sources WHERE status = 'done'"):
                path = url.removeprefix(self.server.base)
                self.fetched.setdefault(path, self.server.requests[path])
            for number, *rest in self.program.rows("SELECT id, text, done_at FROM captions WHERE status = 'done'"):
                self.captioned.setdefault(number, tuple(rest))

    def downloaded_again(self) -> int:
        """Return how many requests were for pictures that were done already."""
        return sum(self.server.requests[path] - seen for path, seen in self.fetched.items())

    def captioned_again(self) -> int:
        """Return how many finished captions were lost or made anew."""
        rows = self.program.rows("SELECT id, text, done_at FROM captions WHERE status = 'done'")
        now = {number: tuple(rest) for number, *rest in rows}
        return sum(now.get(number) != seen for number, seen in self.captioned.items())


def prepare(program: Program, server: FaultServer, hold_s: float, rng: random.Random) -> tuple[Path, list[str]]:
    """Serve the pictures, each after a moment, and write the manifest; return it and the keys in its order."""

    def held(exchange: Exchange) -> None:
        exchange.closing.wait(hold_s)
        ok(exchange)

    urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(PICTURES))]
    for n in range(PICTURES):
        server.fail(f"/{n}.jpg", held)
    chosen = urls + rng.sample(urls, SHARED)
    rng.shuffle(chosen)
    keys = [f"r{n}" for n in range(len(chosen))]
    records = [{"id": key, "url": url} for key, url in zip(keys, chosen, strict=True)]
    return write_manifest(program.directory / "manifest.jsonl", records), keys


@pytest.mark.parametrize(
    ("kills", "hold_s"), [(4, 0.02), pytest.param(30, 0.25, marks=pytest.mark.soak)], ids=["4-kills", "30-kills"]
)
def test_a_killed_run_loses_nothing_and_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kills: int, hold_s: float
) -> None:
    """However often it is killed, each record is exported once, and no finished work is done again."""
    rng = random.Random(kills)
    program = Program(tmp_path, batch_size=4, decoders=2)
    output = tmp_path / "out.jsonl"
    with FaultServer() as server:
        manifest, keys = prepare(program, server, hold_s, rng)
        command = ("run", "-q", "--input", manifest, "--output", output)
        campaign = Campaign(program, server, command, rng)
        phases = [PHASES[n % len(PHASES)] for n in range(kills)]
        rng.shuffle(phases)
        for n, phase in enumerate(phases):
            campaign.kill_once(phase, phases[n:].count(phase))
        last = program.run(*command, timeout_s=120)
        campaign.check(last)
        requests = server.requests.total()
    assert last.code == 0, last.stderr
    exported = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    lost = len(keys) - len({record["id"] for record in exported if record["vlm_caption"]})
    _print(capsys, campaign, requests, lost)
    assert [record["id"] for record in exported] == keys
    assert (lost, campaign.downloaded_again(), campaign.captioned_again()) == (0, 0, 0)
    assert campaign.killed.total() >= kills - 2, "too few of the kills hit a live run"
    _check_state(program)


def _check_state(program: Program) -> None:
    """Database sound, counters true, pictures whole, nothing held, nothing half written."""
    verified = program.run("verify", "--json")
    found = json.loads(verified.stdout)
    assert (verified.code, found["problems"]) == (0, [])
    assert (found["images"], found["missing"], found["damaged"]) == (PICTURES, 0, 0)
    assert program.rows("PRAGMA integrity_check") == [("ok",)]
    assert program.rows("PRAGMA foreign_key_check") == []
    for table in ("sources", "captions"):
        found = program.rows(f"SELECT status, count(*), count(lease_run) FROM {table} GROUP BY status")
        assert found == [("done", PICTURES, 0)]
    assert not list(program.directory.rglob("*.part"))


def _print(capsys: pytest.CaptureFixture[str], campaign: Campaign, requests: int, lost: int) -> None:
    [(crashed,)] = campaign.program.rows("SELECT count(*) FROM runs WHERE state = 'crashed'")
    by_phase = ", ".join(f"{phase} {campaign.killed[phase]}" for phase in PHASES)
    with capsys.disabled():
        print(
            f"\n  kills                {campaign.killed.total():>5}   ({by_phase})"
            f"\n  runs cut short       {crashed:>5}   (the other kills came before or between runs)"
            f"\n  requests             {requests:>5}   for {PICTURES} pictures"
            f"\n  downloaded again     {campaign.downloaded_again():>5}"
            f"\n  captioned again      {campaign.captioned_again():>5}"
            f"\n  records lost         {lost:>5}   of {PICTURES + SHARED}"
        )
