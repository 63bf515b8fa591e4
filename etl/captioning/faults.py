"""What a model or its processor may raise for one picture or prompt, and what that means."""

import torch

from etl.captioning.checkpoint import one_line
from etl.errors import CacheUnreadableError, CaptionError, FeederCrashedError, ModelError
from etl.models import CaptionItem, ItemFailure

BATCH_FAULTS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
"""What one picture or prompt can raise inside the processor or the model."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was short, of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "alloc_failed" in text


def gpu_failed(error: BaseException) -> ModelError:
    """Return what it means when CUDA itself has failed: only another process can use that GPU again."""
    return ModelError(f"the GPU failed and must be started afresh: {one_line(error)}; run again")


def failure(item: CaptionItem, error: CaptionError, started_at: int) -> ItemFailure:
    """Return the failure of an item that was begun at ``started_at``, Unix milliseconds."""
    return ItemFailure(
        item.id, error.slug, str(error), error.retryable, started_at, crashed=isinstance(error, FeederCrashedError),
        stops=isinstance(error, CacheUnreadableError),
    )  # fmt: skip
