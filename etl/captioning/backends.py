"""Choosing the backend that captions."""

from collections.abc import Callable
from pathlib import Path

from etl.captioning.captioner import Captioner
from etl.config import Settings


def open_captioner(settings: Settings, locate: Callable[[str], Path]) -> Captioner:
    """Load the model and return its captioner; ``locate`` maps a working copy's hash to its file.

    Raises `ModelError` when the model cannot be found, loaded or driven.
    """
    # Seconds and hundreds of megabytes: paid only by who captions.
    from etl.captioning.generate import GenerateCaptioner
    from etl.captioning.loading import load

    return GenerateCaptioner(load(settings), settings, locate)
