"""An image loader: does with working copies what a plan says, one at a time, as `etl.caption.pictures.loader` asks.

Starting one must stay cheap: neither this module nor what it imports may import torch, transformers or numpy.
"""

import json
import os
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

from etl.caption.pictures.plan import Plan
from etl.errors import CacheUnreadableError, GenerationError, WorkingCopyError
from etl.images.working_copies import open_working_copy
from etl.processes import Parent

READY = b"ready"
"""Sent once: it can be sent pictures."""

PREPARED, DAMAGED, UNREADABLE, REFUSED = b"p", b"d", b"u", b"r"
"""First byte of each answer, before what the plan gives, or what is wrong: with the working copy, with reading any, or
with the picture, for this model."""

KINDS = {WorkingCopyError: DAMAGED, CacheUnreadableError: UNREADABLE, GenerationError: REFUSED}

NICENESS = 2
"""Behind the thread that drives the GPU, before the decoders, which may wait."""


def main(_: dict[str, Any], parent: Parent) -> None:
    """Take a plan, which the process that has started this one has pickled, then answer each path and text that come.

    Whatever is not the picture's fault ends the process.
    """
    os.nice(NICENESS)
    plan: Plan = pickle.loads(parent.recv())
    Image.preinit()
    parent.send(READY)
    while True:
        path, text = json.loads(parent.recv())
        try:
            answer = PREPARED + plan.prepare(open_working_copy(Path(path)), text)
        except tuple(KINDS) as error:
            answer = KINDS[type(error)] + str(error).encode(errors="backslashreplace")
        parent.send(answer)
