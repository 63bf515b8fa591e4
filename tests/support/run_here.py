"""The program inside the test's process: for what is claimed of a command's answer, not of a process."""

import contextlib
import io
import sys

import pytest

from etl.cli.app import main
from etl.run_control import RunControl


def run_here(*arguments: object) -> tuple[int, str, str]:
    """Run one `etl` command through the program's own `main`; return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["etl", *map(str, arguments)])
        # A command that leaves a thread behind ends its process at once, and this one is the tests'.
        patch.setattr(RunControl, "abandoned", lambda: False)
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    assert isinstance(code, int)
    return code, out.getvalue(), err.getvalue()
