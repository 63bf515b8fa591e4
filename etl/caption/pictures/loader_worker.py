"""An image loader: turns working copies into pixels, one at a time, as `etl.caption.pictures.loader` asks for them.

Starting one must stay cheap: neither this module nor what it imports may import torch, transformers or numpy.
"""

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from etl.caption.pictures.pixels import PixelPlan, pixels
from etl.errors import CacheUnreadableError, WorkingCopyError
from etl.processes import Parent

READY = b"ready"
"""Sent once: it can be sent pictures."""

PIXELS, DAMAGED, UNREADABLE = b"p", b"d", b"u"
"""First byte of each answer, before the pixels, or before what is wrong with the working copy or with reading any."""

NICENESS = 2
"""Behind the thread that drives the GPU, before the decoders, which may wait."""


def main(config: dict[str, Any], parent: Parent) -> None:
    """Answer each path that comes; whatever is not the working copy's fault ends the process."""
    os.nice(NICENESS)
    plan = PixelPlan.from_json(config)
    Image.preinit()
    parent.send(READY)
    while True:
        path = Path(json.loads(parent.recv()))
        try:
            answer = PIXELS + pixels(path, plan)
        except WorkingCopyError as error:
            kind = UNREADABLE if isinstance(error, CacheUnreadableError) else DAMAGED
            answer = kind + str(error).encode(errors="backslashreplace")
        parent.send(answer)
