"""Commands that do the work: ingest, fetch, caption, run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from etl.cli import render, run_report
from etl.cli.format_options import FormatOption, with_format_options
from etl.cli.hosts import estimate_lines
from etl.cli.options import Context, EncodingOption, IdFieldOption, ImageFieldOption, SidecarsOption, command, number
from etl.cli.progress import ingest_progress, progress
from etl.domain.views import Progress
from etl.errors import ConfigError
from etl.export.formats import given_options
from etl.settings.values import Group

group = typer.Typer()

FAILED_RECORDS = 3
"""Exit code: finished, but some records are dead."""

DEADLINE = 6
"""Exit code: the deadline was reached, and work is left."""

SOURCES_HELP = (
    "Manifests (JSON, CSV, lists of URLs, Parquet, IIIF, also compressed), directories, ZIP and tar archives of "
    "pictures, URLs of manifests, or - for standard input."
)
SyntheticOption = Annotated[
    bool | None,
    typer.Option(
        "--only-synthetic/--all",
        help="Caption only records whose description_source contains 'synthetic', or all. "
        "[default: only those, where the field exists]",
        show_default=False,
    ),
]
LimitOption = Annotated[int | None, number("--limit", "-n", least=1, help="Only the first N records of each source.")]
OffsetOption = Annotated[
    int, number("--offset", least=0, group=Group.MANIFEST, help="Skip the first N records of each source.")
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What the model is asked about each picture; may name {{ title }}, {{ date }} and {{ record.FIELD }}. "
        "[default: built in]",
        show_default=False,
    ),
]
TemplateOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=Group.GENERATION,
        help="File with the prompt, which may be a Jinja2 template as for --prompt.",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", rich_help_panel=Group.MANIFEST, help="Stop at the first bad line.")
]
ProvenanceOption = Annotated[
    bool, typer.Option("--provenance", rich_help_panel=Group.OUTPUT, help="Add how each caption came to be.")
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        rich_help_panel=Group.GENERAL,
        help="Also where `etl split` gave the work to parts; it may then be done twice.",
    ),
]


@command(group, works=True)
def ingest(
    context: Context,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCES_HELP)],
    only_synthetic: SyntheticOption = None,
    limit: LimitOption = None,
    offset: OffsetOption = 0,
    id_field: IdFieldOption = None,
    image_field: ImageFieldOption = None,
    encoding: EncodingOption = None,
    sidecars: SidecarsOption = None,
    prompt: PromptOption = None,
    prompt_template: TemplateOption = None,
    strict: StrictOption = False,
) -> None:
    """Load manifests into the state; again after an edit, or to resume."""
    options = _ingest_options(
        only_synthetic, limit, offset, id_field, image_field, encoding, sidecars, prompt, prompt_template, strict
    )
    from etl.ingest.options import LeftOut
    from etl.run.sources import ingest_manifests

    with ingest_progress(context) as on_batch:
        summaries, signal = ingest_manifests(
            context.settings, sources, options, on_batch, lambda: render.stopping(context)
        )
    for summary in summaries:
        render.ingested(context, summary)
        if summary.unselected and not context.json:
            render.note(context, LeftOut(summary.unselected, *options.selection.why()).line())
    if signal is None and not context.json:
        render.note(context, "now run `etl run` (or `etl fetch` and `etl caption`)")
    _leave(signal, failed=any(summary.invalid for summary in summaries))


@command(group, works=True)
def fetch(
    context: Context,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask again for what was fetched; unchanged pictures are kept.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how much there is to fetch, how long and how large.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Download and decode every source that is still due."""
    from etl.run.pipeline import estimate_fetch, run_pipeline
    from etl.run.plan import Plan

    if not dry_run:
        _work(context, run_pipeline, Plan(fetch=True, refresh=refresh, force=force))
        return
    estimate = estimate_fetch(context.settings, refresh=refresh)
    if context.json:
        render.answer(estimate.to_json())
        return
    for line in estimate_lines(estimate, refresh=refresh):
        render.say(line)


@command(group, works=True)
def caption(context: Context, force: ForceOption = False) -> None:
    """Caption every fetched image that has no caption yet."""
    from etl.run.pipeline import run_pipeline
    from etl.run.plan import Plan

    _work(context, run_pipeline, Plan(caption=True, force=force))


