"""Commands that do the work: ingest, fetch, caption, export, run."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from etl.cli import render
from etl.cli.format_options import FORMAT_HELP, with_format_options
from etl.cli.hosts import estimate_lines
from etl.cli.options import Context, command, ends_when_interrupted
from etl.cli.progress import ingest_progress, progress
from etl.errors import ConfigError

group = typer.Typer()

FAILED_RECORDS = 3
"""Exit code: finished, but some records are dead."""

DEADLINE = 6
"""Exit code: the deadline was reached, and work is left."""

SyntheticOption = Annotated[
    bool | None,
    typer.Option(
        "--only-synthetic/--all",
        help="Caption only records whose description_source contains 'synthetic', or all. "
        "[default: only those, where the field exists]",
        show_default=False,
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first N records of the file.")]
OffsetOption = Annotated[int, typer.Option(min=0, help="Skip the first N records of the file.")]
IdFieldOption = Annotated[
    str | None, typer.Option(help="Field with the record's key. [default: metadata_filename, id or key]")
]
ImageFieldOption = Annotated[
    str | None, typer.Option(help="Field with the image. [default: external_url, url, image_url, image or path]")
]
TemplateOption = Annotated[
    Path | None, typer.Option(help="Jinja2 file for the prompt, over title, date and record. [default: built in]")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first bad line.")]
RecipeOption = Annotated[
    str | None, typer.Option(help="Beginning of the recipe's hash (see `etl status`). [default: the latest]")
]
ProvenanceOption = Annotated[bool, typer.Option("--provenance", help="Add how each caption came to be.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Also where `etl split` gave the work to parts; it may then be done twice.")
]
OnlyCaptionedOption = Annotated[bool, typer.Option("--only-captioned", help="Leave out records without a caption.")]


@command(group, works=True)
def ingest(
    context: Context,
    manifest: Annotated[
        str, typer.Argument(help="JSON Lines (.gz, .zst), CSV, Parquet, a directory of pictures, or -.")
    ],
    only_synthetic: SyntheticOption = None,
    limit: LimitOption = None,
    offset: OffsetOption = 0,
    id_field: IdFieldOption = None,
    image_field: ImageFieldOption = None,
    prompt_template: TemplateOption = None,
    strict: StrictOption = False,
) -> None:
    """Load a manifest into the state; again after an edit, or to resume."""
    options = _ingest_options(only_synthetic, limit, offset, id_field, image_field, prompt_template, strict)
    from etl.run.pipeline import ingest_manifest

    with ingest_progress(context) as on_batch:
        summary, signal = ingest_manifest(context.settings, manifest, options, on_batch)
    render.ingested(context, summary)
    _leave(signal, failed=summary.invalid > 0)


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
def export(
    context: Context,
    output: Annotated[str, typer.Argument(help="File to write (.gz and .zst compress) or directory, or - for stdout.")],
    recipe: RecipeOption = None,
    provenance: ProvenanceOption = False,
    only_captioned: OnlyCaptionedOption = False,
    since: Annotated[
        str, typer.Option(help="Only what was captioned or failed since this run began (uid or number).")
    ] = "",
    format: Annotated[str, typer.Option(help=FORMAT_HELP)] = "",  # noqa: A002 - the option's name
    shard_size: Annotated[
        int, typer.Option(min=0, help="Records in each file of a directory. [default: one file]")
    ] = 0,
    **format_options: bool,
) -> None:
    """Write the manifest with its captions, in manifest order."""
    from etl.export.stage import ExportOptions
    from etl.run.pipeline import export_manifest

    options = ExportOptions(
        recipe=recipe,
        provenance=provenance,
        only_captioned=only_captioned,
        since=since,
        format=format,
        shard_size=shard_size,
        format_options=format_options,
    )
    with ends_when_interrupted():
        summary = export_manifest(context.settings, output, options)
    render.exported(context, summary)


@command(group, works=True)
def run(
    context: Context,
    manifest: Annotated[
        str | None, typer.Option("--input", help="Manifest to ingest first. [default: what is in the state]")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="File to export to at the end.")] = None,
    only_synthetic: SyntheticOption = None,
    limit: LimitOption = None,
    offset: OffsetOption = 0,
    id_field: IdFieldOption = None,
    image_field: ImageFieldOption = None,
    prompt_template: TemplateOption = None,
    strict: StrictOption = False,
    provenance: ProvenanceOption = False,
    force: ForceOption = False,
) -> None:
    """Do everything: ingest, fetch beside caption, export.  Run it again to go on."""
    from etl.export.stage import ExportOptions
    from etl.run.pipeline import run_pipeline
    from etl.run.plan import Plan

    given = (only_synthetic, limit, offset, id_field, image_field, prompt_template, strict)
    plan = Plan(
        fetch=True,
        caption=True,
        manifest=manifest,
        options=_ingest_options(*given),
        reselect=manifest is None and (only_synthetic, limit, offset) != (None, None, 0),
        output=output,
        export=ExportOptions(provenance=provenance),
        force=force,
    )
    if context.json and output == "-":
        raise ConfigError("--json and --output - both write to stdout; give --output FILE")
    if manifest is None and (id_field or image_field or prompt_template):
        raise ConfigError("--id-field, --image-field and --prompt-template need --input: the manifest is read anew")
    _work(context, run_pipeline, plan)


def _ingest_options(
    only_synthetic: bool | None,
    limit: int | None,
    offset: int,
    id_field: str | None,
    image_field: str | None,
    prompt_template: Path | None,
    strict: bool,
) -> Any:
    from etl.ingest.options import IngestOptions, Selection
    from etl.ingest.prompts import PromptTemplate

    template = PromptTemplate.from_file(prompt_template) if prompt_template else PromptTemplate()
    return IngestOptions(id_field, image_field, Selection(only_synthetic, offset, limit), template, strict)


def _work(context: Context, run_pipeline: Any, plan: Any) -> None:
    from etl.run.kept_back import kept_back_line

    if line := kept_back_line(context.settings, plan):
        render.note(context, line)
    with progress(context) as on_progress:
        report = run_pipeline(context.settings, plan, on_progress)
    render.report(context, report)
    _leave(report.signal, failed=report.failed > 0 or report.without_pictures > 0, deadline=report.deadline)


def _leave(signal: int | None, *, failed: bool, deadline: bool = False) -> None:
    if signal is not None:
        sys.exit(128 + signal)
    if deadline:
        sys.exit(DEADLINE)
    if failed:
        sys.exit(FAILED_RECORDS)
