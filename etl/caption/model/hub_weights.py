"""How large a model's weights are, and how much of them is still to come, before anything of them is fetched."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub import constants

from etl.caption.model.checkpoint import Checkpoint, one_line
from etl.caption.model.files import named_weights
from etl.caption.model.weights import ITEM_BYTES, weight_bytes
from etl.errors import DiskFullError, ModelError
from etl.units import size

_FILES = "*.safetensors"

ANSWER_S = 20.0
"""Longest wait for the hub's list of files."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What is known of a model's weights.

    Attributes:
        name: the model.
        values: numbers in them; 0 where that is not known before they are here.
        missing: bytes that are still to be fetched.
        folder: where those go.
    """

    name: str
    values: int
    missing: int = 0
    folder: Path = Path(constants.HF_HUB_CACHE)

    def in_memory(self, dtype: str) -> int:
        """Return the bytes that they take as ``dtype`` (``auto``: half precision)."""
        return ITEM_BYTES.get(dtype, 2) * self.values

    @property
    def free(self) -> int:
        """Bytes free on the disk that the missing ones go to."""
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def require_room(self) -> None:
        """Raise `DiskFullError` where the disk cannot take what is missing."""
        if self.missing and self.missing > self.free:
            raise DiskFullError(
                f"the weights of {self.name} take {size(self.missing)} more, and {self.folder} has {size(self.free)} "
                "left"
            ).with_cure("make room there, or set HF_HOME to a directory on a larger disk")


def weights_of(checkpoint: Checkpoint) -> Weights:
    """Return what is known of the weights; the hub is asked only where some of its are not here yet.

    Raises `ModelError` where it does not answer then, and for weights that are corrupt.
    """
    name, folder = checkpoint.name, checkpoint.folder
    if is_here(checkpoint):
        return Weights(name, weight_bytes(folder, "float16") // ITEM_BYTES["float16"])
    try:
        found = huggingface_hub.HfApi().model_info(
            name, revision=checkpoint.commit, files_metadata=True, timeout=ANSWER_S
        )
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        said = f"the weights of {name} are not (wholly) in the local cache, and the hub does not answer"
        wanted = ModelError(f"{said}: {one_line(error)}")
        raise wanted.with_cure("connect once, or copy the model here and give its directory") from error
    files = {one.rfilename: one.size or 0 for one in found.siblings or () if Path(one.rfilename).match(_FILES)}
    missing = sum(of for file, of in files.items() if "/" not in file and not (folder / file).exists())
    return Weights(name, found.safetensors.total if found.safetensors else 0, missing)


def is_here(checkpoint: Checkpoint) -> bool:
    """Return whether nothing of a model's weights is still to be fetched."""
    folder = checkpoint.folder
    if checkpoint.commit is None:
        return True
    wanted = named_weights(checkpoint.name, folder)
    return all((folder / Path(file).name).exists() for file in wanted) if wanted else any(folder.glob(_FILES))
