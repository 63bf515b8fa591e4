"""A format more is one class: its module in `etl.export.formats` needs no line anywhere else."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from support.made_state import MadeState
from typer.testing import CliRunner

from etl.cli.format_options import with_format_options
from etl.errors import ConfigError
from etl.export import formats
from etl.export.format import FileFormat, Sink, option
from etl.export.lines import ExportOptions, Joined
from etl.export.stage import check_target
from etl.run.pipeline import export_manifest


@dataclass(frozen=True)
class Text(FileFormat):
    """One caption on each line."""

    name = "text"
    help = "one caption on each line"
    suffixes = (".text",)
    shard_suffix = ".text"

    shout: bool = option(False, "Write captions in capitals.")

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write captions alone."""
        for record in records:
            text = record.row.text or ""
            stream.write(f"{text.upper() if self.shout else text}\n".encode())


@pytest.fixture(autouse=True)
def text_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the format known, as its module would."""
    monkeypatch.setitem(formats.FORMATS, Text.name, Text)


@pytest.fixture
def made(tmp_path: Path) -> MadeState:
    """Return a state with three captions."""
    made = MadeState(tmp_path)
    made.ingest(b"".join(b'{"id": "k%d", "url": "http://a.example/%d"}\n' % (n, n) for n in range(3)))
    made.finish({f"k{n}": f"Caption {n}." for n in range(3)})
    return made


def test_it_is_exported(made: MadeState, tmp_path: Path) -> None:
    """It is known by name and suffix, compressed and in shards like the others; its options reach it."""
    expected = b"Caption 0.\nCaption 1.\nCaption 2.\n"
    assert made.export("out.text")[0] == expected
    export_manifest(made.settings, str(tmp_path / "out.text.gz"), ExportOptions(format_options={"shout": True}))
    assert gzip.decompress((tmp_path / "out.text.gz").read_bytes()) == expected.upper()
    summary = export_manifest(made.settings, str(tmp_path / "shards"), ExportOptions(format="text", shard_size=2))
    assert (summary.format, summary.shards) == ("text-shards", 2)
    assert (tmp_path / "shards" / "shard-00001.text").read_bytes() == b"Caption 2.\n"


def test_what_it_cannot_do_is_said_before_the_work() -> None:
    """A target that it cannot have, and an option that no format has, are refused with what is known."""
    with pytest.raises(ConfigError, match="text cannot be written to stdout; give a name"):
        check_target("-", ExportOptions(format="text"))
    with pytest.raises(
        ConfigError, match="'loud'; known: keep_existing, prefix, suffix, overwrite, escape_formulae, originals, shout"
    ):
        check_target("out.text", ExportOptions(format_options={"loud": True}))
    with pytest.raises(ConfigError, match="--shout is an option of text, and this is written as jsonl: leave it out"):
        check_target("out.jsonl", ExportOptions(format_options={"shout": True, "prefix": ""}))


def test_its_option_is_one_of_the_command() -> None:
    """The command line has the option and its help, without a word about it there."""
    app = typer.Typer()

    @app.command()
    @with_format_options
    def export(target: str, **format_options: bool | str) -> None:
        print(target, sorted(name for name, value in format_options.items() if value))

    def output(*words: str) -> Any:
        return CliRunner().invoke(app, words).stdout

    assert output("out.text", "--shout") == "out.text ['escape_formulae', 'shout']\n"
    assert "Write captions in capitals." in " ".join(output("--help").replace("│", " ").split())
