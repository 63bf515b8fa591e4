"""Finds a model's files: on the hub or in its cache, in a directory, or the checkpoint that ships with the demo."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import huggingface_hub
import huggingface_hub.errors as hub_errors

from etl.caption.model.download import counting
from etl.caption.model.files import check_files, named_weights, tensors
from etl.caption.model.forms import other_form
from etl.domain.views import Download
from etl.errors import ModelError
from etl.settings import DEMO_MODEL, Settings
from etl.text import clean, nearest

log = logging.getLogger(__name__)

DEMO_CHECKPOINT = Path(__file__).parents[2] / "demo" / "tiny_llava" / "checkpoint"

_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
_WEIGHTS = "*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NOT_OURS = ("*/*", "consolidated*")
"""Files in subdirectories (original weights, other formats) and second copies of the weights are not loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files lie.

    Attributes:
        name: for the recipe: Hugging Face id, directory name or ``demo``.
        folder: holds configuration, tokenizer and processor, and after `with_weights` the weights.
        commit: of the hub's repository; ``None`` for a directory.
    """

    name: str
    folder: Path
    commit: str | None

    def with_weights(self, on_progress: Callable[[Download], None] = lambda _: None) -> None:
        """Fetch the weights that are not here yet; ``on_progress`` is told how far that is, from several threads.

        Raises `ModelError` when there are none in safetensors, or they are corrupt by their headers.
        """
        if self.commit is not None:
            _snapshot(self.name, self.commit, [_WEIGHTS], on_progress)
        check_files(self.name, self.folder)
        if gone := [file for file in named_weights(self.name, self.folder) if not (self.folder / file).is_file()]:
            raise ModelError(
                f"the weights of {self.name} are incomplete: {len(gone)} of their files are missing, such as "
                f"{clean(gone[0], 100)}; fetch them again"
            )
        if weights := list(self.folder.glob(_WEIGHTS)):
            for path in weights:
                deque(tensors(path), maxlen=0)
            return
        if other := other_form(self.name, self.folder):
            raise ModelError(other)
        if any(any(self.folder.glob(pattern)) for pattern in _PICKLES):
            raise ModelError(f"{self.name} has only pickled weights, which could run code; convert them to safetensors")
        raise ModelError(f"{self.name} has no safetensors weights; use a model or revision that has them")

    def revision(self) -> str:
        """Return the commit, or ``sha256:`` and 16 hex digits over names and contents of a directory's files.

        Hashing reads all weights, at 1 to 2 GB/s.
        """
        if self.commit is not None:
            return self.commit
        digest = hashlib.sha256()
        for path in sorted({path for pattern in (*_SMALL_FILES, _WEIGHTS) for path in self.folder.glob(pattern)}):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name}\0{content}\n".encode())
        return f"sha256:{digest.hexdigest()[:16]}"


def find_checkpoint(model: str, revision: str) -> Checkpoint:
    """Return the checkpoint of a Hugging Face id, a directory or ``demo``, without its weights.

    Raises `ModelError` when it cannot be found or fetched, or holds what nobody should open.
    """
    checkpoint = _find(model, revision)
    check_files(checkpoint.name, checkpoint.folder)
    return checkpoint


def cached_checkpoint(settings: Settings) -> Checkpoint | None:
    """Return what `find_checkpoint` does without asking the hub; ``None`` for a model that is not in its cache."""
    if _is_local(settings.model):
        return find_checkpoint(settings.model, settings.revision)
    try:
        found = huggingface_hub.snapshot_download(
            settings.model, revision=settings.revision, allow_patterns=list(_SMALL_FILES), local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return Checkpoint(settings.model, Path(found), Path(found).name)


def _is_local(model: str) -> bool:
    return model == DEMO_MODEL or model.startswith((".", "/", "~")) or _is_directory(Path(model).expanduser())


def _find(model: str, revision: str) -> Checkpoint:
    if model == DEMO_MODEL:
        return Checkpoint(DEMO_MODEL, DEMO_CHECKPOINT, None)
    folder = Path(model).expanduser()
    if _is_directory(folder):
        return Checkpoint(folder.resolve().name, folder, None)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise _unknown(
            f"there is no directory {clean(model, 200)}",
            model,
            f"give a Hugging Face id, a directory or '{DEMO_MODEL}'",
        )
    log.info("fetching %s@%s unless it is cached", model, revision)
    snapshot = _snapshot(model, revision, _SMALL_FILES)
    return Checkpoint(model, snapshot, snapshot.name)


def _unknown(what: str, model: str, cure: str) -> ModelError:
    """Return the error for a model that is not there: with the one that may have been meant, else with a cure."""
    meant = _meant(model)
    return ModelError(what).with_cure(meant) if meant else ModelError(f"{what}; {cure}")


def _meant(model: str) -> str:
    """Return which model may have been meant: one that is here, or a usual one; empty where none is near."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    known = [DEMO_MODEL, Settings().model]
    with suppress(OSError):
        known += [entry.name[8:].replace("--", "/") for entry in cache.iterdir() if entry.name.startswith("models--")]
    with suppress(OSError):
        beside = Path(model).expanduser().parent
        known += [str(beside / entry.name) for entry in beside.iterdir() if (entry / "config.json").is_file()]
    # The owner is what is left out most often.
    near = [name for name in known if name.rpartition("/")[2] == model and name != model]
    name = near[0] if near else nearest(str(Path(model[:200])), [name for name in known if name != model], cutoff=0.7)
    return f"did you mean {clean(name, 200)}?" if name else ""


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # Too long for a name, or behind a directory that may not be entered.
        return False


