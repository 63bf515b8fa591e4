"""A folder that somebody else has packed: what its `etl.toml`, and what else lies in it, can have the program do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState
from support.workbench import scenes

from etl.errors import ConfigError
from etl.settings import Settings
from etl.settings.sources import load, load_settings
from etl.settings.values import Trust, known
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs

OWN = [name for name, one in known(Settings).items() if one.trust is Trust.OWN]

Etl = Callable[..., Any]
MANIFEST = b'{"id":"a","path":"a.jpg"}\n'

STRANGE = {
    "endpoint": ["http://elsewhere.example/v1"],
    "endpoint_model": "dear", "chat_template_arg": ["enable_thinking=true"],
    "native_prompt": "theirs", "backend": "openai", "fetch_backend": "ray",
    "vllm": "./vllm", "vllm_arg": ["trust-remote-code"],
    "ray_address": "elsewhere.example:6379", "insecure": True, "webhook": "https://elsewhere.example/secret-path",
    "model": "./model", "revision": "theirs", "state": "/home/somebody/state", "allow_path": ["/"],
    "rewrite_url": ["a=/etc/b"], "mirror_template": "/etc/{id}", "prefer_mirror": True, "allow_host": ["10.0.0.1"],
    "metrics_port": 9400, "metrics_address": "0.0.0.0", "max_bytes": 10**12, "max_pixels": 10**10,
    "decoder_memory": 10**12, "min_free": 0, "max_cache_size": 1, "respect_robots": True, "host_rate": 999.0,
    "url_identity": True,
}  # fmt: skip


def written(name: str, value: Any) -> str:
    """Return a setting as TOML."""
    return f"{name} = {json.dumps(value)}\n"


def test_every_setting_is_classified() -> None:
    """Whoever adds a setting says whether a stranger's folder may give it."""
    assert all(isinstance(one.trust, Trust) for one in known(Settings).values())
    assert set(STRANGE) == set(OWN), "what a stranger's folder would have it be"


@pytest.mark.parametrize("name", sorted(OWN))
def test_what_opens_doors_is_the_user_s_to_give(name: str) -> None:
    """Found, it ends the command that goes by it, with the way out; named, or where the user says it, it counts."""
    Path("etl.toml").write_text(written(name, STRANGE[name]))
    default = getattr(Settings(), name)
    with pytest.raises(ConfigError) as caught:
        load_settings(environment={}, used=[name])
    message = str(caught.value)
    assert name in message and "--config etl.toml" in message and f"--{name.replace('_', '-')}" in message
    assert getattr(load_settings(environment={}, used=["per_host"]), name) == default, "it was obeyed"
    assert getattr(load_settings({name: default}, environment={}), name) == default
    named = getattr(load_settings(file=Path("etl.toml"), environment={}), name)
    assert json.loads(json.dumps(named, default=str)) == STRANGE[name]


def test_what_changes_nothing_is_no_reason_to_stop() -> None:
    """A file that says what holds anyway is not in the way."""
    Path("etl.toml").write_text('state = "state"\nmodel = "mine"\nper_host = 2\n')
    assert load_settings(environment={"ETL_MODEL": "mine"}).per_host == 2


def test_a_command_ends_before_it_begins(etl: Etl, made: MadeState) -> None:
    """`caption` would send pictures and a key: exit 2, one line, no run; commands that send nothing go on."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text('backend = "openai"\nendpoint = "http://elsewhere.example/v1"\nper_host = 2\n')
    answer = etl("caption")
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
    assert answer.err.startswith("error: etl.toml was only found") and "backend, endpoint" in answer.err
    assert len(answer.err) < 400
    assert etl("status").code == 0 and etl("fetch", "--dry-run").code == 0
    assert etl("export", "out.jsonl").code == 0
    with Reader(made.settings.state) as reader:
        assert [run.stages for run in latest_runs(reader)] == [("export",), ("ingest",)]


def test_each_file_is_named_with_what_it_changes(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that works says so in one harmless line without secrets; `-q` and commands that look do not."""
    made.ingest(MANIFEST)
    Path("etl.toml").write_text(
        'per_host = 2\nconcurrency = 3\nmax_attempts = 4\ncontact = "\\u001b[31m' + "x" * 300 + '"\n'
    )
    monkeypatch.setenv("ETL_CONCURRENCY", "5")
    line = etl("fetch", "--max-attempts", "1").err.splitlines()[0]
    assert line.startswith('settings  etl.toml: per_host = 2, contact = "\\u001b[31mxxx') and line.endswith("...")
    assert len(line) <= 200 and line.isprintable()
    assert "settings  " not in etl("fetch", "-q").err + etl("status").err + etl("failures").err
    Path("mine.toml").write_text(written("webhook", STRANGE["webhook"]))
    [line] = load(file=Path("mine.toml"), environment={}).lines
    assert "elsewhere.example" in line and "secret-path" not in line


def test_the_user_s_own_file(tmp_path: Path) -> None:
    """It counts whole, below the folder's and a named one, unless others can write it."""
    own = tmp_path / "config" / "caption-etl" / "etl.toml"
    own.parent.mkdir(parents=True)
    own.write_text('model = "mine"\nper_host = 1\nhost_rate = 3\n')
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    Path("etl.toml").write_text("per_host = 2\n")
    found = load(environment=environment)
    assert (found.settings.model, found.settings.per_host, found.settings.host_rate) == ("mine", 2, 3)
    assert found.lines == (f'settings  {own}: model = "mine", host_rate = 3.0', "settings  etl.toml: per_host = 2")
    Path("etl.toml").write_text('model = "theirs"\n')
    with pytest.raises(ConfigError, match="was only found"):
        load_settings(environment=environment)
    assert load_settings(file=own, environment=environment).model == "mine"
    assert load_settings(environment={"HOME": str(tmp_path)}, used=[]).per_host == Settings().per_host
    Path("etl.toml").unlink()
    own.chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by others"):
        load_settings(environment=environment)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "large"])
def test_what_is_found_is_not_waited_for(kind: str) -> None:
    """A FIFO is not opened, a link to a device not read, and of a giant file no more than a megabyte."""
    path = Path("etl.toml")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"#" * 1024 * 1024 + b"#")
    with pytest.raises(ConfigError, match=r"cannot read the configuration etl\.toml: it is (no regular file|larger)"):
        load_settings(environment={})


def test_a_named_file_may_be_a_pipe() -> None:
    """`--config <(decrypt settings)` is the user's word."""
    reading, writing = os.pipe()
    os.write(writing, b'model = "mine"\n')
    os.close(writing)
    assert load_settings(file=Path(f"/dev/fd/{reading}"), environment={}).model == "mine"
    os.close(reading)


def test_no_code_of_the_folder_is_run(tmp_path: Path) -> None:
    """Modules that lie there under the names of ours and of Python's are not what child processes import."""
    for name in ("json", "tui", "etl", "socket"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    (tmp_path / "a.jpg").write_bytes(scenes(1)[0][1])
    (tmp_path / "m.jsonl").write_bytes(MANIFEST)
    for arguments in (["ingest", "m.jsonl"], ["fetch", "--decoders", "1", "--json"], ["dashboard"]):
        command = [sys.executable, "-P", "-m", "etl.cli.app", *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == (2 if arguments == ["dashboard"] else 0), done.stderr
    assert "needs a terminal" in done.stderr
    assert not (tmp_path / "ran").exists()
