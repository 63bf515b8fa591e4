"""States in each stage of their life, to be copied, killed, and run to completion."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.common_check import Exported, check_state
from support.etl_process import Ended, EtlProcess, Program
from support.fault_server import Exchange, FaultServer, ok, status
from support.ledger import Ledger
from support.workbench import scenes, write_manifest
from support.zygote import Zygote

BODY = 70_000
"""Bytes of every other picture: enough for its download to be worth resuming.  The others stay in memory."""

STAGES = ("new", "ingested", "fetched", "captioned")
"""How far a state has come; ``captioned`` ones are exported too."""


@dataclass(frozen=True)
class World:
    """A server with pictures, one of which is gone, and a manifest of them.

    Attributes:
        keys: of the records, in the order of the manifest; the last one's picture is gone.
        hold_s: seconds before each picture is answered with.
    """

    directory: Path
    server: FaultServer
    zygote: Zygote
    manifest: Path
    keys: list[str]
    pictures: int
    hold_s: float

    @classmethod
    def made(
        cls, directory: Path, server: FaultServer, zygote: Zygote, *, records: int = 13, pictures: int = 12,
        hold_s: float = 0.01,
    ) -> "World":  # fmt: skip
        """Serve so many pictures, each after a moment, and write a manifest of so many records."""
        bodies = [body.ljust(BODY * (number % 2), b"\0") for number, (_, body) in enumerate(scenes(pictures))]
        urls = [server.add(f"/{number}.jpg", body) for number, body in enumerate(bodies)]
        keys = [f"r{number}" for number in range(records)]
        lines = [{"id": key, "url": urls[number % pictures]} for number, key in enumerate(keys)]
        lines[-1]["url"] = server.url("/gone.jpg")
        manifest = write_manifest(directory / "manifest.jsonl", lines)
        world = cls(directory, server, zygote, manifest, keys, pictures, hold_s)
        world.serve()
        return world

    def serve(self) -> None:
        """Answer as at the beginning, whatever was changed since."""

        def held(exchange: Exchange) -> None:
            exchange.closing.wait(self.hold_s)
            ok(exchange)

        for number in range(self.pictures):
            self.server.fail(f"/{number}.jpg", held)
        self.server.fail("/gone.jpg", status(404))

    def place(self, name: str, stage: str = "new") -> "Place":
        """Return a state of its own that has come so far; each stage is made once and then copied."""
        made = self.directory / "made" / stage
        place = Place(self, self.directory / name)
        place.directory.mkdir()
        if stage == "new":
            return place
        if not made.exists():
            before = self.place(f"before {stage}", STAGES[STAGES.index(stage) - 1])
            before.go_on(stage)
            shutil.copytree(before.state, made)
        shutil.copytree(made, place.state)
        place.ledger.look()
        return place


class Place:
    """One state directory of a world.

    Attributes:
        ledger: knows what was done already.
    """

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.directory = directory
        self.output = directory / "out.jsonl"
        self.program = self.with_settings()
        self.state = self.program.state
        self.ledger = Ledger(self.program, world.server)

    def with_settings(self, **settings: object) -> Program:
        """Return the program with other settings, on this state."""
        values: dict[str, object] = {"keep_originals": True, "batch_size": 4, "allow_host": "127.0.0.1,localhost"}
        # A test may put programs of its own beside the state.
        variables = {"PATH": f"{self.directory}{os.pathsep}{os.environ['PATH']}"}
        return Program(self.directory, zygote=self.world.zygote, variables=variables, **(values | settings))

    def command(self, words: tuple[str, ...]) -> list[str]:
        """Return a command with the names of the manifest and of the export in it."""
        names = {"MANIFEST": str(self.world.manifest), "OUT": str(self.output)}
        return [names.get(word, word) for word in words]

    def run(self, *words: str, failpoints: str = "") -> Ended:
        """Run one command to its end, and look at what is done then."""
        ended = self.program.run(*self.command(words), failpoints=failpoints)
        self.ledger.look()
        return ended

    def start(self, *words: str, failpoints: str = "", **settings: object) -> EtlProcess:
        """Start a command."""
        return self.with_settings(**settings).start(*self.command(words), failpoints=failpoints)

    def go_on(self, stage: str) -> None:
        """Bring a state to its next stage."""
        commands = {
            "ingested": [("ingest", "MANIFEST")], "fetched": [("fetch", "-q")],
            "captioned": [("caption", "-q"), ("export", "OUT")],
        }  # fmt: skip
        for words in commands[stage]:
            ended = self.run(*words)
            assert ended.code in (0, 3), ended.stderr

    def complete(self, more: tuple[str, ...] = (), count: Callable[["Place"], None] = lambda _: None) -> Exported:
        """Run everything once more, and check all that must hold then; ``more`` are keys beyond the manifest's.

        ``count`` is called between the two, so that a table also shows what is wrong.
        """
        ended = self.run("run", "-q", "--input", "MANIFEST", "--output", "OUT")
        assert ended.code == 3, f"{ended.code}: {ended.stderr}"
        count(self)
        keys = [*self.world.keys, *more]
        exported = check_state(self.state, output=self.output, keys=keys, program=self.program)
        assert exported is not None
        assert list(exported.failed) == [self.world.keys[-1], *more]
        assert self.ledger.downloaded_again() == 0
        assert self.ledger.captioned_again() == 0
        assert not list(self.directory.rglob("*.part"))
        return exported

    def check_output(self) -> None:
        """An export is whole or not there, at whatever moment its writer died."""
        if self.output.exists():
            assert self.exported_keys()[: len(self.world.keys)] == self.world.keys

    def exported_keys(self) -> list[str]:
        """Return the keys in the export."""
        return [json.loads(line)["id"] for line in self.output.read_text(encoding="utf-8").splitlines()]
