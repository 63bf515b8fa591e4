"""Bad input: one clear line that says what, where and what next, the documented exit code, and nothing lost."""

import gzip
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState

from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.state.lock import StateLock

Etl = Callable[..., Any]

GOOD = b'{"id":"a","path":"a.jpg"}\n{"id":"b","path":"b.jpg"}\n'


def rows(state: Path) -> list[tuple[Any, ...]]:
    """Return everything that the state knows of records, sources and captions."""
    connection = sqlite3.connect(f"{(state / 'state.db').resolve().as_uri()}?mode=ro", uri=True)
    try:
        tables = ("manifests", "records", "record_lines", "sources", "images", "captions", "recipes")
        return [row for table in tables for row in connection.execute(f"SELECT '{table}', * FROM {table} ORDER BY 2")]
    finally:
        connection.close()


def assert_one_line(answer: Any, code: int, *said: str) -> None:
    """The answer is one ``error:`` line with these words, this exit code, and nothing on stdout."""
    assert answer.code == code, answer.err
    assert answer.out == ""
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    missing = [words for words in said if words not in answer.err]
    assert not missing, answer.err


def write(name: str, content: bytes | str) -> Callable[[], object]:
    """Return what writes a file into the working directory."""
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(name).write_bytes(data)


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        arguments: of the program.
        said: words of the message: what is wrong, where, and what to do where that is not plain.
        code: the exit code.
        before: prepares the working directory.
    """

    arguments: str
    said: tuple[str, ...]
    code: int = 2
    before: Callable[[], object] = field(default=lambda: None)


CASES = {
    "missing manifest": Case("ingest missing/x.jsonl", ("there is no manifest missing/x.jsonl",)),
    "missing manifest in run": Case("run --input missing/x.jsonl", ("there is no manifest missing/x.jsonl",)),
    "missing template": Case(
        "run x.jsonl --prompt-template no.txt", ("cannot read the prompt template no.txt: No such file",),
        before=write("x.jsonl", GOOD),
    ),
    "a day as deadline": Case(
        "fetch --deadline yesterday", ("deadline = 'yesterday': give a time (17:30), a date and time",)
    ),
    "a manifest without a name": Case("run --input= -o x.jsonl", ("the name of a manifest is empty",)),
    "empty manifest": Case(
        "ingest x.jsonl", ("x.jsonl holds no records", "nothing was changed"), before=write("x.jsonl", "")
    ),
    "blank manifest": Case("ingest x.jsonl", ("x.jsonl holds no records",), before=write("x.jsonl", "\n \n\n")),
    "empty directory": Case("ingest d", ("d holds no records",), before=lambda: Path("d").mkdir()),
    "gzip cut short": Case(
        "ingest x.jsonl.gz", ("x.jsonl.gz is cut short or damaged",),
        before=write("x.jsonl.gz", gzip.compress(b'{"id":"c","path":"c.jpg"}\n' * 1000)[:-20]),
    ),
    "damaged zstd": Case(
        "ingest x.zst", ("x.zst is cut short or damaged",), before=write("x.zst", b"\x28\xb5\x2f\xfd????")
    ),
    "a broken array": Case("ingest x.json", ("x.json, line 1: cut short",), before=write("x.json", '[{"id":1}')),
    "ragged CSV": Case(
        "ingest x.csv --strict", ("x.csv, line 1", "more than the 2"), before=write("x.csv", "id,url\na,b,c\n")
    ),
    "no encoding": Case("ingest x.csv --encoding utf8x", ("no encoding", "did you"), before=write("x.csv", "url\nb")),
    "a name that is not UTF-8": Case(
        "ingest caf\udce9.jsonl", ("not UTF-8", "rename"), before=lambda: Path("caf\udce9.jsonl").write_bytes(GOOD)
    ),
    "strict": Case(
        "ingest x.jsonl --strict", ("x.jsonl, line 2", "not JSON"), before=write("x.jsonl", GOOD[:26] + b"{")
    ),
    "template syntax": Case(
        "ingest manifest.jsonl --prompt-template t", ("t, line 2",), before=write("t", "Describe.\n{% if %}")
    ),
    "template with a picture": Case(
        "ingest manifest.jsonl --prompt-template t", ("t contains <image>",), before=write("t", "<image> Describe.")
    ),
    "template without manifest": Case("run --prompt-template t", ("need the SOURCE",), before=write("t", "Describe.")),
    "missing configuration": Case(
        "fetch --config none.toml", ("cannot read the configuration none.toml: No such file or directory\n",)
    ),
    "rewrite of nothing": Case("fetch --rewrite-url nonsense", ("'nonsense'", "REGEX=REPLACEMENT")),
    "rewrite with a broken pattern": Case("run --rewrite-url (=x --model demo", ("rewrite_url", "unterminated")),
    "rewrite in a dry run": Case("fetch --dry-run --rewrite-url nonsense", ("REGEX=REPLACEMENT",)),
    "template without a field": Case("fetch --mirror-template http://x.example/", ("names no field", "{field}")),
    "template with a field of no record": Case(
        "fetch --mirror-template http://x.example/{pth}", ("no record has the field 'pth'", "did you mean path?")
    ),
    "template with a field of no record, in a dry run": Case(
        "fetch --dry-run --mirror-template http://x.example/{pth}", ("did you mean path?",)
    ),
    "template with a field of no record, in run": Case(
        "run --model demo --mirror-template http://x.example/{pth}", ("did you mean path?",)
    ),
    "preferred without a mirror": Case("fetch --prefer-mirror", ("neither rewrite_url nor mirror_template",)),
    "no state": Case("fetch --state elsewhere", ("no state database in elsewhere", "etl ingest")),
    "no state to show": Case("status --state elsewhere", ("no state database in elsewhere", "etl ingest")),
    "misspelt state": Case("status --state sttae", ("no state database in sttae; did you mean state?", "etl ingest")),
    "state below a file": Case("ingest manifest.jsonl --state manifest.jsonl/s", ("manifest.jsonl/s", "--state"), 1),
    "state is a file": Case("ingest manifest.jsonl --state manifest.jsonl", ("not writable", "--state"), 1),
    "unknown recipe": Case("export out --recipe cafe", ("no recipe begins with 'cafe'", "known: abababababab")),
    "unknown key": Case("why nobody", ("no record with the key 'nobody'",)),
    "export below a file": Case("export manifest.jsonl/out", ("cannot write manifest.jsonl/out", "another place"), 1),
    "export into nowhere": Case("export none/out", ("write none/out: No such file", "make the directory none"), 1),
    "export to a directory": Case("export .", (". is a directory",)),
    "export to nothing": Case("export ''", ("the empty name",)),
    "quick and deep": Case("verify --quick --deep", ("--quick", "--deep", "choose one")),
    "a penalty for failed items": Case("retry-failed --repetition-penalty 1.3", ("needs --flag",)),
    "a flag of a failure": Case("retry-failed --flag echo --class timeout", ("--flag means finished", "--class")),
    "a flag of a download": Case("retry-failed --flag echo --stage fetch", ("--flag means finished", "--stage")),
    "no penalty": Case("retry-failed --flag echo --repetition-penalty 1", ("must be from 1.01 to 2, not 1",)),
    "a penalty too high": Case("retry-failed --flag echo --repetition-penalty 2.1", ("from 1.01 to 2, not 2.1",)),
    "a penalty of nan": Case("retry-failed --flag echo --repetition-penalty nan", ("from 1.01 to 2, not nan",)),
    "nothing to stop": Case("stop", ("no run is active", "nothing to stop")),
}  # fmt: skip


@pytest.fixture
def before(made: MadeState) -> list[tuple[Any, ...]]:
    """Make a state with a caption and a pending record; return all it knows."""
    made.ingest(GOOD)
    made.finish({"a": "A street."})
    return rows(made.settings.state)


@pytest.mark.parametrize("name", CASES)
def test_mistakes(etl: Etl, made: MadeState, before: list[tuple[Any, ...]], name: str) -> None:
    """Each mistake is one line with its exit code; the state knows what it knew before, and no other appears."""
    case = CASES[name]
    case.before()
    arguments = [argument.strip("'") for argument in case.arguments.split(" ")]
    there = {path.name for path in Path().iterdir()}
    assert_one_line(etl(*arguments), case.code, *case.said)
    assert rows(made.settings.state) == before
    assert {path.name for path in Path().iterdir()} == there


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run --limit 0", "--limit"),
        ("ingest manifest.jsonl --offset -1", "--offset"),
        ("ingest", "SOURCE"),
        ("export", "--output"),
        ("failures --stage bogus", "--stage"),
        ("retry-failed --flag bogus", "--flag"),
        ("status --bogus", "--bogus"),
        ("bogus", "bogus"),
    ],
)
def test_wrong_usage(etl: Etl, made: MadeState, before: list[tuple[Any, ...]], arguments: str, said: str) -> None:
    """Wrong flags and arguments exit with 2, name the flag and point to the help."""
    answer = etl(*arguments.split())
    assert (answer.code, answer.out) == (2, "")
    assert said.lower() in answer.err.splitlines()[-1].lower()
    assert len(answer.err.splitlines()) == 1 and answer.err.startswith("error: ")
    assert rows(made.settings.state) == before


BAD_LINES = [
    (b"{broken\n", "invalid_json", "not JSON"),
    (b'["a list"]\n', "invalid_json", "a JSON list, not an object"),
    (b'{"id":"\xff"}\n', "invalid_json", "not UTF-8: byte 0xff"),
    (b'{"id":"a","path":"a.jpg","again":1}\n', "duplicate_key", "line 1 has the same key 'a'"),
    (b'{"id":"c"}\n', "no_image_field", "none of the fields external_url, url"),
    (b'{"id":"c","url":"ftp://archive.example/a.jpg"}\n', "invalid_url", "ftp:"),
    (b'{"id":"c","url":"http://"}\n', "invalid_url", "no valid host"),
    (b'{"id":"%s","path":"c.jpg"}\n' % (b"x" * 600), "invalid_record", "600 characters"),
    (b'{"id":"\\ud800","path":"c.jpg"}\n', "invalid_record", "half a surrogate pair"),
]


@pytest.mark.parametrize(("line", "error_class", "said"), BAD_LINES)
def test_bad_lines(etl: Etl, line: bytes, error_class: str, said: str) -> None:
    """A bad line costs itself alone: exit 3, and ``etl failures`` names its line, class and reason."""
    Path("x.jsonl").write_bytes(GOOD + line + b'{"id":"z","path":"z.jpg"}\n')
    answer = etl("ingest", "x.jsonl")
    assert answer.code == 3
    assert "1 invalid (see `etl failures --stage ingest`)" in answer.err
    assert etl("status", "--json").json()["records"]["selected"] == 3
    failure = etl("failures", "--json").json()
    assert (failure["stage"], failure["error_class"]) == ("ingest", error_class)
    assert said in failure["message"]
    assert etl("why", failure["key"], "--json").json()["record"]["line"] == 3


def test_a_repaired_manifest_goes_on(etl: Etl) -> None:
    """After a damaged manifest was replaced by a whole one, the same command does what it should."""
    rng = random.Random(1)
    whole = gzip.compress(
        b"".join(
            b'{"id":"%d","path":"c.jpg","x":"%s"}\n' % (n, rng.randbytes(150).hex().encode()) for n in range(12_000)
        )
    )
    Path("x.jsonl.gz").write_bytes(whole[:-100])
    assert_one_line(etl("ingest", "x.jsonl.gz"), 2, "cut short")
    kept = etl("status", "--json").json()["records"]["total"]
    Path("x.jsonl.gz").write_bytes(whole)
    answer = etl("ingest", "x.jsonl.gz", "--json").json()
    assert (answer["records"], answer["resumed_at"]) == (12_000, kept)
    assert 0 < kept < 12_000


def model_without(*names: str, **renamed: str) -> Callable[[], object]:
    """Return what makes ``model``, a copy of the demo checkpoint without some files or with renamed ones."""

    def make() -> None:
        shutil.copytree(DEMO_CHECKPOINT, "model")
        for name in names:
            Path("model", name).unlink()
        for old, new in renamed.items():
            Path("model", old + ".safetensors").rename(Path("model", new))

    return make


MODELS = {
    "not cached": Case("someone/unknown", ("someone/unknown is not", "local cache")),
    "no id": Case("no such id!", ("neither a directory nor a valid Hugging Face id",)),
    "missing directory": Case("./missing", ("there is no directory ./missing", "'demo'")),
    "no model": Case(".", ("no config.json",)),
    "pickles": Case("model", ("pickled weights", "safetensors"), before=model_without(model="pytorch_model.bin")),
    "no weights": Case("model", ("no safetensors weights",), before=model_without("model.safetensors")),
    "no GPU": Case("demo --device cuda:99", ("no GPU was found here", "--device cpu")),
    "no device": Case("demo --device toaster", ("device = 'toaster'", "auto, cpu, cuda")),
}


@pytest.mark.parametrize("name", MODELS)
def test_unknown_models(
    etl: Etl, made: MadeState, before: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A model that cannot be found, loaded or driven is one line, and no caption is lost or charged."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    case = MODELS[name]
    case.before()
    model, *flags = case.arguments.split(" ") if name != "no id" else [case.arguments]
    assert_one_line(etl("caption", "--model", model, *flags), 2, *case.said)
    assert rows(made.settings.state) == before
    assert etl("runs", "--limit", "1", "--json").json()["state"] != "running"


def test_a_newer_database(etl: Etl, made: MadeState, before: list[tuple[Any, ...]]) -> None:
    """A database of a newer version is left untouched by every command."""
    path = made.settings.state / "state.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    content = path.read_bytes()
    for command in ("status", "fetch", "ingest manifest.jsonl", "export out.jsonl", "failures", "verify"):
        assert_one_line(etl(*command.split()), 2, "schema 99", "upgrade")
    assert path.read_bytes() == content
    assert rows(made.settings.state) == before


def test_a_damaged_database(etl: Etl, made: MadeState) -> None:
    """A file that is no database is named, not overwritten."""
    made.settings.state.mkdir()
    path = made.settings.state / "state.db"
    path.write_bytes(b"this is no database " * 1000)
    Path("manifest.jsonl").write_bytes(GOOD)
    for command in ("status", "fetch", "ingest manifest.jsonl"):
        assert_one_line(etl(*command.split()), 1, "state.db is damaged", "restore a copy")
    assert path.read_bytes() == b"this is no database " * 1000
    path.unlink()
    assert etl("ingest", "manifest.jsonl").code == 0
    # SQLite's own message quotes it.
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"CREATE \xea\xea\xea\xea\xea", 1))
    for command in ("status", "ingest manifest.jsonl"):
        assert_one_line(etl(*command.split()), 1, "state.db is damaged", "restore a copy")


def test_a_second_run(etl: Etl, made: MadeState, before: list[tuple[Any, ...]]) -> None:
    """While one run holds the state, commands that write exit 4 and change nothing; those that look work."""
    holder = [sys.executable, "-c", f"from etl.state.lock import StateLock\nfrom pathlib import Path\n"
              f"with StateLock(Path({str(made.settings.state)!r})): print('held', flush=True); input()"]  # fmt: skip
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        for command in ("ingest manifest.jsonl", "run --model demo", "verify"):
            assert_one_line(etl(*command.split()), 4, f"pid {process.pid}", "etl stop")
        assert etl("status").code == 0
        process.communicate("\n")
    assert rows(made.settings.state) == before
    assert etl("verify", "--json").json()["images"] == 1


def test_a_state_that_may_not_be_written(etl: Etl, made: MadeState, before: list[tuple[Any, ...]]) -> None:
    """On a read-only disk work says so with exit code 1, and looking still works."""
    state = made.settings.state
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "--bind", state, state], check=False, capture_output=True).returncode
    ):
        pytest.skip("only root may mount a file system")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", state], check=True)
        for command in ("ingest manifest.jsonl", "fetch"):
            assert_one_line(etl(*command.split()), 1, "not writable", "--state")
        assert etl("verify").code == 1
    finally:
        subprocess.run(["umount", state], check=True)
    assert rows(state) == before


def test_a_lock_from_a_dead_process(etl: Etl, made: MadeState) -> None:
    """A lock file that a killed process left behind holds nobody off."""
    made.ingest(GOOD)
    (made.settings.state / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert etl("ingest", "manifest.jsonl").code == 0
    with StateLock(made.settings.state):
        pass


def test_memory_that_ends_is_one_line(etl: Etl, tmp_path: Path) -> None:
    """A line that takes more memory than there is ends the ingest with exit 1, and says what to lower."""
    line = b'{"id": "a", "url": "http://a.example/a.jpg", "x": [' + b",".join([b"{}"] * 4_000_000) + b"]}\n"
    (tmp_path / "m.jsonl").write_bytes(b'{"id": "b", "url": "http://a.example/b.jpg"}\n' + line)
    code = (
        "import resource, sys\nfrom etl.cli import app, work\nimport etl.run.pipeline\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + (150 << 20),) * 2)\n"
        "sys.argv = ['etl', 'ingest', 'm.jsonl']\napp.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert ended.stderr.startswith("error: memory ran out; ") and ended.stderr.count("\n") == 1, ended.stderr
    assert etl("runs").code == 0


def test_an_empty_standard_input_is_called_so(etl: Etl, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is how it is written, not what it is."""
    with Path("/dev/null").open(encoding="utf-8") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert "error: standard input holds no records; nothing was changed" in etl("ingest", "-").err
