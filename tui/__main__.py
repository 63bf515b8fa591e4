"""``python -m tui``: what `etl dashboard` starts."""

import argparse
import os
import select
import signal
import sys
import threading
from pathlib import Path

from etl.domain.hints import hinted, name_state
from etl.errors import EtlError
from etl.settings.sources import load_settings
from etl.text import clean
from etl.version import __version__
from tui import settings


def main(arguments: list[str] | None = None) -> int:
    """Show the dashboard until the user quits; return the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.web:
            return _serve(chosen)
        return _show(chosen)
    except EtlError as error:
        print(f"error: {clean(hinted(str(error)))}", file=sys.stderr)
        return error.exit_code


def _show(chosen: argparse.Namespace) -> int:
    flags = {"state": chosen.state, "gpu_price": chosen.gpu_price}
    resolved, own = load_settings(flags, file=chosen.config, used=flags), settings.load(chosen.config)
    name_state(resolved.state)
    # A browser's end of `etl dashboard --web` is no terminal, and Textual is told by this variable.
    if not (sys.stdin.isatty() and sys.stderr.isatty()) and "TEXTUAL_DRIVER" not in os.environ:
        # Textual draws on stderr; into a file or a pipe it would draw for nobody and never end.
        words = "the dashboard needs a terminal on stdin and stderr; for scripts there is `etl status`"
        print(hinted(words), file=sys.stderr)
        return 2
    from tui.app import Dashboard

    app = Dashboard(
        resolved.state, readonly=chosen.readonly, ascii_only=chosen.ascii, price=resolved.gpu_price, settings=own
    )
    if sys.stdin.isatty():
        threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    app.run()
    return app.return_code or 0


def _end_with(terminal: int) -> None:
    """End the program when the other end of its terminal is closed.

    A signal tells only those whose own terminal it is; others would read its end without end.
    """
    looking = select.poll()
    # Without a wish, only the end wakes it.
    looking.register(terminal, 0)
    looking.poll()
    os._exit(128 + signal.SIGHUP)


def _serve(chosen: argparse.Namespace) -> int:
    """Serve the same dashboard to browsers of this machine."""
    from tui.web import serve

    given = (("--state", chosen.state), ("--config", chosen.config), ("--gpu-price", chosen.gpu_price))
    flags = [word for flag, value in given if value is not None for word in (flag, str(value))]
    flags += ["--readonly"] * chosen.readonly + ["--ascii"] * chosen.ascii
    serve([sys.executable, "-P", "-m", "tui", *flags], chosen.port)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tui",
        description="Watch a state directory, and pause, resume, stop or retry its live run.",
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="the state directory (default: $ETL_STATE or 'state')"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (default: etl.toml)")
    parser.add_argument("--gpu-price", type=float, metavar="PRICE", help="what the machine costs per hour")
    parser.add_argument("--readonly", action="store_true", help="refuse pause, resume, stop and retry")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    parser.add_argument("--web", action="store_true", help="serve it to a browser on this machine instead")
    parser.add_argument("--port", type=int, default=8000, help="with --web: the port (default: 8000)")
    parser.add_argument("--version", action="version", version=f"caption-etl {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
