"""The stages as the runner starts them: each as a function of store, run and control."""

from etl.caption.backends import open_captioner
from etl.domain.statuses import Stage
from etl.domain.views import StageSummary
from etl.run.supervisor import StageFunction
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.read.reader import Reader
from etl.state.read.sources import longest_edges
from etl.state.store import Store

_NOTHING = StageSummary(0, 0, 0, 0)
"""What a stage has done that did not begin."""


def stage_functions(settings: Settings, *, fetch: bool, caption: bool, refresh: bool) -> dict[Stage, StageFunction]:
    """Return the wanted stages in their order, each to be run in a thread of its own."""
    stages: dict[Stage, StageFunction] = {}
    if fetch:
        stages[Stage.FETCH] = lambda store, run, control: _fetch(store, run, settings, control, refresh)
    if caption:
        stages[Stage.CAPTION] = lambda store, run, control: (
            # Seconds or minutes for a model that would caption nothing.
            _NOTHING if control.stopping else _caption(store, run, settings, control)
        )
    return stages


def _fetch(store: Store, run: int, settings: Settings, control: RunControl, refresh: bool) -> StageSummary:
    # Imported here: captioning alone needs no HTTP client.
    from etl.fetch.stage import fetch

    return fetch(store, run, settings, control, refresh=refresh)


def _caption(store: Store, run: int, settings: Settings, control: RunControl) -> StageSummary:
    from etl.caption.stage import caption
    from etl.images.cache import ImageCache
    from etl.state.presence import require_cache

    with Reader(store.directory) as reader:
        edges = longest_edges(reader)
        # Before minutes are spent on a model that would have nothing to look at.
        require_cache(reader)
    # The copies that are there decide, not the setting: they may have been made on another machine.
    edge = edges[0] if edges else settings.longest_edge
    captioner = open_captioner(settings, ImageCache.of_state(store.directory), edge)
    try:
        if control.stopping:
            # The run may have gone on without us: it waits for nobody who only loads.
            return _NOTHING
        return caption(store, run, settings, captioner, control, more_coming=lambda: control.is_active(Stage.FETCH))
    finally:
        captioner.close()