def _snapshot(
    model: str, revision: str, wanted: Sequence[str], on_progress: Callable[[Download], None] = lambda _: None
) -> Path:
    """Return the cached or downloaded snapshot: one directory, whose name is the commit."""
    try:
        path = _download(model, revision, wanted, on_progress)
    except hub_errors.GatedRepoError as error:
        raise ModelError(f"{model} is gated: accept its terms on huggingface.co and set HF_TOKEN") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise _unknown(
            f"there is no model {clean(model, 200)} on the hub, or it is private",
            model,
            "check the id, or set HF_TOKEN",
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision!r}; check --revision") from error
    except hub_errors.LocalEntryNotFoundError as error:
        what = f"{clean(model, 200)} is not (wholly) in the local cache and the hub cannot be reached"
        raise _unknown(what, model, "connect once, or copy the model here and give its directory") from error
    except hub_errors.HFValidationError as error:
        raise ModelError(f"{model!r} is neither a directory nor a valid Hugging Face id") from error
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        raise ModelError(f"{model} could not be fetched: {one_line(error)}; try again") from error
    return Path(path)


def _download(model: str, revision: str, wanted: Sequence[str], on_progress: Callable[[Download], None]) -> str:
    """Return the snapshot; where the hub cannot be reached, the cached one.

    For a branch huggingface_hub looks into its cache by itself; for a commit, which it need not look up, version 1.33
    asks the hub for the list of files, and fails without it.
    """

    def get(*, only_cached: bool) -> str:
        return huggingface_hub.snapshot_download(
            model,
            revision=revision,
            allow_patterns=list(wanted),
            ignore_patterns=list(_NOT_OURS),
            local_files_only=only_cached,
            tqdm_class=counting(on_progress),
        )

    try:
        return get(only_cached=False)
    except (hub_errors.OfflineModeIsEnabled, httpx2.ConnectError, httpx2.TimeoutException):
        return get(only_cached=True)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters of it; the class name when it has none.

    Where the line is broken off in a sentence, it ends with the one before, if there is one.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = lines[0].strip()
    whole = line[:_MAX_MESSAGE].rfind(". ")
    if whole > 0 and (len(line) > _MAX_MESSAGE or (len(lines) > 1 and line[-1] not in ".!?:")):
        return line[: whole + 1]
    return line[:_MAX_MESSAGE]


_MAX_MESSAGE = 300
