"""What captions: the backends by name.

A new one is a module of its own, its line in `BACKENDS`, and its name among those that the setting takes.
"""

from importlib import import_module
from typing import Protocol, cast

from etl.caption.captioner import Captioner
from etl.images.cache import ImageCache
from etl.settings import Settings

BACKENDS = {
    "local": "etl.caption.local",
    "openai": "etl.caption.openai.captioner",
    "ray": "etl.caption.ray.captioner",
}
"""The module of each backend, by the name that ``settings.backend`` takes; each is imported only when it is asked for,
as a model's libraries take seconds and hundreds of megabytes."""


class Backend(Protocol):
    """What the module of a backend offers."""

    def check(self, settings: Settings) -> None:
        """Raise `EtlError` at once for what cannot work, before anything slow begins."""

    def open_backend(self, settings: Settings, cache: ImageCache, longest_edge: int) -> Captioner:
        """Return a captioner that is ready to caption.

        ``cache`` holds the working copies; ``longest_edge`` is what they were made with, in pixels.

        Raises `ModelError` when the model cannot be found, loaded or driven.
        """


def backend(settings: Settings) -> Backend:
    """Return the backend that the settings name."""
    return cast(Backend, import_module(BACKENDS[settings.backend]))


def open_captioner(settings: Settings, cache: ImageCache, longest_edge: int) -> Captioner:
    """Return the captioner of ``settings.backend``; see `Backend.open_backend`."""
    return backend(settings).open_backend(settings, cache, longest_edge)


def check_model(settings: Settings) -> None:
    """Raise at once for a model, endpoint or cluster that cannot caption; see `Backend.check`."""
    backend(settings).check(settings)
