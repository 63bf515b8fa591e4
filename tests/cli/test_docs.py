"""The documentation names every command, option, setting, exit code and error class, and its examples are real."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from support.settings_table import lines

from etl import errors
from etl.cli.app import app
from etl.errors import CrashedError, DecoderCrashedError, EtlError, ImageLoaderCrashedError, item_error_classes
from etl.export.formats import FORMATS
from etl.settings import Settings
from etl.settings.values import Trust, known
from etl.state.captions import CaptionQueue
from etl.state.sources import SourceQueue

DOCS = Path(__file__).parents[2] / "docs"
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
ERRORS = (DOCS / "errors.md").read_text(encoding="utf-8")
OUTPUTS = (DOCS / "outputs.md").read_text(encoding="utf-8")

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
GLOBALS = {"--state", "-s", "--help-all", "--config", "--json", "--quiet", "-q", "--verbose", "-v", "--help", "-h"}


def section(title: str) -> str:
    """Return the text under a heading of the command line's page."""
    found = re.search(rf"^(#+) {re.escape(title)}.*?$", CLI, re.MULTILINE)
    assert found, f"docs/cli.md has no heading {title!r}"
    behind = CLI[found.end() :]
    return re.split(rf"^#{{2,{len(found[1])}}} ", behind, maxsplit=1, flags=re.MULTILINE)[0]


def flags_of(command: str) -> dict[str, list[str]]:
    """Return the spellings of each option by parameter name."""
    parameters = [one for one in COMMANDS[command].params if one.param_type_name == "option"]
    return {one.name: [*one.opts, *one.secondary_opts] for one in parameters}


def table(text: str) -> list[list[str]]:
    """Return the cells of all table rows."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def examples() -> list[str]:
    """Return every example: in tables and in blocks of shell."""
    text = CLI + OUTPUTS
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    rows = re.findall(r"^\|.*\| (.*) \|$", text, re.MULTILINE)
    return [*lines, *re.findall(r"`(etl [^`|]*)`", "\n".join(rows))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option(command: str) -> None:
    """Each command has its section with an example; each option is there, among the global ones or the settings."""
    text = section(f"`etl {command}")
    assert any(one.startswith(f"etl {command}") for one in examples())
    settings = section("Settings")
    for name, flags in flags_of(command).items():
        if set(flags) <= GLOBALS:
            place = section("Global options")
        elif name in known(Settings):
            place = settings
        else:
            place = text
            assert any(f"etl {command}" in one and set(flags) & set(one.split()) for one in examples()), flags
        assert all(re.search(rf"`{flag}[ `]", place) for flag in flags), f"{flags} of etl {command}"


def test_no_section_without_a_command() -> None:
    """No command is described that does not exist."""
    assert set(re.findall(r"^### `etl ([\w-]+)", CLI, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("example", examples())
def test_examples_are_accepted(example: str) -> None:
    """Every example is a command line that the program accepts."""
    words = [word for word in shlex.split(example) if not re.match(r"[A-Z_]+=", word)]
    assert words[0] == "etl"
    command = COMMANDS[words[1]]
    if {"-h", "--help", "--help-all"} & {*words}:
        return
    command.make_context(words[1], words[2:])


def test_every_setting() -> None:
    """The table is what the settings say of themselves, and the flags and commands in it are those of the program."""
    shown = [line for line in section("Settings").splitlines() if line.startswith("| ")]
    written = [line for line in lines() if line.startswith("| ")]
    assert shown == written, "write it anew: python tests/support/settings_table.py"
    rows = {row[0].strip("`"): row for row in table(section("Settings"))}
    for name, (_, flags, _, _, _, commands, meaning) in rows.items():
        taking = [command for command in COMMANDS if name in flags_of(command)]
        assert set(taking) == (set(COMMANDS) if name == "state" else set(commands.split(", "))), name
        common = [flag for flag in flags_of(taking[0])[name] if flag in flags_of(taking[-1])[name]]
        assert re.findall(r"`([^`]+)`", flags) == common
        others = {flag for command in taking for flag in flags_of(command)[name]} - set(common)
        assert all(f"`{flag}`" in meaning for flag in others), f"{others} of {name}"


def test_what_the_user_alone_may_give_is_named() -> None:
    """The paragraph on a found `etl.toml` names each setting that does not count there."""
    paragraph = next(text for text in section("Settings").split("\n\n") if "that is only found" in text)
    own = {name for name, one in known(Settings).items() if one.trust is Trust.OWN}
    assert own == set(re.findall(r"`([a-z_]+)`", paragraph))


def test_every_format_of_exports() -> None:
    """Each format of exports has its row, with where it may be written to and what it says of itself, and its use."""
    rows = [row for row in table(OUTPUTS) if len(row) == 3]
    expected = []
    for name, one in FORMATS.items():
        file = "a file, `-`, or" if one.to_stdout else "a file, or"
        target = "a directory" if one().is_directory else f"{file} with `--shard-size` a directory"
        expected.append([f"`{name}`", target, one.help])
    assert rows == expected
    format_row = next(row for row in table(section("`etl export")) if row[0].startswith("`--format "))
    assert all(f"`{name}`" in format_row[1] for name in FORMATS)
    usual = re.findall(r"`etl export [^`]*`", OUTPUTS.split("## Formats")[0])
    assert all(any(f"--format {name}" in one or one.endswith(f".{name}`") for one in usual) for name in FORMATS)
    assert all(f"`{one.suffixes[0]}`" in section("`etl export") for one in FORMATS.values() if one.suffixes)


def test_every_exit_code() -> None:
    """Each exit code of the errors, and those of a run, is in the table."""
    codes = {int(code) for code in re.findall(r"\d+", " ".join(row.split("|")[1] for row in exit_rows()))}
    raised = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, EtlError)}
    assert raised | {0, 3, 6, 129, 130, 143, 141} == codes


def exit_rows() -> list[str]:
    """Return the rows of the table of exit codes."""
    return [line for line in section("Exit codes").splitlines() if re.match(r"\| \d", line)]


DEATHS = {
    DecoderCrashedError.slug: f"up to {SourceQueue.dead_after_crashes} deaths",
    ImageLoaderCrashedError.slug: f"up to {CaptionQueue.dead_after_crashes} deaths",
    CrashedError.slug: f"up to {CaptionQueue.dead_after_crashes} deaths",
}
"""What is tried again although its class is not retryable: it may have been another picture's fault."""


def test_every_error_class() -> None:
    """Each error class has one row with its meaning, whether it is retried as the code says, and what to do."""
    rows = {row[0].strip("`"): row for row in table(ERRORS)}
    assert len(rows) == len(table(ERRORS))
    classes = {cls.slug: cls for cls in item_error_classes()}
    assert set(rows) == {*classes, "internal"}
    for slug, cls in classes.items():
        _, meaning, retried, advice = rows[slug]
        assert retried == DEATHS.get(slug, "yes" if cls.retryable else "no"), slug
        assert len(meaning) > 15 and len(advice) > 10, slug


def test_links_lead_somewhere() -> None:
    """Links between these pages name files and headings that exist."""
    for target in re.findall(r"\]\(([^)]+)\)", CLI + ERRORS):
        file, _, heading = target.partition("#")
        assert not file or (DOCS / file).exists(), target
        assert not heading or f"## {heading.capitalize()}" in CLI, target
