"""What a model or its processor may raise for one picture or prompt, and whether memory was short."""

import torch

from etl.caption.model import cuda
from etl.caption.model.checkpoint import one_line
from etl.errors import ModelError

BATCH_FAULTS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
"""What one picture or prompt can raise inside the processor or the model."""

_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed",
    # What libraries say who find no room for their handle or workspace.
    "cublas_status_not_initialized", "cudnn_status_not_initialized",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was short, of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _OUT_OF_MEMORY)


def short_of_memory(error: BaseException, device: torch.device) -> bool:
    """Return whether less at a time may help: memory was short, or CUDA failed in a way that it has survived.

    Raises `ModelError` when the device is lost: only another process can use it again.
    """
    if cuda.serves(device) and isinstance(error, RuntimeError) and not cuda.still_works(device):
        raise ModelError(f"the GPU failed and must be started afresh: {one_line(error)}; run again") from error
    # Out of memory comes as one of these, too, above all from recording and instantiating graphs.
    return is_out_of_memory(error) or isinstance(error, torch.AcceleratorError)
