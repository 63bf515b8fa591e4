"""Commands around the work: verify, gc, doctor, dashboard, demo."""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etl.cli import render
from etl.cli.options import Context, command, either, ends_when_interrupted, number
from etl.domain.hints import hinted
from etl.errors import ConfigError, EtlError
from etl.state.read.reader import Reader
from etl.text import clean
from etl.units import count, size

if TYPE_CHECKING:
    from etl.maintenance.gc import GcSummary


group = typer.Typer()

DAMAGE_FOUND = 3
"""Exit code of `verify`: files were missing or damaged, which is put right now."""


@command(group, works=True)
def verify(
    context: Context,
    delete_orphans: Annotated[
        bool, typer.Option("--delete-orphans", help="Delete cached files that no image owns.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes alone, without reading the files.")] = False,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Look at every row and line, decode every picture, reread the last export."),
    ] = False,
    accept_missing: Annotated[
        bool,
        typer.Option("--accept-missing", help="The image cache is gone for good: have all that it held fetched again."),
    ] = False,
) -> None:
    """Check database and image cache against each other; put lost pictures back into the fetch queue."""
    if quick and deep:
        raise ConfigError("--quick reads no file and --deep reads them all; choose one of them")
    from etl.maintenance.verify import verify as check
    from etl.run.signals import watch_signals
    from etl.state.store import Store

    with (
        ends_when_interrupted(),
        watch_signals(interrupt=True),
        Store.open(context.settings, create=False) as store,
    ):
        result = check(store, delete_orphans=delete_orphans, quick=quick, deep=deep, accept_missing=accept_missing)
    if context.json:
        render.answer(render.summary_json(result))
    else:
        for line in result.lines():
            render.note(context, clean(line))
    if result.problems:
        raise typer.Exit(1)
    if result.damage and not accept_missing:
        raise typer.Exit(DAMAGE_FOUND)


@command(group, name="gc", works=True)
def collect(
    context: Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count, remove nothing.")] = False,
    captioned: Annotated[bool, typer.Option("--captioned", help="Also all pictures that have their captions.")] = False,
    originals: Annotated[bool, typer.Option("--originals", help="Also all originals that were kept.")] = False,
) -> None:
    """Remove from the image cache what nothing needs; what is needed again is fetched again."""
    from etl.maintenance.gc import gc
    from etl.run.signals import watch_signals
    from etl.state.reserve import lent
    from etl.state.store import Store

    with (
        lent(context.settings.state),
        ends_when_interrupted(),
        watch_signals(interrupt=True),
        Store.open(context.settings, create=False) as store,
    ):
        result = gc(store, captioned=captioned, originals=originals, dry_run=dry_run)
    if context.json:
        render.answer(render.summary_json(result))
    else:
        for line in _collected(result):
            render.note(context, line)


@command(group, works=True)
def report(
    context: Context,
    output: Annotated[str | None, typer.Argument(help="File to write. [default: report.html]")] = None,
    output_option: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The same as OUTPUT.")
    ] = None,
    limit: Annotated[
        int,
        number(
            "--limit", "-n", least=1, most=1_000_000, help="Most records; of more, every second, third, ... is shown."
        ),
    ] = 20_000,
    thumbnail: Annotated[
        int, number("--thumbnail", least=0, most=512, help="Longest edge of the pictures in pixels; 0 for none.")
    ] = 160,
) -> None:
    """Write a page of pictures, captions, failures and plots; one HTML file, which opens without a network."""
    from etl.report.page import ReportOptions, write_report
    from etl.run.signals import watch_signals

    given = output_option is not None or output is not None
    target = Path(either(output, output_option, "report.html") if given else "report.html")
    with ends_when_interrupted(), watch_signals(interrupt=True), Reader(context.settings.state) as reader:
        summary = write_report(reader, target, ReportOptions(limit, thumbnail))
    if context.json:
        render.answer(render.summary_json(summary))
    else:
        render.note(
            context,
            f"report    {count(summary.records, 'record')} with {count(summary.pictures, 'picture')}, "
            f"{size(summary.size)}: {clean(str(summary.path))}",
        )


