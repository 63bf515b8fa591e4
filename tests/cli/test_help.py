"""Help that people read: what a newcomer needs first, the rest by groups; slips get a hint; shells get values."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from support.made_state import MadeState

from etl.cli.app import app
from etl.cli.help import COMMANDS
from etl.cli.man import man_page
from etl.settings import Settings
from etl.settings.values import Group, known
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs

Etl = Callable[..., Any]
PROGRAM: Any = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the terminal be one of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def flags(page: str) -> set[str]:
    """Return the long options that have a line of their own."""
    return set(re.findall(r"^ +(?:-\w, )?--(?:\[no-\])?([a-z][\w-]+)", page, re.MULTILINE))


@pytest.mark.parametrize("command", PROGRAM.commands)
def test_a_page_for_newcomers_and_one_with_everything(etl: Etl, command: str) -> None:
    """The first page is short; both fit the terminal, and every option is on the second, under its group's heading."""
    first, everything = etl(command, "--help").out, etl(command, "--help-all").out
    assert len(first.splitlines()) <= 46 and len(flags(first)) <= 17
    assert all(len(line) <= 80 for line in (first + everything).splitlines())
    params = [one for one in PROGRAM.commands[command].params if one.param_type_name == "option" and not one.hidden]
    assert flags(everything) >= {max(one.opts, key=len)[2:] for one in params if one.name != "help_all"}
    assert not re.search(r"<[a-z]|int range|list\[|\bstr\b|default: 0\.0|\d{8}| s\]", everything)
    assert not re.search(r"\[default[^]]*\]\s*\[default", " ".join(everything.split()))
    for name, one in known(Settings).items():
        if name in {param.name for param in params} and one.flag[2:] not in flags(first):
            part = re.split(rf"^{one.group}:$", everything, maxsplit=1, flags=re.MULTILINE)[1]
            assert one.flag[2:] in flags(re.split(r"^\w+:$", part, maxsplit=1, flags=re.MULTILINE)[0])
    if first != everything:
        headings = re.findall(r"^(\w+):$", everything, re.MULTILINE)
        more = [str(group).lower() for group in Group if group in headings]
        assert f"more with --help-all: {', '.join(more)}." in " ".join(first.split())


def test_the_program_s_page(etl: Etl) -> None:
    """The main line is at the top; each command is under its heading, on one line that is not cut."""
    page = etl("--help").out
    assert page.index("    etl run manifest.jsonl -o captions.jsonl") < page.index("Work:") and "..." not in page[60:]
    for heading, commands in COMMANDS.items():
        part = page[page.index(f"{heading}:\n") :].split("\n\n")[0].splitlines()[1:]
        assert part == [f"  {name:<12}  {line}" for name, (_, line) in commands.items()]
    assert all(len(line) <= 80 for line in page.splitlines())
    PROGRAM.commands["run"].make_context("run", ["manifest.jsonl", "-o", "captions.jsonl"])


