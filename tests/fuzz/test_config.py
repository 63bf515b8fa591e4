"""Configuration of any type and spelling: settings, or one line that names the field and its place, and exit code 2."""

import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fuzzing import SOAK_FACTOR, Tally, harmed, inputs

from etl.cli.app import main
from etl.errors import ConfigError
from etl.settings import Settings
from etl.settings.sources import load_dashboard, load_settings

CONFIGS, COMMANDS = 250, 15
FIELDS = tuple(field.name for field in dataclasses.fields(Settings))

TOML_VALUES = (
    "1", "0", "-1", "3", "1.5", "nan", "inf", "-inf", "1e400", "true", "false", '""', '"x"', '"8"', "'a,b'",
    '"a\\u0000b"', '"\\u202e\\u001b[2J"', '"\\n\\n"', "9" * 400, "9" * 5000, "0x" + "f" * 5000, "0b1", "1_000", "[]",
    "[1, 2]", '["a", "b"]', '["a", 1]', "[[1]]", "[" * 5000, "{}", "{a = 1}", "1979-05-27", "07:32:00",
    "1979-05-27T07:32:00Z", '"' + "x" * 9000 + '"', "auto", '"""a\nb"""', "+5", "''", '"cuda:999999"', '"0,1"',
    '"\\U0001f600"', "1" + ".0" * 3,
)  # fmt: skip
TEXT_VALUES = (
    "1", "0", "-1", "1.5", "nan", "inf", "1e400", "true", "YES", "maybe", "x", " ", "a,b", ",", "9" * 400, "9" * 5000,
    "\u0663", "1_0", "0x10", "\u202e", "\x1b[2J", "x" * 9000, "auto", "slots", "float16", "all", "0,1", "\n", "\ud800",
    "--help", "-", "é", "+3", "3 ", "1e3", "None", "[]",
)  # fmt: skip


def toml(rng: random.Random) -> bytes:
    """Right names, wrong values."""
    return "\n".join(
        f"{rng.choice(FIELDS)} = {rng.choice(TOML_VALUES)}" for _ in range(rng.choice((1, 1, 1, 2)))
    ).encode()


def whole(rng: random.Random) -> bytes:
    """All that can be set, as it is by default."""
    values = {name: value for name, value in Settings().to_json().items() if rng.random() < 0.8}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join([*lines, "[dashboard]", 'theme = "dark"']).encode()


def no_toml(rng: random.Random) -> bytes:
    return rng.choice((
        rng.randbytes(200), b"\xef\xbb\xbfper_host = 1", "per_host = 1".encode("utf-16"), b"[" * 9000,
        b"a." * 3000 + b"b = 1", b"[" + b"a." * 9000 + b"b]", b"\0", b"dashboard = 1",
        b"[dashboard]\nx = 1\n[dashboard]", b"[[dashboard]]", b"'' = 1", b'"per\\nhost" = 1',
        b"per_host = 1\nper_host = 2", b'"\\u001b[2J" = 1', b"# only a comment", b"",
    ))  # fmt: skip


FILE_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "toml values": toml, "toml, harmed": lambda rng: harmed(whole(rng), rng), "toml, whole": whole, "no toml": no_toml,
}  # fmt: skip


def test_files_and_variables(tmp_path: Path, tally: Tally) -> None:
    """A file or variable gives settings that keep their limits, or a `ConfigError` that names its place and field."""
    feed(tmp_path, CONFIGS, tally)


def test_options(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any value of any option ends with exit code 2 and no traceback, or with a command that ran."""
    monkeypatch.chdir(tmp_path)
    feed_options(COMMANDS, tally, capsys)


@pytest.mark.soak
def test_files_and_variables_soak(tmp_path: Path, tally: Tally) -> None:
    """The same with many more."""
    feed(tmp_path, CONFIGS * SOAK_FACTOR, tally)


@pytest.mark.soak
def test_options_soak(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with many more."""
    monkeypatch.chdir(tmp_path)
    feed_options(COMMANDS * SOAK_FACTOR, tally, capsys)


def feed(directory: Path, count: int, tally: Tally) -> None:
    file = directory / "etl.toml"
    for kind, number, rng in inputs((*FILE_KINDS, "environment"), count):
        environment: dict[str, str] = {}
        named = [str(file)]
        if kind == "environment":
            file.write_bytes(b"")
            fields = rng.sample(FIELDS, rng.choice((1, 1, 2)))
            environment = {f"ETL_{field.upper()}": rng.choice(TEXT_VALUES) for field in fields}
            named = list(environment)
        else:
            file.write_bytes(FILE_KINDS[kind](rng))
        with tally.trying(kind, number) as outcome:
            try:
                settings = load_settings({}, file=file, environment=environment)
                load_dashboard(file)
            except ConfigError as error:
                assert any(name in str(error) for name in named) and len(str(error)) < 1500, error
                assert kind not in ("toml, whole",)
                if kind in ("toml values", "environment") and "not valid TOML" not in str(error):
                    assert any(f"{field} " in str(error) for field in FIELDS)
                outcome.append("refused")
            else:
                # What was accepted can be stored with the run and given to a child process.
                told = json.loads(json.dumps(settings.to_json() | {"webhook": settings.webhook}))
                assert Settings.from_json(told) == settings
                outcome.append("accepted")


def feed_options(count: int, tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    for _, number, rng in inputs(("option",), count):
        field = rng.choice([name for name in FIELDS if name != "state"])
        text = rng.choice(TEXT_VALUES)
        command = (
            "caption" if field in ("model", "dtype", "gpus", "engine", "slots", "max_aspect", "feeders") else "fetch"
        )
        flag = "--" + field.replace("_", "-")
        with tally.trying("option", number) as outcome, pytest.MonkeyPatch.context() as patch:
            # There is no state here: what passes the options ends with that.
            patch.setattr(sys, "argv", ["etl", command, "--state", "none", f"{flag}={text}"])
            with pytest.raises(SystemExit) as ended:
                main()
            shown = capsys.readouterr()
            assert ended.value.code == 2, shown.err
            assert shown.out == "" and "Traceback" not in shown.err
            assert "error: " in shown.err.lower() or "no such option" in shown.err.lower(), shown.err
            outcome.append("refused" if "there is no state" not in shown.err else "accepted")
