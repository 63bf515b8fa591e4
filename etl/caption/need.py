"""Whether a model is needed at all: loading one takes minutes and a GPU's memory, and often everything is done."""

import functools
import logging
from collections.abc import Callable

from etl.caption.recipe import Recipe
from etl.domain.statuses import QueueStatus, RecordOutcome
from etl.errors import EtlError
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.state.read.sources import has_picture
from etl.state.store import Store

log = logging.getLogger(__name__)

IDLE_S = 0.2
"""Seconds between two looks while fetch may still bring a picture."""


def wait_for_picture(
    reader: Reader, settings: Settings, longest_edge: int, control: RunControl, more_coming: Callable[[], bool]
) -> bool:
    """Wait until there is a picture that wants a caption; return whether there is one, once no more can come."""
    try:
        has = functools.partial(has_picture, reader, skip=settings.skip_flag)
        return _is_wanted(reader, has, _is_by(reader, settings, longest_edge), control, more_coming)
    finally:
        control.awaits_picture = False


def settle_without_model(store: Store, reader: Reader, run: int, settings: Settings, control: RunControl) -> None:
    """Let what no model is loaded for be skipped for its flag, also in a state that has seen no model yet."""
    is_first = not any(row.current for row in all_recipes(reader))
    if is_first and settings.skip_flag and not control.stopping and has_picture(reader, pending_only=True):
        # What is skipped are captions, and these are of a recipe.
        recipe = Recipe(
            model=settings.model,
            revision="not loaded",
            engine="none",
            dtype="none",
            preprocessing={},
            generation={},
        )
        store.use_recipe(sha256=recipe.sha256, model=recipe.model, revision=recipe.revision, spec=recipe.to_json())
    store.settle_skipped(run)


def _is_wanted(
    reader: Reader, has: Callable[..., bool], settled: bool, control: RunControl, more_coming: Callable[[], bool]
) -> bool:
    """Look until it is known; ``settled`` says that what is captioned already is captioned for this model, too."""
    before: tuple[int, int] | None = None
    while not control.stopping:
        # Asked before the state is looked at: what fetch commits as its last is then still seen.
        expecting = more_coming()
        now = read_progress(reader)
        done = now.sources.get(QueueStatus.DONE, 0)
        pending = sum(now.outcomes.get(outcome, 0) for outcome in (RecordOutcome.PENDING, RecordOutcome.SKIPPED))
        # A caption that is to be made again counts until then, so its record is not pending.
        if settled and any(now.captions.get(status, 0) for status in (QueueStatus.READY, QueueStatus.RETRY)):
            return True
        if (done, pending) != before and (pending or not settled) and has(pending_only=settled):
            return True
        before = (done, pending)
        # Only now: fetch waits for a model that may want pictures back which were evicted.
        control.awaits_picture = True
        if not expecting:
            return False
        control.wait(IDLE_S)
    return False


def _is_by(reader: Reader, settings: Settings, longest_edge: int) -> bool:
    """Return whether the captions that count are those that a model loaded now would make.

    What only the loaded model knows, as the number format for ``auto``, is taken to be as it was: nobody who runs the
    same command again on another machine wants finished captions made anew.
    """
    if settings.backend not in ("local", "vllm"):
        return False
    current = next((row for row in all_recipes(reader) if row.current), None)
    if current is None:
        return False
    from etl.caption.model.checkpoint import find_checkpoint

    try:
        recipe = Recipe.from_json(current.spec)
        checkpoint = find_checkpoint(settings.model, settings.revision)
        if settings.backend == "vllm":
            from etl.caption.vllm.captioner import own_recipe

            return recipe.sha256 == own_recipe(settings, checkpoint, longest_edge).sha256
        images = recipe.preprocessing
        return (
            recipe.model == checkpoint.name
            and settings.engine in ("auto", recipe.engine)
            and settings.dtype in ("auto", recipe.dtype)
            and recipe.generation.get("max_new_tokens") == settings.max_new_tokens
            and (images.get("longest_edge"), images.get("max_aspect")) == (longest_edge, settings.max_aspect)
            and bool(images.get("do_pad")) == settings.pad_to_square
            # Last: for a directory it reads all weights.
            and recipe.revision == checkpoint.revision()
        )
    except (EtlError, ValueError, OSError) as error:
        log.debug("the recipe of the settings is not known before the model is loaded: %s", error)
        return False
