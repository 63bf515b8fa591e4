"""Settings: defaults, then ``etl.toml``, then ``ETL_*``, then flags; what is wrong is named with its place."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from support.made_state import MadeState
from support.settings_table import lines

from etl.cli import options
from etl.errors import ConfigError
from etl.settings import Settings, sources
from etl.settings.sources import load_settings
from etl.settings.values import Trust, known, setting
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs

Etl = Callable[..., Any]
MANIFEST = b'{"id":"a","path":"missing.jpg"}\n'


def used(made: MadeState, run: int) -> dict[str, Any]:
    """Return the settings that a run was started with."""
    with Reader(made.settings.state) as reader:
        return dict(json.loads(reader.rows("SELECT config FROM runs WHERE id = ?", (run,))[0][0]))


def test_each_place_beats_the_one_before(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag beats the environment, that the file, that the profile, that the default; the run's row tells."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text('per_host = 3\nmax_attempts = 2\nconcurrency = 2\ndecoders = 1\nprofile = "crawl"\n')
    monkeypatch.setenv("ETL_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("ETL_CONCURRENCY", "3")
    monkeypatch.setenv("ETL_ALLOW_HOST", "a.example, b.example")
    assert etl("fetch", "--concurrency", "4").code == 3
    config = used(made, 2)
    assert (config["per_host"], config["max_attempts"], config["concurrency"]) == (3, 3, 4)
    assert (config["host_patience"], config["connect_timeout"]) == (60, 10)
    assert config["allow_host"] == ["a.example", "b.example"]
    assert config["longest_edge"] == Settings().longest_edge


def test_a_named_file(etl: Etl, made: MadeState) -> None:
    """``--config`` names another file, which is read in place of ``etl.toml``; a byte order mark is no matter."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text("unknown = 1\n")
    Path("other.toml").write_text('\ufeffcontact = "me@archive.example"\nkeep_originals = true\n', encoding="utf-8")
    assert etl("fetch", "--config", "other.toml", "--no-keep-originals").code == 3
    assert (used(made, 2)["contact"], used(made, 2)["keep_originals"]) == ("me@archive.example", False)


def test_every_setting_is_a_flag() -> None:
    """Every field of the settings can be given as an option of fetch, caption or run, or is a global option."""
    taken = {name for name, one in known(Settings).items() if {"fetch", "caption", "run"} & {*one.commands}}
    assert {field.name for field in dataclasses.fields(Settings)} == {"state"} | taken


def test_every_setting_has_a_help_text() -> None:
    """The text of each option is a sentence of its own, with nothing but pairs of backticks for markup."""
    texts = {name: one.help for name, one in known(Settings).items()}
    assert set(texts) == {field.name for field in dataclasses.fields(Settings)}
    assert texts["model"] == "Hugging Face id, local directory, or `demo`."
    assert texts["min_rate"].startswith("What a download must") and texts["min_rate"].endswith("gives the deadline.")
    assert all(text[0] == text[0].upper() and text.endswith(".") and "  " not in text for text in texts.values())
    assert all("``" not in text and text.count("`") % 2 == 0 for text in texts.values())


def test_a_new_setting_is_one_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Option, help, variable, key, limits, trust, old name and line of documentation follow from what it says."""

    @dataclasses.dataclass(frozen=True)
    class More(Settings):
        depth: int = setting(
            3, ("look",), Trust.OWN, help="How `deep` to look.", limits=(1, 9), unit="m", former="depth_m"
        )

    for module in (options, sources):
        monkeypatch.setattr(module, "Settings", More)
    app, seen = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False), []

    @options.command(app)
    def look(context: options.Context) -> None:
        """Look."""
        seen.append(context.settings.to_json()["depth"])

    def run(*arguments: str) -> str:
        with contextlib.suppress(SystemExit):
            app(arguments)
        return " ".join("".join(capsys.readouterr()).split())

    assert "--depth N How deep to look. [default: 3]" in run("--help")
    run("--depth", "4")
    monkeypatch.setenv("ETL_DEPTH", "5")
    run()
    monkeypatch.delenv("ETL_DEPTH")
    (tmp_path / "named.toml").write_text("depth_m = 6\n")
    run("--config", str(tmp_path / "named.toml"))
    assert seen == [4, 5, 6]
    with pytest.raises(ConfigError, match="depth = 10: must be between 1 and 9"):
        run("--depth", "10")
    Path("etl.toml").write_text("depth = 7\n")
    with pytest.raises(ConfigError, match=r"was only found .* depth cannot count: .* or give --depth yourself"):
        run()
    assert "| `depth` | `--depth` | `3` | 1 to 9 | you alone | look | How `deep` to look. |" in lines(More)


def test_old_names(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, variables and stored settings of before may name a unit that the names have lost."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text("connect_timeout_s = 2\n")
    monkeypatch.setenv("ETL_READ_TIMEOUT_S", "3")
    monkeypatch.setenv("ETL_API_KEY_2", "a key is no setting")
    assert etl("fetch").code == 3
    config = used(made, 2)
    assert (config["connect_timeout"], config["read_timeout"]) == (2, 3)
    assert not [name for name in config if name.endswith("_s")]
    former = {one.former or name: config[name] for name, one in known(Settings).items()}
    assert "host_patience_s" in former and "interval_s" in former
    assert Settings.from_json(former) == Settings.from_json(config)
    with pytest.raises(ConfigError, match="settings: unknown setting 'per_hots'"):
        Settings.from_json({"per_hots": 1})


def test_an_empty_variable_is_not_given(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ETL_STATE=`` does not mean the working directory, nor ``ETL_MAX_ATTEMPTS=`` a wrong number."""
    made.ingest(MANIFEST)
    monkeypatch.setenv("ETL_STATE", "")
    monkeypatch.setenv("ETL_MAX_ATTEMPTS", "")
    monkeypatch.setenv("ETL_NO_SUCH", "")
    assert etl("status", "--json").json()["records"]["total"] == 1


