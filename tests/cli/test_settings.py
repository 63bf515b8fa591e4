"""Settings: defaults, then ``etl.toml``, then ``ETL_*``, then flags; what is wrong is named with its place."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState

from etl.cli.options import CAPTION_SETTINGS, FETCH_SETTINGS, _help
from etl.errors import ConfigError
from etl.settings import Settings, load_settings
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs

Etl = Callable[..., Any]
MANIFEST = b'{"id":"a","path":"missing.jpg"}\n'


def used(made: MadeState, run: int) -> dict[str, Any]:
    """Return the settings that a run was started with."""
    with Reader(made.settings.state) as reader:
        return dict(json.loads(reader.rows("SELECT config FROM runs WHERE id = ?", (run,))[0][0]))


def test_each_place_beats_the_one_before(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag beats the environment, which beats the file, which beats the default; the run's row tells."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text("per_host = 2\nmax_attempts = 2\nconcurrency = 2\ndecoders = 1\n")
    monkeypatch.setenv("ETL_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("ETL_CONCURRENCY", "3")
    monkeypatch.setenv("ETL_ALLOW_HOST", "a.example, b.example")
    assert etl("fetch", "--concurrency", "4").code == 3
    config = used(made, 2)
    assert (config["per_host"], config["max_attempts"], config["concurrency"]) == (2, 3, 4)
    assert config["allow_host"] == ["a.example", "b.example"]
    assert config["longest_edge"] == Settings().longest_edge


def test_a_named_file(etl: Etl, made: MadeState) -> None:
    """``--config`` names another file, which is read in place of ``etl.toml``."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text("unknown = 1\n")
    Path("other.toml").write_text('contact = "me@archive.example"\nkeep_originals = true\n')
    assert etl("fetch", "--config", "other.toml", "--no-keep-originals").code == 3
    assert (used(made, 2)["contact"], used(made, 2)["keep_originals"]) == ("me@archive.example", False)


def test_every_setting_is_a_flag() -> None:
    """Every field of the settings can be given as an option of fetch, caption or run, or is a global option."""
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert fields == {"state", *FETCH_SETTINGS, *CAPTION_SETTINGS}


def test_every_setting_has_a_help_text() -> None:
    """The text of each option is that of the settings' own description, begun with a capital, without markup."""
    texts = _help()
    assert set(texts) == {field.name for field in dataclasses.fields(Settings)}
    assert texts["model"] == "Hugging Face id, local directory, or demo."
    assert texts["min_rate"].startswith("Bytes per second that") and texts["min_rate"].endswith("gives the deadline.")
    assert all(text[0] == text[0].upper() and "``" not in text and "  " not in text for text in texts.values())


def test_an_empty_variable_is_not_given(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ETL_STATE=`` does not mean the working directory, nor ``ETL_MAX_ATTEMPTS=`` a wrong number."""
    made.ingest(MANIFEST)
    monkeypatch.setenv("ETL_STATE", "")
    monkeypatch.setenv("ETL_MAX_ATTEMPTS", "")
    assert etl("status", "--json").json()["records"]["total"] == 1


BAD = [
    ("per_hots = 2\n", {}, [], ["etl.toml", "unknown setting 'per_hots'", "per_host"]),
    ("per_host = 2\nper_host = 3\n", {}, [], ["etl.toml is not valid TOML", "line 2"]),
    ("per_host = 'two'\n", {}, [], ["etl.toml", "per_host", "'two'", "int"]),
    ("per_host = 2.5\n", {}, [], ["etl.toml", "per_host", "2.5", "int"]),
    ("per_host = true\n", {}, [], ["etl.toml", "per_host", "True", "int"]),
    ("keep_originals = 1\n", {}, [], ["etl.toml", "keep_originals", "1", "bool"]),
    ("allow_host = 5\n", {}, [], ["etl.toml", "allow_host"]),
    ("per_host = 99\n", {}, [], ["per_host = 99", "between 1 and 32"]),
    ("dtype = 'int8'\n", {}, [], ["dtype", "'int8'", "float16"]),
    ("model = ''\n", {}, [], ["model is empty", "'demo'"]),
    ("", {"ETL_PER_HOST": "x"}, [], ["ETL_PER_HOST", "'x'", "int"]),
    ("", {"ETL_KEEP_ORIGINALS": "maybe"}, [], ["ETL_KEEP_ORIGINALS", "'maybe'", "bool"]),
    ("", {"ETL_BACKOFF_S": "nan"}, [], ["backoff_s = nan", "between 0"]),
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
        ("model = [1]", "model = [1] is not a valid str"), ("contact = 1979-05-27", "contact"),
        ("allow_host = {a = 1}", "not a valid list of texts"), ("allow_host = [1]", "not a valid list of texts"),
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
