"""The ``etl`` program: its commands, and what becomes of an error."""

import contextlib
import os
import sys
import traceback
from types import TracebackType
from typing import Annotated

import typer

from etl.cli.help import Program
from etl.cli.options import MAX_LINE, ConfigOption, JsonOption, QuietOption, StateOption, VerboseOption
from etl.cli.terminal import outlive_the_terminal
from etl.cli.usage import USAGE_ERROR, usage_line
from etl.domain.hints import DEFAULT_STATE, hinted, name_state
from etl.errors import DiskFullError, EtlError, UsageError
from etl.files import is_disk_full
from etl.open_files import out_of_files, raise_limit
from etl.run_control import RunControl
from etl.text import clean, clean_lines
from etl.version import __version__

EPILOG = """`etl COMMAND --help` tells more; `etl --install-completion` sets up completion for your shell.

Exit codes: 0 done; 1 fatal; 2 wrong usage; 3 some records failed; 4 another run holds the state;
5 disk full, a limit reached or no image cache; 6 deadline reached, run again; 128 and more: stopped by a signal."""

app = typer.Typer(
    name="etl",
    cls=Program,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"caption-etl {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # the command that follows takes the global ones from its parent
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Caption every picture of a manifest once, resumably:

        etl run manifest.jsonl -o captions.jsonl

    Run it again to go on after any stop; `etl status` tells from another terminal how it stands.
    """


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a fault of ours; its words may quote a stranger."""
    print(clean_lines("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr)


def main() -> None:
    """Run the program; a user's mistake ends with one line and its exit code, not with a traceback."""
    sys.excepthook = _print_traceback
    outlive_the_terminal()
    name_state(DEFAULT_STATE)
    code: int | str | None = 0
    try:
        raise_limit()
        code = app(prog_name="etl", standalone_mode=False)
    except USAGE_ERROR as error:
        typer.echo(f"error: {clean(hinted(usage_line(error)), 2 * MAX_LINE)}", err=True)
        code = UsageError.exit_code
    except (EtlError, OSError) as error:
        known = out_of_files(error) or error
        if isinstance(known, OSError) and is_disk_full(known):
            # Where we write files ourselves, it has its own words.  What is left to be flushed goes nowhere.
            known = DiskFullError("no space left for standard output; free some space and run again")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(known, EtlError):
            raise
        typer.echo(f"error: {clean(hinted(str(known)))}", err=True)
        if known.cure:
            typer.echo(clean_lines(hinted(known.cure)), err=True)
        code = known.exit_code
    except MemoryError:
        typer.echo(
            "error: memory ran out; what was committed is safe: end other programs, or lower --decoders, --feeders, "
            "--batch-size or --slots, then run the same command again",
            err=True,
        )
        code = EtlError.exit_code
    except SystemExit as error:
        code = error.code
    if RunControl.abandoned():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


if __name__ == "__main__":
    main()
