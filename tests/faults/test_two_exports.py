"""Two exports to one place at once, stopped at any moment: what is there is one whole export, nothing lies beside it.

Two states are exported, of unlike manifests, so that a mixture of both, or a part of one, cannot be taken for either.
"""

import gzip
import hashlib
import json
import random
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.etl_process import Ended, Program
from support.made_state import MadeState
from support.tally import Tally
from support.watching import wait_for
from support.zygote import Zygote

REAL_MANIFEST = Path(__file__).parents[2].parent / "shared" / "data" / "manifest_clean.jsonl.gz"
ENDS = {0, 4, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
"""Exit codes: written, somebody else was writing, killed, stopped."""


@dataclass(frozen=True)
class Pair:
    """Two states, and the place that both are exported to.

    Attributes:
        programs: one for each state.
        contents: what each exports as JSON Lines.
    """

    programs: tuple[Program, Program]
    contents: tuple[bytes, bytes]
    target: Path

    @classmethod
    def made(cls, directory: Path, zygote: Zygote, content: bytes) -> "Pair":
        """Ingest the manifest, and its second half, into a state of its own each."""
        half = b"".join(content.splitlines(keepends=True)[content.count(b"\n") // 2 :])
        programs = []
        for name, manifest in (("whole", content), ("half", half)):
            (directory / name).mkdir()
            state = MadeState(directory / name).ingest(manifest) and directory / name / "state"
            programs.append(Program(directory, zygote=zygote, state=state))
        (directory / "there").mkdir()
        return cls((programs[0], programs[1]), (content, half), directory / "there" / "out")

    def stopped_once(self, rng: random.Random, span_s: float, *words: object) -> list[Ended]:
        """Start the command on both states, and stop none, one or both of them at a random moment."""
        with ExitStack() as stack:
            begun = time.monotonic()
            # Held for a moment, so that the two meet also where one of them is quick.
            held = [f"export.before_rename=sleep:{rng.uniform(0, span_s / 2):.2f}" for _ in self.programs]
            runs = [
                stack.enter_context(program.start(*words, failpoints=order))
                for program, order in zip(self.programs, held, strict=True)
            ]
            for run in rng.sample(runs, rng.randrange(3)):
                time.sleep(max(0.0, begun + rng.uniform(0, span_s) - time.monotonic()))
                if run.process.poll() is None:
                    run.send(rng.choice((signal.SIGKILL, signal.SIGTERM)))
            ended = [run.wait(120) for run in runs]
        for one in ended:
            assert one.code in ENDS and "Traceback" not in one.stderr, one.stderr
            assert one.code != 4 or (one.stderr.startswith("error: another command is writing") and one.stdout == "")
        return ended

    def beside(self) -> set[str]:
        """Return the names of what lies beside the target."""
        return {path.name for path in self.target.parent.iterdir()} - {self.target.name}


def some_manifest(records: int) -> bytes:
    """Return a manifest of so many records."""
    return b"".join(b'{"id": "k%d", "url": "http://a.example/%d.jpg"}\n' % (n, n) for n in range(records))


def real_manifest() -> bytes:
    """Return the archive's manifest."""
    if not REAL_MANIFEST.exists():
        pytest.skip("the real manifest does not lie beside this checkout")
    return gzip.decompress(REAL_MANIFEST.read_bytes())


WRITERS = {
    "file": ("export", "TARGET"), "shards": ("export", "TARGET", "--shard-size", 10),
    "report": ("report", "-o", "TARGET"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_the_second_is_refused_and_what_the_dead_left_is_removed(
    tmp_path: Path, plain_zygote: Zygote, kind: str
) -> None:
    """While one writes, another state's export there ends with exit code 4; killed, the one leaves nothing for long."""
    pair = Pair.made(tmp_path, plain_zygote, some_manifest(40))
    words = [pair.target if word == "TARGET" else word for word in WRITERS[kind]]
    first, second = pair.programs
    with first.start(*words, failpoints="export.before_rename=sleep:60") as run:
        wait_for(lambda: list(pair.target.parent.rglob("*.part")), 30)
        refused = second.run(*words)
        assert (refused.code, refused.stdout) == (4, "")
        assert refused.stderr.startswith(f"error: another command is writing {pair.target}; ")
        assert refused.stderr.count("\n") == 1
        run.send(signal.SIGKILL)
        run.wait()
    assert list(pair.target.parent.rglob("*.part")), "the dead one left nothing: this shows nothing"
    assert second.run(*words).code == 0
    assert not list(pair.target.parent.rglob("*.part")) and not pair.beside()
    if kind == "file":
        assert pair.target.read_bytes() == pair.contents[1]


def test_of_two_exports_at_once_one_is_there_whole(tmp_path: Path, plain_zygote: Zygote) -> None:
    """Some rounds with stops at random moments: never a mixture, never a part."""
    pair, rng = Pair.made(tmp_path, plain_zygote, some_manifest(6000)), random.Random(3)
    for _ in range(6):
        ended = pair.stopped_once(rng, 0.6, "export", pair.target)
        assert not pair.target.exists() or pair.target.read_bytes() in pair.contents
        assert all(one.code != 0 for one in ended) or pair.target.exists()
    assert pair.programs[0].run("export", pair.target).code == 0
    assert pair.target.read_bytes() == pair.contents[0] and not pair.beside()


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "rounds"), [("file", 50), ("shards", 15), ("report", 15)])
def test_two_exports_of_the_real_manifest(
    tmp_path: Path, plain_zygote: Zygote, tally: Tally, kind: str, rounds: int
) -> None:
    """Whatever stops them and whenever: a file is one whole export, a shard is whole, a report has its end."""
    pair, rng = Pair.made(tmp_path, plain_zygote, real_manifest()), random.Random(7)
    words = [{"TARGET": pair.target, 10: 1000}.get(word, word) for word in WRITERS[kind]]
    begun = time.monotonic()
    assert pair.programs[0].run(*words, timeout_s=120).code == 0
    span_s = 1.2 * (time.monotonic() - begun)
    codes = []
    for _ in range(rounds):
        tally.add("two exports at once", kind, tried=1)
        codes += [one.code for one in pair.stopped_once(rng, span_s, *words)]
        if kind == "file":
            assert pair.target.read_bytes() in pair.contents
        elif kind == "report":
            assert pair.target.read_bytes().endswith(b"</html>\n")
        else:
            check_shards(pair.target, complete=False)
        tally.add("two exports at once", kind, survived=1)
    assert set(codes) == ENDS, "not every end was met: this shows less than it should"
    for program, content in zip(pair.programs, pair.contents, strict=True):
        assert program.run(*words, timeout_s=120).code == 0
        assert not list(pair.target.parent.rglob("*.part")) and not pair.beside()
        if kind == "file":
            assert pair.target.read_bytes() == content
        elif kind == "shards":
            assert check_shards(pair.target, complete=True) == content


def check_shards(directory: Path, *, complete: bool) -> bytes:
    """Assert that every shard that is there is whole, and in the end what the index says; return their lines."""
    index = json.loads((directory / ".shards.json").read_bytes())
    said = {shard["name"]: shard["sha256"] for shard in index["shards"]}
    shards = sorted(directory.glob("shard-*.jsonl"))
    for shard in shards:
        data = shard.read_bytes()
        assert data.count(b"\n") <= 1000 and data.endswith(b"\n")
        if complete:
            assert hashlib.sha256(data).hexdigest() == said[shard.name]
    if complete:
        assert index["complete"] and len(shards) == len(said)
    return b"".join(shard.read_bytes() for shard in shards)