@command(group)
def doctor(
    context: Context,
    gpu: Annotated[bool, typer.Option("--gpu", help="Try each GPU, and say how fast it is expected to be.")] = False,
    net: Annotated[
        bool,
        typer.Option("--net", help="Send one request to each host of the state, to the hub, to endpoints."),
    ] = False,
) -> None:
    """Say whether a run would work here, how long it would take and what it would cost."""
    from etl.run.checks.doctor import checks

    failed = False
    for check in checks(context.settings, gpu=gpu, net=net):
        failed |= check.verdict == "fail"
        if context.json:
            render.answer(render.summary_json(check))
        else:
            head = f"{check.verdict:<5} {check.name:<16} "
            for text in filter(None, (check.detail, check.cure)):
                for line in _wrapped(clean(hinted(text)), len(head)):
                    render.say(head + line)
                    head = " " * len(head)
    if failed:
        raise typer.Exit(1)


@command(group)
def dashboard(
    context: Context,
    readonly: Annotated[bool, typer.Option("--readonly", help="Refuse keys that change the run.")] = False,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="Draw with ASCII characters alone.")] = False,
    web: Annotated[bool, typer.Option("--web", help="Serve it to a browser on this machine instead.")] = False,
    port: Annotated[int, number("--port", least=1, most=65535, help="With --web: the port.")] = 8000,
) -> None:
    """Watch a run live; it is another process and may come and go."""
    flags = ["--readonly"] * readonly + ["--ascii"] * ascii_only + (["--web", "--port", str(port)] if web else [])
    flags += ["--config", str(context.config.resolve())] if context.config else []
    # -P: a module of that name in the working directory is a stranger's.
    price = str(context.settings.gpu_price)
    arguments = ["--state", str(context.settings.state), "--gpu-price", price, *flags]
    sys.exit(subprocess.call([sys.executable, "-P", "-m", "tui", *arguments]))


@command(group, stateless=True)
def demo(
    context: Context,
    directory: Annotated[
        Path | None, typer.Argument(help="State directory to keep. [default: a throw-away one]")
    ] = None,
    pictures: Annotated[int, number("--pictures", least=4, most=2000, help="How many pictures to draw.")] = 24,
) -> None:
    """Caption drawn pictures end to end with a tiny model; both ship with the program."""
    from etl.cli.demo_screen import DemoScreen
    from etl.demo.run import run_demo

    if "state" in context.flags:
        raise ConfigError(
            f"etl demo takes no --state: name the directory to keep, as in `etl demo {context.settings.state}`"
        )
    good = run_demo(context.settings, directory, pictures, DemoScreen(context))
    if context.json:
        render.answer({"good": good, "state": directory and str(directory), "pictures": pictures})
    if not good:
        raise EtlError("the demo did not end as it should; see above")


def _wrapped(text: str, indent: int) -> list[str]:
    """Return a text as lines that fit a terminal behind an indentation; as one line where a program reads it."""
    if not sys.stdout.isatty():
        return [text]
    return textwrap.wrap(text, max(20, shutil.get_terminal_size().columns - indent), break_on_hyphens=False)


def _collected(summary: "GcSummary") -> Iterator[str]:
    """Yield what a collection removed."""
    for name, thing, things, which in (
        ("orphans", "file", "files", " that no image owns"),
        ("parts", "unfinished file", "unfinished files", ""),
        ("unneeded", "working copy", "working copies", " that no record needs"),
        ("originals", "original", "originals", ""),
        ("captioned", "working copy", "working copies", " whose captions are done"),
        ("archives", "archive", "archives", " of which no record is left"),
        ("pictures", "picture", "pictures", " that stood in records which are gone"),
    ):
        removed = getattr(summary, name)
        if removed.files or name in ("orphans", "parts", "unneeded"):
            yield f"{name:<9} {count(removed.files, thing, things)}{which}, {size(removed.bytes)}"
    limit = f" of {size(summary.limit)} allowed" if summary.limit else ""
    yield f"cache     {size(summary.cache_bytes)}{limit}" + ("; nothing was removed" if summary.dry_run else "")
    if 0 < summary.limit < summary.cache_bytes:
        yield "          what is left is still to be captioned, or may still be resumed"
