"""What the host sees of the slots between two steps."""

from collections.abc import Sequence

import torch

from etl.caption.model import cuda


class Reading:
    """A copy of the slots' state on the host: complete once `wait` returns."""

    def __init__(self, iteration: int, tensors: Sequence[torch.Tensor], *, beside: bool) -> None:
        """With ``beside``, the copy is made on a GPU, whenever that gets to it."""
        self.iteration = iteration
        self._copies = cuda.to_host(tensors) if beside else [tensor.clone() for tensor in tensors]
        self._copied = cuda.mark() if beside else None

    def wait(self) -> list[torch.Tensor]:
        """Return the copies once they are whole."""
        if self._copied is not None:
            cuda.wait(self._copied)
        return self._copies
