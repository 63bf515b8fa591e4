"""One whole run as a function call: what `etl run` is on the command line."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from etl.domain.views import Progress
from etl.ingest.options import IngestOptions, Selection
from etl.ingest.prompts import PromptTemplate
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan, Report
from etl.settings import Settings


def run(
    source: str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    model: str | None = None,
    prompt: str | None = None,
    state: str | Path | None = None,
    settings: Settings | None = None,
    limit: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Ingest, fetch, caption and export; called again, go on where the last call ended.

    Args:
        source: manifest or directory of pictures, or several of them; ``None`` goes on with what the state holds.
        out: file or directory to export to at the end; ``None`` for none.
        model: Hugging Face id, local directory, or ``demo``.
        prompt: what the model is asked: words, or a Jinja2 template over ``title``, ``date`` and ``record``.
        state: the state directory.
        settings: everything else; ``model`` and ``state`` go before it.  Neither files nor the environment are read:
            `load_settings` does that.
        limit: only the first so many records of the source.
        on_progress: called about once a second, in the thread of the caller.

    Failed records are no exception: they are counted in the report's ``failed`` and told by `State.failures`.  In the
    main thread, signals end the run as they end `etl run`: the first lets it finish what it holds and return, a second
    one ends the process.

    Raises an `EtlError` for everything that ends the run: see `etl.errors`.
    """
    settings = settings or Settings()
    # A script gives a name where a path is meant, in the settings too.
    settings = dataclasses.replace(settings, state=Path(state or settings.state), model=model or settings.model)
    template = PromptTemplate() if prompt is None else PromptTemplate.from_text(prompt)
    sources = () if source is None else (source,) if isinstance(source, str | Path) else source
    plan = Plan(
        fetch=True,
        caption=True,
        sources=tuple(map(str, sources)),
        options=IngestOptions(selection=Selection(limit=limit), template=template),
        output=None if out is None else str(out),
    )
    return run_pipeline(settings, plan, on_progress)
