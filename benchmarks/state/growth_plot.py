"""Draw how ingest, split and merge grow, from what `benchmarks.state.growth` has written.

    python -m benchmarks.state.growth_plot growth.jsonl benchmarks/state/growth.svg

Both axes are logarithmic, so what grows in proportion to the number of records is a line of slope one, such as the
grey ones.  Seconds of the processor are drawn: other work on the machine does not bend them as it does the clock's.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

STEPS = {"ingest": "ingest", "ingest_again": "ingest, nothing new", "split": "split in 3", "merge": "merge of 3",
         "merge_again": "merge, nothing new"}  # fmt: skip
PEAKS = ("ingest", "split", "merge")


def draw(sizes: list[dict[str, Any]], target: Path) -> None:
    """Draw seconds and peaks of memory over the number of records."""
    matplotlib.rcParams |= {"svg.hashsalt": "growth", "font.size": 9, "svg.fonttype": "none"}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    records = [size["records"] for size in sizes]
    for begin in (1e-2, 1e-1, 1e0):
        left.plot(records, [begin * count / records[0] for count in records], color="0.85", linewidth=0.8)
    for step, name in STEPS.items():
        left.plot(records, [size[f"{step}_cpu_s"] for size in sizes], marker="o", markersize=3, label=name)
    left.set(xscale="log", yscale="log", xlabel="records", ylabel="seconds of the processor", title="Time")
    left.legend(frameon=False)
    for step in PEAKS:
        right.plot(records, [size[f"{step}_peak"] / 2**20 for size in sizes], marker="o", markersize=3, label=step)
    right.set(xscale="log", ylim=(0, None), xlabel="records", ylabel="MiB", title="Peak of memory")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    # No date, so that the same figures give the same file.
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what benchmarks.state.growth has measured.")
    parser.add_argument("figures", type=Path, help="the file of JSON lines that it has written")
    parser.add_argument("target", type=Path, help="the SVG file to write")
    arguments = parser.parse_args()
    lines = arguments.figures.read_text(encoding="utf-8").splitlines()
    draw(sorted(map(json.loads, lines), key=lambda size: size["records"]), arguments.target)


if __name__ == "__main__":
    main()