BAD = [
    ("per_hots = 2\n", {}, [], ["etl.toml", "unknown setting 'per_hots'", "did you mean per_host?"]),
    (
        "[fetch]\nper-host = 2\n",
        {},
        [],
        ["settings stand at the top level, as per_host = ...: take the line [fetch] out"],
    ),
    ("[dashbord]\nkeys = 2\n", {}, [], ["there is no table 'dashbord'; did you mean [dashboard]?"]),
    ("nothing_such = 2\n", {}, [], ["etl.toml", "unknown setting 'nothing_such'; take it out (`etl run --help-all`"]),
    ("backoff = 1\nbackoff_s = 1\n", {}, [], ["etl.toml", "backoff_s is the old name of backoff, and both are given"]),
    ("connect_timeout_s = 0\n", {}, [], ["etl.toml: connect_timeout = 0.0", "between 50ms and 1h"]),
    ("", {"ETL_PER_HOTS": "2"}, [], ["unknown setting 'ETL_PER_HOTS'; did you mean ETL_PER_HOST?"]),
    ("", {"ETL_per_host": "2"}, [], ["unknown setting 'ETL_per_host'; did you mean ETL_PER_HOST?"]),
    ("", {"ETL_API_KEYS": "secret"}, [], ["unknown setting 'ETL_API_KEYS'; take it out"]),
    ("", {"ETL_BACKOFF": "1", "ETL_BACKOFF_S": "1"}, [], ["ETL_BACKOFF_S is the old name of ETL_BACKOFF"]),
    ("", {}, ["--per-hots", "2"], ["No such option: --per-hots", "--per-host"]),
    ("per_host = 2\nper_host = 3\n", {}, [], ["etl.toml is not valid TOML", "line 2"]),
    ("per_host = 'two'\n", {}, [], ["etl.toml", "per_host", "'two'", "give a whole number"]),
    ("per_host = 2.5\n", {}, [], ["etl.toml", "per_host", "2.5", "give a whole number"]),
    ("per_host = true\n", {}, [], ["etl.toml", "per_host", "True", "give a whole number"]),
    ("keep_originals = 1\n", {}, [], ["etl.toml", "keep_originals", "1", "true or false"]),
    ("allow_host = 5\n", {}, [], ["etl.toml", "allow_host"]),
    ("per_host = 99\n", {}, [], ["per_host = 99", "between 1 and 32"]),
    ("dtype = 'int8'\n", {}, [], ["dtype", "'int8'", "float16"]),
    ("model = ''\n", {}, [], ["model is empty", "'demo'"]),
    ("", {"ETL_PER_HOST": "x"}, [], ["ETL_PER_HOST", "'x'", "give a whole number"]),
    ("", {"ETL_KEEP_ORIGINALS": "maybe"}, [], ["ETL_KEEP_ORIGINALS", "'maybe'", "true or false"]),
    ("", {"ETL_BACKOFF": "nan"}, [], ["backoff = nan", "between 0"]),
    ("", {}, ["--per-host", "0"], ["per_host = 0", "between 1 and 32"]),
    ("", {}, ["--per-host", "x"], ["--per-host"]),
    ("", {}, ["--config", "missing.toml"], ["cannot read the configuration missing.toml"]),
    ("", {}, ["--config", "."], ["cannot read the configuration ."]),
]


@pytest.mark.parametrize(("file", "variables", "flags", "said"), BAD)
def test_bad_values(
    etl: Etl,
    made: MadeState,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    variables: dict[str, str],
    flags: list[str],
    said: list[str],
) -> None:
    """A wrong setting ends with exit code 2 and a message naming place, setting, value and what is accepted."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text(file)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    answer = etl("fetch", *flags)
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err
    assert all(part in answer.err for part in said), answer.err
    with Reader(made.settings.state) as reader:
        assert len(latest_runs(reader)) == 1


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """A configuration that is not UTF-8 is named."""
    path = tmp_path / "etl.toml"
    path.write_bytes(b"contact = '\xff'\n")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_settings(file=path, environment={})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("per_host = " + "9" * 5000, "not valid TOML"), ("per_host = 0x" + "f" * 5000, "too large to be shown"),
        ("host_rate = " + "9" * 400, "host_rate"), ("a = " + "[" * 5000, "not valid TOML"),
        ("model = [1]", "model = [1] is not understood: give a text"), ("contact = 1979-05-27", "contact"),
        ("allow_host = {a = 1}", "give a list of texts"), ("allow_host = [1]", "give a list of texts"),
        ('state = "a\\u0000b"', "NUL"), ("per_host = 99", "per_host = 99: must be between 1 and 32"),
        ('engine = "warp"', "must be one of auto"), ('gpus = "\u0663"', "must be 'all'"),
    ],
)  # fmt: skip
def test_values_that_python_itself_refuses(tmp_path: Path, content: str, said: str) -> None:
    """Numbers without end, deep nesting and wrong types are one line that names the file and stays short."""
    path = tmp_path / "etl.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(file=path, environment={})
    assert str(path) in str(caught.value) and said in str(caught.value) and len(str(caught.value)) < 400
