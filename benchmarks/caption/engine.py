"""Measure captioning on this machine's GPU: the plain script, `generate()` in batches, the slot engine; one command.

    python -m benchmarks.caption.engine --manifest manifest_clean.jsonl.gz --seconds 20 --soak 3000 --json figures.json
    python -m benchmarks.caption.engine --lease --json figures.json     # what can be learnt of a card in eight minutes
    python -m benchmarks.caption.engine --tiny     # a smoke test: the same rows on the CPU, with the model that ships

No weights are needed: the model has LLaVA-1.5's shapes and random numbers, its captions end at drawn lengths.  The
ceilings of the card are measured in the same run, so a share of the roofline is a share of what this card can do.
After every row the figures so far are written to the file, so a run that is cut short has not been in vain.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.caption.benchmark import Benchmark
from benchmarks.caption.lease import Lease
from benchmarks.caption.ways import WAYS
from etl.gpu import allocator_environment
from etl.images.cache import ImageCache


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments; what is wrong with them ends the program with one line."""
    parser = argparse.ArgumentParser(description="Measure captioning on this machine's GPU, or with --tiny on its CPU.")
    parser.add_argument("--manifest", type=Path, help="records to take prompts from (default: made-up ones)")
    parser.add_argument("--size", choices=("7b", "13b"), default="7b", help="of the model (default: 7b)")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="default: float16")
    parser.add_argument("--tiny", action="store_true", help="the model that ships, in float32 on the CPU")
    parser.add_argument("--lease", action="store_true", help="checks, rows and candidates for speed, in 8 minutes")
    parser.add_argument("--rows", nargs="+", choices=list(WAYS), default=list(WAYS), help="default: all")
    parser.add_argument(
        "--seconds", type=float, help="for each row after its warm-up (default: 20, with --lease 10, with --tiny 1)"
    )
    parser.add_argument("--pictures", type=int, help="different ones (default: 256, with --tiny 32)")
    parser.add_argument("--max-new-tokens", type=int, help="longest caption (default: 200, with --tiny 32)")
    parser.add_argument("--slots", type=int, default=0, help="of the slot engine (default: as many as fit)")
    parser.add_argument("--compare", type=int, default=8, help="captions compared with generate() (default: 8)")
    parser.add_argument("--capped", type=int, default=128, help="captions under the memory cap (default: 128)")
    parser.add_argument("--soak", type=int, default=0, help="captions of the run that watches memory (default: none)")
    parser.add_argument("--directory", type=Path, help="where the pictures go (default: a temporary directory)")
    parser.add_argument("--json", type=Path, help="write the figures here, after every row")
    arguments = parser.parse_args(given)
    for name, (full, tiny) in {
        "seconds": (10.0 if arguments.lease else 20.0, 1.0),
        "pictures": (256, 32),
        "max_new_tokens": (200, 32),
    }.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, tiny if arguments.tiny else full)
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny runs the same rows on the CPU")
    if arguments.manifest and not arguments.manifest.is_file():
        parser.error(f"there is no manifest {arguments.manifest}")
    return arguments


def main(given: list[str] | None = None) -> int:
    """Run the benchmark; return 1 when a row failed or a check does not hold."""
    arguments = parse(given)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="caption-engine-", dir=arguments.directory) as directory:
        benchmark = (Lease if arguments.lease else Benchmark)(arguments, ImageCache(Path(directory)))
        benchmark.run()
    return int(benchmark.failed())


if __name__ == "__main__":
    if missing := allocator_environment(os.environ):
        # As the product starts its processes: too late for this one, which has torch already.
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], os.environ | missing)
    sys.exit(main())
