"""A captioning worker whose GPU has no memory for more than two slots, and that only a new process can tell."""

import json
from collections.abc import Mapping
from typing import Any

from etl.caption.gpus import worker as gpu_worker
from etl.caption.recipe import Recipe
from etl.processes import Parent


def main(config: Mapping[str, Any], parent: Parent) -> None:
    """Be a captioning worker, or end with the first item in hand, for want of memory."""
    slots = config["settings"]["slots"]
    if slots <= 2:
        return gpu_worker.main(config, parent)
    for message in (
        {"busy": [slots, 0]},
        {
            "ready": Recipe(
                model="demo", revision="", engine="slots", dtype="float32", preprocessing={}, generation={}
            ).to_json()
        },
    ):
        parent.send(json.dumps(message).encode())
    parent.recv()
    return parent.send(json.dumps({"scarce": "the GPU failed: CUDA error: out of memory"}).encode())
