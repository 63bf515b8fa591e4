"""What captions: the backends by name.

A new one is a module of its own, its line in `BACKENDS`, and its name among those that the setting takes.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

from etl.caption.captioner import Captioner
from etl.domain.views import Download
from etl.extras import require_model_libraries
from etl.gpu import find_cards, visible_cards
from etl.images.cache import ImageCache
from etl.settings import Settings
from etl.units import count

BACKENDS = {
    "local": "etl.caption.local",
    "openai": "etl.caption.openai.captioner",
    "ray": "etl.caption.ray.captioner",
    "vllm": "etl.caption.vllm.captioner",
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
    """Return the backend that the settings name.  Raises `ModelError` where its libraries are not installed."""
    try:
        return cast(Backend, import_module(BACKENDS[settings.backend]))
    except ModuleNotFoundError:
        require_model_libraries()
        raise


def open_captioner(settings: Settings, cache: ImageCache, longest_edge: int) -> Captioner:
    """Return the captioner of ``settings.backend``; see `Backend.open_backend`."""
    return backend(settings).open_backend(settings, cache, longest_edge)


def fetch_weights(settings: Settings, on_progress: Callable[[Download], None]) -> None:
    """Fetch what a model of this machine lacks, here and once, instead of in the process of each GPU.

    ``on_progress`` is told how far that is, from several threads.  Raises `ModelError`.
    """
    if settings.backend in ("local", "vllm"):
        from etl.caption.model.checkpoint import find_checkpoint

        checkpoint = find_checkpoint(settings.model, settings.revision)
        if checkpoint.commit is not None:
            checkpoint.with_weights(on_progress)


def device_in_words(settings: Settings, captioner: Captioner) -> str:
    """Return what captions: the GPUs, the CPU, endpoints or a cluster."""
    if settings.backend == "openai":
        return count(len(settings.endpoint), "endpoint")
    if settings.backend == "ray":
        return "Ray cluster"
    if settings.backend == "vllm":
        return "vLLM"
    from etl.caption.gpus.pool import GpuPool

    if not isinstance(captioner, GpuPool):
        return "MPS" if settings.device == "mps" else "CPU"
    cards = visible_cards(find_cards()[0], os.environ)
    workers, name = len(captioner.samples()), cards[0].name if cards else "GPU"
    return name if workers == 1 else f"{workers} x {name}"


def check_model(settings: Settings) -> None:
    """Raise at once for a model, endpoint or cluster that cannot caption; see `Backend.check`."""
    backend(settings).check(settings)