def test_names_stay_whole_where_lines_are_broken(etl: Etl, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 columns no line ends within a name with hyphens or between double braces, and all is plain text."""
    monkeypatch.setenv("COLUMNS", "60")
    pages = etl("run", "--help-all").out + etl("--help").out
    assert not re.search(r"\w-$|\{\{[^}]*$|[\u2011\xa0]", pages, re.MULTILINE)
    assert "llava-hf/llava-1.5-7b-hf" in pages and "{{ record.FIELD }}" in pages and "--install-completion" in pages


def test_the_manual_page() -> None:
    """It names every command and every option of it, and no line of a text is taken for a request."""
    page = man_page()
    for name, command in PROGRAM.commands.items():
        part = page[page.index(f'.SS "etl {name.replace("-", chr(92) + "-")}') :].split("\n.SS ")[0]
        for one in command.params:
            for flag in one.opts if one.param_type_name == "option" and one.name != "help_all" else ():
                either = (flag, flag.replace("--", "--[no-]"))
                assert any(one.replace("-", "\\-") in part for one in either), (name, flag)
    assert set(re.findall(r"^\.(\w+)", page, re.MULTILINE)) == {"TH", "SH", "SS", "TP", "PP", "B", "I"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fetsh", "Did you mean 'fetch'?"),
        ("fetch --per-hots 2", "No such option: --per-hots; did you mean --per-host? (see `etl fetch --help-all`)"),
        ("--model demo run", "No such option: --model; what belongs to a command stands behind its name"),
        ("fetch nothere", "etl fetch takes no SOURCE; type `etl ingest nothere` before it, or `etl run nothere` for"),
        ("status a b", "etl status takes options alone, and 'a b' is more; a state is named by --state DIR (see"),
        ("export a.jsonl b", "etl export takes OUTPUT alone, and 'b' is more"),
        ("run --prefix x", "--format and its options say how --output is written"),
        ("caption --model dmeo", "model = 'dmeo': did you mean demo?"),
        ("caption --dtype float61", "dtype = 'float61': did you mean float16?"),
        ("retry-failed --flag repetiton", "did you mean repetition?"),
        ("why", "Missing argument 'KEY'"),
        (
            "run --max-cache-size 20GBB",
            "--max-cache-size: max_cache_size = '20GBB' is not understood: give a size such as",
        ),
        ("fetch --read-timeout 3x", "give a duration such as 90m, 1h30m, 45s or 45 (seconds)"),
        ("failures --limit 1x", "'1x' is not understood: give a whole number such as"),
        ("failures -n 0", "'0': must be at least 1"),
        ("report --thumbnail 1k", "'1k': must be between 0 and 512"),
        ("split --parts 3", "No such option: --parts (see `etl split --help-all`)"),
        ("demo -s kept", "etl demo takes no --state: name the directory to keep, as in `etl demo kept`"),
        ("export", "say once where to write to"),
        ("export a -o b", "say once where to write to"),
    ],
)
def test_a_slip_gets_one_line(etl: Etl, line: str, said: str) -> None:
    """A misspelt command, option, choice or number ends with exit code 2 and one line that helps."""
    answer = etl(*line.split())
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
    assert answer.err.startswith("error: ") and said in answer.err


def test_numbers_are_written_alike_everywhere(
    etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flags, variables, files and commands' own options take sizes, counts and durations; bare numbers stay."""
    made.ingest(b'{"id":"a","path":"missing.jpg"}\n')
    Path("etl.toml").write_text('read_timeout = "1m30s"\nmin_rate = "8KiB/s"\nbackoff = 7\n')
    monkeypatch.setenv("ETL_MIN_FREE", "1MB")
    monkeypatch.setenv("ETL_HOST_PATIENCE", "120")
    assert etl("fetch", "--max-cache-size", "20GB", "--max-pixels", "400M", "--max-bytes", "5000").code == 3
    with Reader(made.settings.state) as reader:
        run = dict(json.loads(reader.rows("SELECT config FROM runs ORDER BY id DESC LIMIT 1")[0][0]))
        assert len(latest_runs(reader)) == 2
    assert (run["read_timeout"], run["min_rate"], run["backoff"]) == (90.0, 8192, 7.0)
    assert (run["min_free"], run["host_patience"]) == (1_000_000, 120.0)
    assert (run["max_cache_size"], run["max_pixels"], run["max_bytes"]) == (20 * 10**9, 400_000_000, 5000)
    assert len(etl("failures", "-n", "1k", "--json").out.splitlines()) == 1
    assert etl("report", tmp_path / "a.html", "-n", "1k").code == etl("report", "-o", tmp_path / "b.html").code == 0


def test_global_options_stand_before_or_behind_the_command(etl: Etl, made: MadeState) -> None:
    """Both places mean the same; where both are given, the one behind counts."""
    made.ingest(b'{"id":"a","path":"missing.jpg"}\n')
    state = str(made.settings.state)
    behind = etl("status", "--state", state, "--json").json()["records"]
    for line in (["-s", state, "--json", "status"], ["--json", "-s", "nowhere", "status", "-s", state]):
        assert etl(*line).json()["records"] == behind
    assert etl("-s", "nowhere", "status").code == 2
    assert etl("-q", "--config", "none.toml", "status", "-s", state).code == 2
    assert "etl.toml" not in etl("-q", "gc", "--dry-run", "-s", state).err


def offered(etl: Etl, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """Return what bash is offered at the end of a line; nothing may be said on stderr."""
    with monkeypatch.context() as patch:
        patch.setenv("_ETL_COMPLETE", "complete_bash")
        patch.setenv("COMP_WORDS", line)
        patch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        answer = etl()
    assert (answer.code, answer.err) == (0, "")
    return str(answer.out).split()


def test_the_shell_is_offered_values(
    etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Commands, options, choices, formats, models, and keys, hosts, classes, runs of the state on the line."""
    made.ingest(
        b'{"id":"a1","url":"http://b.example/x.jpg"}\n{"id":"a2","path":"no.jpg"}\n{"id":"c","path":"no.jpg"}\n'
    )
    state = made.settings.state
    assert etl("fetch", "-s", state, "--max-attempts", "1", "--host-patience", "1").code == 3
    (tmp_path / "hub" / "models--me--tiny").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with Reader(state) as reader:
        uids = {run.uid for run in latest_runs(reader)}
    for line, values in (
        ("etl fe", {"fetch"}),
        ("etl run --max-c", {"--max-cache-size"}),
        ("etl caption --dtype bf", {"bfloat16"}),
        ("etl export --format c", {"csv"}),
        ("etl retry-failed --flag rep", {"repetition"}),
        ("etl caption -m me", {"me/tiny"}),
        (f"etl why -s {state} a", {"a1", "a2"}),
        (f"etl -s {state} retry-failed --host ", {"b.example"}),
        (f"etl export -s {state} --since ", uids),
    ):
        assert values <= set(offered(etl, monkeypatch, line)), line
    assert "local_file" in offered(etl, monkeypatch, f"etl failures -s {state} --class ")
    assert "http_404" not in offered(etl, monkeypatch, f"etl failures -s {state} --class ")
    assert offered(etl, monkeypatch, "etl -s nowhere why ") == []


def test_no_name_of_a_stranger_is_run_by_the_shell(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names that no shell takes for more are offered, as zsh evaluates what it is given."""
    keys = ("$(touch x)", "`x`", "a\\\\", "b'c", 'd\\"e', "f;g", "-h", "i j", "k\\nl", "~m", "*", "plain-1.jpg")
    made.ingest("".join(f'{{"id":"{key}","path":"no.jpg"}}\n' for key in keys).encode())
    assert offered(etl, monkeypatch, f"etl why -s {made.settings.state} ") == ["plain-1.jpg"]
    Path("etl.toml").write_text("state = [")
    with contextlib.chdir("."):
        assert offered(etl, monkeypatch, "etl why ") == []