@command(group, works=True)
@with_format_options
def run(
    context: Context,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCE...]", help=f"{SOURCES_HELP} [default: what is in the state]")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", "-i", metavar="SOURCE", help="The same as SOURCE.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File or directory to export to at the end, or - for stdout."
        ),
    ] = None,
    only_synthetic: SyntheticOption = None,
    limit: LimitOption = None,
    offset: OffsetOption = 0,
    id_field: IdFieldOption = None,
    image_field: ImageFieldOption = None,
    encoding: EncodingOption = None,
    sidecars: SidecarsOption = None,
    prompt: PromptOption = None,
    prompt_template: TemplateOption = None,
    strict: StrictOption = False,
    provenance: ProvenanceOption = False,
    format: FormatOption = "",  # noqa: A002 - the option's name
    force: ForceOption = False,
    **format_options: bool | str,
) -> None:
    """Do everything: ingest, fetch beside caption, export.  Run it again to go on."""
    from etl.export.stage import ExportOptions
    from etl.run.pipeline import run_pipeline
    from etl.run.plan import Plan

    given = (*(sources or ()), *(inputs or ()))
    plan = Plan(
        fetch=True,
        caption=True,
        sources=given,
        options=_ingest_options(
            only_synthetic, limit, offset, id_field, image_field, encoding, sidecars, prompt, prompt_template, strict
        ),
        reselect=not given and (only_synthetic, limit, offset) != (None, None, 0),
        output=output,
        export=ExportOptions(provenance=provenance, format=format, format_options=format_options),
        force=force,
    )
    if context.json and output == "-":
        raise ConfigError("--json and --output - both write to stdout; give --output FILE")
    _check_export(context, plan)
    if not given and (id_field or image_field or encoding or sidecars or prompt is not None or prompt_template):
        raise ConfigError(
            "--prompt, --prompt-template, --sidecars, --id-field and --image-field need the SOURCE, which is read anew "
            "with them: `etl run SOURCE ...`"
        )
    _work(context, run_pipeline, plan, export_command=run_report.export_command(context, plan))


def _check_export(context: Context, plan: Any) -> None:
    options = plan.export
    if (options.format or given_options(options.format_options)) and plan.output is None:
        raise ConfigError(
            "--format and its options say how --output is written; give --output, or use `etl export --format`"
        )
    if options.format_options.get("originals") and not context.settings.keep_originals:
        render.note(
            context,
            "--originals: of what is fetched from elsewhere the working copies will be exported; add --keep-originals "
            "to have it as it came",
        )


def _ingest_options(
    only_synthetic: bool | None,
    limit: int | None,
    offset: int,
    id_field: str | None,
    image_field: str | None,
    encoding: str | None,
    sidecars: str | None,
    prompt: str | None,
    prompt_template: Path | None,
    strict: bool,
) -> Any:
    from etl.ingest.options import IngestOptions, Selection
    from etl.ingest.prompts import PromptTemplate

    if prompt is not None and prompt_template:
        raise ConfigError("--prompt and --prompt-template exclude each other; choose one")
    template = PromptTemplate()
    if prompt is not None:
        template = PromptTemplate.from_text(prompt)
    elif prompt_template:
        template = PromptTemplate.from_file(prompt_template)
    selection = Selection(only_synthetic, offset, limit)
    kinds = tuple(kind.strip() for kind in (sidecars or "").split(",") if kind.strip())
    return IngestOptions(id_field, image_field, selection, template, strict, encoding, sidecars=kinds)


def _work(context: Context, run_pipeline: Any, plan: Any, *, export_command: str | None = None) -> None:
    from etl.ingest.prompts import DEFAULT_TEMPLATE
    from etl.run.kept_back import kept_back_line

    if line := kept_back_line(context.settings, plan):
        render.note(context, line)
    if plan.caption and context.settings.model == "demo" and plan.options.template.source != DEFAULT_TEMPLATE:
        render.note(
            context, "the demo's model knows its own prompt alone, with others it writes nonsense: --model NAME"
        )
    with progress(context) as on_progress:
        if export_command is not None and plan.output is None:
            on_progress = _after(
                f"no output is named (-o captions.jsonl); when this is done: {export_command}", context, on_progress
            )
        report = run_pipeline(
            context.settings,
            plan,
            on_progress,
            lambda: render.stopping(context),
            lambda found: render.finding(context, found),
        )
    if report.exported is not None:
        export_command = None
    run_report.report(context, report, export_command=export_command, output=plan.output)
    _leave(report.signal, failed=report.failed > 0 or report.without_pictures > 0, deadline=report.deadline)


def _after(words: str, context: Context, show: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return what shows progress, and says something before the first time: once the run has begun."""
    said = False

    def told(now: Progress) -> None:
        nonlocal said
        if not said:
            render.note(context, words)
        said = True
        show(now)

    return told


def _leave(signal: int | None, *, failed: bool, deadline: bool = False) -> None:
    if signal is not None:
        sys.exit(128 + signal)
    if deadline:
        sys.exit(DEADLINE)
    if failed:
        sys.exit(FAILED_RECORDS)
