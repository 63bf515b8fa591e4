"""What the fuzz tests share: numbered inputs, ways to harm bytes, and the table of what was tried.

An input is made from its kind and its number alone, so that one that failed can be made again by itself:

    kind, number, rng = next(one for one in inputs(KINDS, 500) if one[:2] == ("cut", 37))
"""

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SOAK_FACTOR = 20
"""How many times the inputs of the quick profile the soak tries."""

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
"""Values at which counts and offsets of one, two, four and eight bytes turn over."""

Input = tuple[str, int, random.Random]
"""Kind, number, and the only source of chance."""


def inputs(kinds: Iterable[str], count: int) -> Iterator[Input]:
    """Yield ``count`` inputs, the kinds in turn."""
    names = list(kinds)
    for number in range(count):
        kind = names[number % len(names)]
        yield kind, number, random.Random(f"{kind} {number}")


def harmed(data: bytes, rng: random.Random, *, most: int = 4) -> bytes:
    """Return the bytes with up to ``most`` bits flipped, bytes replaced, pieces cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(out)) if out else 0
        end = at + min(rng.choice((1, 2, 4, 16, 200)), len(out) - at)
        match rng.randrange(7):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at:end] = rng.randbytes(end - at)
            case 2:
                del out[at:end]
            case 3:
                out[at:at] = out[at:end]
            case 4:
                out[at:at] = rng.choice(
                    (b"\0", b"\xff", b'"', b"\\", b"{", b"[", b"\r\n", b"\x1b[31m", b"\xed\xa0\x80")
                )
            case 5:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) % 256**size
                out[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case _:
                del out[at:]
    return bytes(out)


@dataclass
class _Row:
    """What became of the inputs of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = 0


@dataclass
class Tally:
    """What became of all inputs of one module.

    Attributes:
        name: of what was fed.
        memory: the largest resident size that handling them took, in bytes.
    """

    name: str
    rows: dict[str, _Row] = field(default_factory=dict)
    memory: int = 0

    @contextmanager
    def trying(self, kind: str, number: int) -> Iterator[list[str]]:
        """Measure one input; the block puts what became of it into the list.  What it raises fails the test."""
        row = self.rows.setdefault(kind, _Row())
        begun, outcome = time.monotonic(), list[str]()
        try:
            yield outcome
        # Not what was cancelled because another input failed.
        except Exception as error:
            row.outcomes["NOT HANDLED"] += 1
            error.add_note(f"{self.name}: input {number} of the kind {kind!r}")
            raise
        took = time.monotonic() - begun
        row.outcomes.update(outcome or ["?"])
        if took > row.slowest_s:
            row.slowest_s, row.slowest = took, number

    def lines(self) -> Iterator[str]:
        """Yield the table's lines."""
        for kind, row in sorted(self.rows.items()):
            tried = row.outcomes.total()
            handled = tried - row.outcomes["NOT HANDLED"]
            became = ", ".join(f"{name} {count}" for name, count in row.outcomes.most_common())
            yield f"{self.name:9} {kind:20} {tried:7,} {handled:8,}  {row.slowest_s:7.2f} s (#{row.slowest})  {became}"
        tried = sum(row.outcomes.total() for row in self.rows.values())
        yield f"{self.name:9} {'all':20} {tried:7,}  largest memory {self.memory / 2**20:,.0f} MiB"


HEADING = f"{'input':9} {'kind':20} {'tried':>7} {'handled':>8}  {'slowest':>9}  what became of them"


@contextmanager
def own_memory(tally: Tally) -> Iterator[None]:
    """Let the tally know how much more memory than at its beginning this process held inside the block."""
    before = _resident("VmRSS")
    # Begins the measure of the peak anew (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    yield
    tally.memory = max(tally.memory, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
