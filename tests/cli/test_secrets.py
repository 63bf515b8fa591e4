"""What opens doors, in a URL or the environment, stays where it was given."""

import json
import sqlite3
from pathlib import Path

import pytest
from cli.conftest import Etl
from support.made_state import MadeState

from etl.redaction import redact_text, redact_url
from etl.settings import Settings
from etl.state.store import Store

SECRET = "hunter2"
URL = f"https://me:{SECRET}@archive.example/a.jpg?X-Amz-Signature={SECRET}&size=9&{SECRET}#token={SECRET}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/a.jpg", "https://h/a.jpg"),
        ("https://me:pw@h:8/a?b=c&d=e#f", "https://h:8/a?b=...&d=...#..."),
        ("https://h/a?token", "https://h/a?..."),
        ("https://h/a?b=c;token=d", "https://h/a?b=..."),
        ("https://me:p@w@h/a", "https://h/a"),
        ("https://me:pw@[::1/a", "https://..."),
        ("HTTPS://me:pw@h/a", "https://h/a"),
        ("/pictures/a?b=c@d.jpg", "/pictures/a?b=c@d.jpg"),
    ],
)
def test_urls_are_shown_without_what_opens_doors(url: str, shown: str) -> None:
    """User name, password, query values and fragment go, also of a URL that is broken; paths are no URLs."""
    assert redact_url(url) == shown


def test_urls_within_texts() -> None:
    """Every URL of a text is redacted, in JSON and prose."""
    text = f'{{"url": "{URL}", "b": "x"}} and <{URL}> end'
    shown = redact_text(text)
    assert SECRET not in shown
    assert json.loads(shown.partition(" and ")[0])["b"] == "x" and shown.endswith("> end")


@pytest.fixture
def secret(made: MadeState) -> MadeState:
    """Return a state whose one record has a URL full of secrets, in every place that keeps URLs."""
    made.change(mirror_template=f"https://me:{SECRET}@store.example/{{id}}?sig={SECRET}",
                rewrite_url=(f"https://a=https://me:{SECRET}@b",))  # fmt: skip
    line = json.dumps({"id": "k", "url": URL, "also": [URL + "&a=\\" + SECRET]}).replace("://", r":\/\/", 1)
    made.ingest(line.encode())
    made.finish(dead_sources={"k": "http_403"}, message=f"refused: {redact_url(URL)}")
    with Store.open(made.settings) as store, store._connection.transaction() as db:
        db.conn.execute("UPDATE sources SET final_url = ?, mirror = ?", (URL, URL))
    return made


@pytest.mark.parametrize("words", [("why", "k"), ("failures",), ("status",), ("runs",), ("export", "x.jsonl")])
def test_no_command_tells_them(secret: MadeState, etl: Etl, words: tuple[str, ...]) -> None:
    """No form of any answer has them, nor has the log."""
    for form in ((), ("--json",)):
        answer = etl(*words, *form)
        assert SECRET not in answer.out + answer.err
    logs = "".join(path.read_text() for path in (secret.settings.state / "logs").iterdir())
    assert logs and SECRET not in logs


def test_who_asks_for_them_gets_them(secret: MadeState, etl: Etl) -> None:
    """``--raw`` gives the record as it is, and an export keeps every byte of it."""
    story = etl("why", "k", "--json", "--raw").json()
    assert URL in json.dumps(story)
    assert SECRET.encode() in secret.export()[0]


def test_the_settings_of_a_run_are_stored_without_them(secret: MadeState) -> None:
    """The run's row has the settings with redacted addresses; another process of the run gets them whole."""
    with sqlite3.connect(secret.settings.state / "state.db") as connection:
        stored = [row[0] for row in connection.execute("SELECT config FROM runs")]
    assert stored and not any(SECRET in config for config in stored)
    assert all(json.loads(config)["mirror_template"].startswith("https://store.example/") for config in stored)
    assert Settings.from_json(secret.settings.to_json()) == secret.settings


def test_doctor_redacts_proxies_of_every_form(etl: Etl, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy without a scheme, as curl takes it, is no less secret."""
    from etl.run.checks.machine import proxy

    for value in (f"http://me:{SECRET}@proxy:3128", f"me:{SECRET}@proxy:3128"):
        monkeypatch.setenv("http_proxy", value)
        assert SECRET not in proxy().detail and "proxy:3128" in proxy().detail
    assert etl("--version").code == 0


def test_log_lines_on_the_terminal_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    """A message and a traceback of the log are printed with their control characters as escapes."""
    import logging
    import sys

    from etl.cli.options import _Clean

    try:
        raise ValueError("b\x1b[31m\rc")
    except ValueError:
        record = logging.LogRecord("etl.x", logging.WARNING, __file__, 1, "a\x1b]0;x\x07\nforged", None, sys.exc_info())
    text = _Clean("%(levelname)s %(message)s").format(record)
    assert text.splitlines()[0] == r"WARNING a\x1b]0;x\x07\nforged"
    assert text.splitlines()[-1] == r"ValueError: b\x1b[31m\rc"
    assert capsys.readouterr().out == ""


def test_a_fault_of_ours_is_printed_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback that quotes a stranger acts on no terminal."""
    from etl.cli.app import _print_traceback

    error = RuntimeError("x\x1b[2J\u202e")
    _print_traceback(RuntimeError, error, None)
    assert capsys.readouterr().err == "RuntimeError: x\\x1b[2J\\u202e\n\n"


def test_an_export_keeps_a_private_file_private_and_follows_no_link(made: MadeState, tmp_path: Path) -> None:
    """The file that takes an old one's place has its mode; a link under the part's name leads nowhere."""
    made.ingest(b'{"id": "k", "url": "http://archive.example/a.jpg"}\n')
    (tmp_path / "out.jsonl").touch(0o600)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out.jsonl.part").symlink_to(victim)
    made.export()
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "out.jsonl").is_symlink()
    assert victim.read_text() == "mine"
