"""Play README's first screen in an empty environment, and keep what a newcomer sees after 1, 5 and 30 seconds.

    python -m benchmarks.run.first_screen --target screens              # builds the wheel and installs it first
    python -m benchmarks.run.first_screen --programs .venv/bin          # what is installed there

A terminal of 80x24 in tmux, with nothing in the environment but PATH, HOME and TERM.  Each screen is kept as text, with
its colours, and where there is ``rsvg-convert`` as a picture.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from benchmarks.tui.screenshots import write

ROOT = Path(__file__).parents[2]

COLUMNS, LINES = 80, 24

AFTER_S = (1.0, 5.0, 30.0)
END_S = 300.0
"""Longest wait for the end, whose screen is kept, too."""

PROMPT = "$ "


def install(folder: Path) -> Path:
    """Build the wheel, install it into an environment of its own, and return where its programs are."""
    source = folder / "source"
    kept = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "state", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=kept)
    subprocess.run([sys.executable, "-m", "build", "--wheel"], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    begun = time.monotonic()
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, wheel], check=True)
    size = sum(path.lstat().st_size for path in (folder / "venv").rglob("*")) / 1e6
    print(f"installed in {time.monotonic() - begun:.0f} s, {size:,.0f} MB")
    return folder / "venv" / "bin"


class Screen:
    """A shell in a terminal of its own, in an empty environment."""

    def __init__(self, folder: Path, programs: Path, term: str) -> None:
        self._tmux = ["tmux", "-u", "-f", "/dev/null", "-S", str(folder / "tmux")]
        empty = f"env -i PATH={programs}:/usr/bin:/bin HOME={folder} TERM={term} PS1='{PROMPT}' sh"
        size = ("-x", str(COLUMNS), "-y", str(LINES))
        subprocess.run([*self._tmux, "new-session", "-d", *size, "-c", str(folder), empty], check=True)

    def type(self, line: str) -> None:
        """Type a line and press Enter."""
        subprocess.run([*self._tmux, "send-keys", line, "Enter"], check=True)

    def text(self) -> str:
        """Return what is on the screen, with its colours."""
        done = subprocess.run([*self._tmux, "capture-pane", "-e", "-p"], check=True, capture_output=True, text=True)
        return done.stdout

    def at_prompt(self) -> bool:
        """Return whether the shell waits for another line."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.text()).rstrip().splitlines()
        return bool(lines) and lines[-1] == PROMPT.strip()

    def close(self) -> None:
        """End the terminal and what runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False)


def svg_of(text: str, title: str) -> str:
    """Return a screen as SVG."""
    console = Console(width=COLUMNS, height=LINES, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text), overflow="crop", no_wrap=True)
    svg = console.export_svg(title=title)
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("<text ", '<text xml:space="preserve" ')


def play(screen: Screen, line: str) -> dict[str, str]:
    """Type a line, and return the screens by when they were seen."""
    while not screen.at_prompt():
        time.sleep(0.05)
    begun, seen = time.monotonic(), {}
    screen.type(line)
    for after in AFTER_S:
        while time.monotonic() < begun + after:
            time.sleep(0.05)
        seen[f"{after:.0f}s"] = screen.text()
    while not screen.at_prompt() and time.monotonic() < begun + END_S:
        time.sleep(0.2)
    print(f"{line}: {time.monotonic() - begun:.0f} s at most")
    return seen | {"end": screen.text()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Play README's first screen in an empty environment.")
    parser.add_argument("--line", default="etl demo", help="what is typed")
    parser.add_argument("--programs", type=Path, help="where etl is installed; installed anew by default")
    parser.add_argument("--target", type=Path, default=Path("screens"), help="directory for the screens")
    parser.add_argument("--term", default="xterm", help="what TERM says")
    given = parser.parse_args()
    given.target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="first-") as name:
        folder = Path(name)
        screen = Screen(folder, given.programs.resolve() if given.programs else install(folder), given.term)
        try:
            seen = play(screen, given.line)
        finally:
            screen.close()
    for when, text in seen.items():
        (given.target / f"{when}.ansi").write_text(text, "utf-8")
        if shutil.which("rsvg-convert"):
            write(svg_of(text, given.line), given.target / f"{when}.png")


if __name__ == "__main__":
    main()
