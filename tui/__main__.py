"""``python -m tui --state DIR [--readonly] [--ascii]``."""

import argparse
import os
import sys
from pathlib import Path

from etl import __version__
from tui.app import Dashboard


def main(arguments: list[str] | None = None) -> int:
    """Show the dashboard until the user quits; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tui",
        description="Watch a state directory, and pause, resume, stop or retry its live run.",
    )
    parser.add_argument(
        "--state", type=Path, default=Path(os.environ.get("ETL_STATE", "state")), metavar="DIR",
        help="the state directory (default: $ETL_STATE, else 'state')",
    )  # fmt: skip
    parser.add_argument("--readonly", action="store_true", help="refuse pause, resume, stop and retry")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    parser.add_argument("--version", action="version", version=f"caption-etl {__version__}")
    chosen = parser.parse_args(arguments)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        # Textual draws on stderr; into a file or a pipe it would draw for nobody and never end.
        print("the dashboard needs a terminal on stdin and stderr; for scripts there is `etl status`", file=sys.stderr)
        return 2
    app = Dashboard(chosen.state, readonly=chosen.readonly, ascii_only=chosen.ascii)
    app.run()
    return app.return_code or 0


if __name__ == "__main__":
    sys.exit(main())
