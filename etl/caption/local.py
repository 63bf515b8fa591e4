"""Captioning with a model on this machine: in this process, or in one for each GPU."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from etl.caption.captioner import Captioner
from etl.errors import EtlError, ModelError
from etl.extras import require_model_libraries
from etl.gpu import may_have_gpu
from etl.images.cache import ImageCache
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.caption.model.loading import LoadedModel
    from etl.caption.slots.captioner import SlotCaptioner

log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Raise `ModelError` where captioning is not installed, for a GPU that cannot be used, and for a model that cannot
    be found, asks for too much or is too large for the GPUs; `DiskFullError` where its weights do not fit on the disk.

    A model of the hub has its small files fetched by this, if they are not cached.
    """
    require_model_libraries()
    from etl.caption.gpus.plan import chosen_gpus, fits_each
    from etl.caption.model.checkpoint import find_checkpoint
    from etl.caption.model.hub_weights import weights_of
    from etl.caption.model.vetting import vet

    gpus = chosen_gpus(settings) if settings.device != "auto" or may_have_gpu() else []
    checkpoint = find_checkpoint(settings.model, settings.revision)
    vet(checkpoint)
    weights = weights_of(checkpoint)
    weights.require_room()
    if gpus and weights.values:
        fits_each(settings, gpus, weights.in_memory(settings.dtype))


def open_backend(settings: Settings, cache: ImageCache, longest_edge: int) -> Captioner:
    """Load the model, in a process for each GPU there is; see `etl.caption.backends.Backend`."""
    from etl.caption.gpus.plan import plan_workers

    if plans := plan_workers(settings):
        from etl.caption.gpus.pool import GpuPool

        return GpuPool(settings, plans, cache.root, longest_edge)
    return open_local(settings, cache.working_path, longest_edge)


def open_local(
    settings: Settings, locate: Callable[[str], Path], longest_edge: int, *, spread: bool = False
) -> Captioner:
    """Load the model into this process and return its captioner; raises `ModelError`.

    ``locate`` maps a working copy's hash to its file.  With ``spread``, the model's layers are divided among all GPUs.
    """
    # Seconds and hundreds of megabytes: paid only by who captions.
    from etl.caption.model.loading import load
    from etl.caption.model.resolution import advice

    loaded = load(settings, spread=spread)
    if said := advice(loaded.name, loaded.processor.image_processor, longest_edge):
        log.info(said)
    return choose_engine(loaded, settings, locate, longest_edge)


def choose_engine(
    loaded: "LoadedModel", settings: Settings, locate: Callable[[str], Path], longest_edge: int
) -> Captioner:
    """Return the captioner that ``settings.engine`` names; with ``auto``, slots where they give the model's own words.

    Raises `ModelError` when slots were asked for and cannot be had.
    """
    from etl.caption.generate.captioner import GenerateCaptioner

    if settings.engine != "generate":
        captioner, reason = _slots(loaded, settings, locate, longest_edge)
        if captioner is not None:
            return captioner
        if settings.engine == "slots":
            raise ModelError(f"the slot engine cannot drive {loaded.name}: {reason}; use --engine auto or generate")
        log.warning("captioning %s with generate(), not with slots: %s", loaded.name, reason)
    return GenerateCaptioner(loaded, settings, locate, longest_edge=longest_edge)


def _slots(
    loaded: "LoadedModel", settings: Settings, locate: Callable[[str], Path], longest_edge: int
) -> "tuple[SlotCaptioner | None, str]":
    """Return a slot captioner, or why there can be none."""
    from etl.caption.gpus.checks import fault_at_start
    from etl.caption.model.checkpoint import one_line
    from etl.caption.model.faults import short_of_memory
    from etl.caption.slots.captioner import SlotCaptioner
    from etl.caption.slots.support import differs, why_not

    if (reason := why_not(loaded)) is not None:
        return None, reason
    if loaded.device.type == "cuda" and (reason := fault_at_start(loaded)) is not None:
        return None, reason
    captioner = SlotCaptioner(loaded, settings, locate, longest_edge=longest_edge)
    try:
        reason = differs(loaded, loaded.max_aspect(settings))
    except EtlError:
        captioner.close()
        raise
    except Exception as error:
        # Whatever a library does not like about this machine or model; a GPU that is lost ends it all the same.
        short_of_memory(error, loaded.device)
        reason = f"the trial of a few words failed: {one_line(error)}"
    if reason is None:
        return captioner, ""
    captioner.close()
    return None, reason
