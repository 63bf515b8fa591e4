"""The dashboard's table of `etl.toml`: keys, theme, and what is wrong with them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.driving import SMALL, drive, text_of, until
from textual.pilot import Pilot

from etl.errors import ConfigError
from etl.settings.sources import load_settings
from tui.__main__ import main
from tui.settings import DashboardSettings, load


def written(folder: Path, text: str) -> Path:
    """Write a configuration."""
    path = folder / "etl.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_table_is_the_dashboards_own(tmp_path: Path) -> None:
    """Commands of the pipeline accept a file with the table, and the dashboard one without it."""
    path = written(
        tmp_path, 'per_host = 2\n[dashboard]\ntheme = "light"\n[dashboard.keys]\nstop = "S"\nhelp = "?,f1"\n'
    )
    assert load_settings(file=path, environment={}).per_host == 2
    assert load(path) == DashboardSettings("light", {"stop": "S", "help": "question_mark,f1"})
    assert load(written(tmp_path, "per_host = 2\n")) == DashboardSettings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dashboard = 1\n", "dashboard is not a table"),
        ("[dashboard]\ncolour = 1\n", "unknown setting 'colour' in [dashboard]; known: keys, theme"),
        ('[dashboard]\ntheme = "pink"\n', "theme = 'pink' in [dashboard]: must be one of dark, light"),
        ("[dashboard]\nkeys = 1\n", "[dashboard.keys] must be a table"),
        ('[dashboard.keys]\nfly = "x"\n', "unknown action 'fly'; known: copy, down,"),
        ("[dashboard.keys]\nstop = 1\n", "stop = 1: must be a key"),
        ('[dashboard.keys]\nstop = "x,"\n', "stop = 'x,': must be a key"),
        ('[dashboard.keys]\nstop = "q"\n', "'q' would mean both stop and quit"),
        ('[dashboard.keys]\nolder = "p"\n', "'p' would mean both pause and older"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    """A wrong table is refused with the file, the name and what is accepted."""
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    assert said in str(caught.value) and "etl.toml" in str(caught.value)


def test_remapped_keys_work_and_are_shown(make_state: Any) -> None:
    """A remapped key does what the old one did, which does nothing; tabs, footer and help show the new one."""
    state = make_state(3)
    settings = DashboardSettings("light", {"failures": "F", "quit": "Q", "pause": "f8"})

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "F Failures", "Q Quit", "f8 Pause")
        await pilot.press("f", "q")
        await pilot.pause(0.2)
        assert "Stages" in text_of(pilot.app)
        await pilot.press("F")
        await until(pilot, "Nothing has failed.")
        await pilot.press("question_mark")
        await until(pilot, f"{'F':<16}what failed, and why")
        await pilot.press("escape", "Q")
        await pilot.pause()
        assert pilot.app._exit

    drive(state.path, steps, SMALL, settings=settings)


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        ('[dashboard.keys]\nfly = "x"\n', [], 2, "error: etl.toml: [dashboard.keys]: unknown action 'fly'"),
        ("nonsense = 1\n", [], 2, "error: etl.toml: unknown setting 'nonsense'"),
        ("", ["--gpu-price", "-1"], 2, "error: gpu_price = -1.0: must be between 0 and 1M"),
    ],
)
def test_a_bad_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    text: str, arguments: list[str], code: int, said: str,
) -> None:  # fmt: skip
    """On a terminal a bad setting ends with one line, before the screen is taken."""
    written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert main(arguments) == code
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(said) and len(told.err.splitlines()) == 1


def test_without_a_terminal_it_says_what_to_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Into a pipe nothing is drawn; the exit code is that of a wrong use."""
    assert main(["--state", "state"]) == 2
    assert "needs a terminal" in capsys.readouterr().err


def test_it_ends_with_its_terminal(tmp_path: Path) -> None:
    """Where the terminal's other end is closed and no signal says so, the program ends instead of reading on."""
    controller, terminal = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "tui"], stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path,
        env=os.environ | {"TERM": "xterm-256color"},
    ) as process:  # fmt: skip
        os.close(terminal)
        seen = b""
        # Drawn, and so listening for keys.
        while b"Overview" not in seen:
            seen += os.read(controller, 65536)
        os.close(controller)
        try:
            assert process.wait(30) == 128 + signal.SIGHUP
        finally:
            process.kill()
