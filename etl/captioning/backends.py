"""Choosing the backend that captions."""

from collections.abc import Callable
from pathlib import Path

from etl.captioning.captioner import Captioner
from etl.config import Settings


def open_captioner(settings: Settings, locate: Callable[[str], Path], longest_edge: int) -> Captioner:
    """Load the model and return its captioner.

    ``locate`` maps a working copy's hash to its file; ``longest_edge`` is what the copies were made with, in pixels.

    Raises `ModelError` when the model cannot be found, loaded or driven.
    """
    # Seconds and hundreds of megabytes: paid only by who captions.
    from etl.captioning.generate import GenerateCaptioner
    from etl.captioning.loading import load

    return GenerateCaptioner(load(settings), settings, locate, longest_edge=longest_edge)


def check_model(settings: Settings) -> None:
    """Raise `ModelError` at once for a model that cannot be found, before anything slow begins.

    A model of the hub has its small files fetched by this, if they are not cached.
    """
    from etl.captioning.checkpoint import find_checkpoint

    find_checkpoint(settings.model, settings.revision)
