"""What each command answers: help, JSON contracts, exit codes, and what goes to which stream."""

import json
import os
import random
import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from support.made_state import MadeState

from etl import __version__
from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.cli import control, inspection
from etl.cli.app import app
from etl.cli.options import Context
from etl.demo.scenes import random_scene
from etl.domain.statuses import QueueStatus, Stage
from etl.settings import Settings
from etl.settings.values import known
from etl.state.lock import StateLock
from etl.state.store import Store

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
LOOKING = (["status"], ["failures"], ["why", "k1"], ["runs"])

Etl = Callable[..., Any]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(etl: Etl, command: str) -> None:
    """Every command explains itself and its options, and touches nothing."""
    answer = etl(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"Usage: etl {command}" in answer.out
    # The demo makes a state of its own, and refuses another.
    assert ("--state" in answer.out) == (command != "demo") and "--json" in etl(command, "--help-all").out
    assert "``" not in answer.out
    assert list(Path().iterdir()) == []


def test_help_and_version(process: Etl, etl: Etl) -> None:
    """The program names its commands and exit codes, its version, and what to do when nothing is asked of it."""
    answer = process("--help")
    assert answer.code == 0
    assert all(f"  {command} " in answer.out for command in COMMANDS)
    assert "Exit codes:" in answer.out
    assert etl("--version").out == f"caption-etl {__version__}\n"
    assert etl().code == 2


def test_commands_are_functions(made: MadeState, capsys: pytest.CaptureFixture[str]) -> None:
    """A command can be called as it stands in its module, without the program around it."""
    made.ingest(b'{"id":"a","path":"missing.jpg"}\n')
    context = Context(made.settings, json=True, quiet=True)
    inspection.status(context)
    assert json.loads(capsys.readouterr().out)["records"]["total"] == 1
    control.retry_failed(context, dry_run=True)
    assert json.loads(capsys.readouterr().out) == {"fetch": 0, "caption": 0}


def test_every_setting_of_fetch_explains_itself(etl: Etl) -> None:
    """Each setting has a text of its own in the help, from the one place where settings are described."""
    text = " ".join(etl("fetch", "--help-all").out.split())
    helps = [one.help for one in known(Settings).values()]
    assert len(helps) == len(set(helps))
    assert "Waits" not in text
    assert "Wait before the second attempt; doubles with each further one, with jitter. [default: 5s]" in text
    assert "Address space of one decoder process. [default: 4GiB]" in text


def test_a_whole_run(finished: Any) -> None:
    """``etl run --json`` exits 3 when records failed and answers with one object, everything else on stderr."""
    answer = finished.answer
    assert answer.code == 3, answer.err
    report = answer.json()
    assert (report["state"], report["signal"], report["failed"]) == ("partial", None, 3)
    assert report["stages"]["fetch"]["done"] == 5
    assert report["stages"]["caption"]["done"] == 5
    assert report["ingested"][0]["records"] == 9
    assert report["exported"]["rows"] == 8
    assert report["status"]["records"]["captioned"] == 5
    rows = [json.loads(line) for line in (finished.folder / "out.jsonl").read_text().splitlines()]
    assert [row.get("vlm_error") for row in rows] == [None] * 5 + ["not_an_image", "local_file", None]
    assert all(row["vlm_caption"] for row in rows[:5])


def test_status_json(etl: Etl, finished: Any) -> None:
    """``status --json`` is one object with records, a count per queue status, the run and the rates."""
    status = etl("status", "--json").json()
    assert status["records"] == {
        "total": 9, "selected": 7, "captioned": 5, "failed": 2, "skipped": 0, "pending": 0, "unselected": 1,
        "invalid": 1, "removed": 0,
    }  # fmt: skip
    names = {item.value for item in QueueStatus}
    assert status["sources"] == dict.fromkeys(names, 0) | {"done": 5, "dead": 2, "cancelled": 1}
    assert status["captions"] == dict.fromkeys(names, 0) | {"done": 5}
    assert {"uid", "state", "heartbeat_age_s"} <= status["run"].keys()
    assert status["run"]["state"] == "partial"
    assert set(status["rates"]) == {"fetched_per_s", "captioned_per_s", "bytes_per_s"}
    assert status["bytes_fetched"] == sum((finished.folder / f"{n}.jpg").stat().st_size for n in range(5))


@pytest.mark.parametrize(
    ("moment", "words"), [("0", "ended well on 1970-01-01"), ("1 << 50", "ended well in the future (was the")]
)
def test_status_after_the_clock_was_set(etl: Etl, made: MadeState, moment: str, words: str) -> None:
    """A run of another time is not 500,000 hours old, nor of a negative age."""
    with Store.open(made.settings) as store, store.run([Stage.INGEST]):
        pass
    with sqlite3.connect(made.settings.state / "state.db") as database:
        database.execute(f"UPDATE runs SET started_at = {moment}, heartbeat_at = {moment}, ended_at = {moment}")
    database.close()
    assert words in etl("status").out


def test_status_of_a_state_without_runs(etl: Etl, made: MadeState) -> None:
    """A state in which nothing has run yet has a run of state none."""
    Store.open(made.settings).close()
    assert etl("status", "--json").json()["run"] == {"uid": None, "state": "none", "heartbeat_age_s": None}
    assert "run       none yet" in etl("status").out


def test_failures_json(etl: Etl, finished: Any) -> None:
    """``failures --json`` is one object per line, from ingest to caption, and names the line of a bad record."""
    lines = etl("failures", "--json").out.splitlines()
    failures = [json.loads(line) for line in lines]
    assert all({"stage", "error_class", "key", "url", "attempts", "message"} <= one.keys() for one in failures)
    assert [(one["stage"], one["error_class"], one["key"]) for one in failures] == [
        ("ingest", "invalid_json", "manifest.jsonl:9"),
        ("fetch", "local_file", "k6"),
        ("fetch", "not_an_image", "k5"),
    ]
    assert failures[1]["url"].endswith("6.jpg")
    assert (failures[1]["attempts"], failures[1]["records"]) == (1, 1)
    assert finished.answer.code == 3


@pytest.mark.parametrize(
    ("chosen", "keys"),
    [
        (["--stage", "fetch"], ["k6", "k5"]),
        (["--class", "local_file"], ["k6"]),
        (["--key", "k5"], ["k5"]),
        (["--stage", "caption"], []),
        (["--limit", "2"], ["manifest.jsonl:9", "k6"]),
    ],
)
@pytest.mark.usefixtures("finished")
def test_failures_are_chosen(etl: Etl, chosen: list[str], keys: list[str]) -> None:
    """Failures can be chosen by stage, class, host and key, and limited."""
    assert [json.loads(line)["key"] for line in etl("failures", "--json", *chosen).out.splitlines()] == keys


@pytest.mark.usefixtures("finished")
def test_why(etl: Etl) -> None:
    """``why`` tells a record's whole story, to people and as one object."""
    story = etl("why", "k1", "--json").json()
    assert set(story) == {"record", "source", "image", "captions", "attempts", "line"}
    assert story["record"]["outcome"] == "captioned"
    assert [attempt["stage"] for attempt in story["attempts"]] == ["fetch", "caption"]
    text = etl("why", "k1").out
    assert story["captions"][0]["text"] in text
    assert "local_file after 1 attempt:" in etl("why", "k6").out
    unknown = etl("why", "k99")
    assert (unknown.code, unknown.out) == (2, "")
    assert "k99" in unknown.err


@pytest.mark.usefixtures("finished")
def test_runs(etl: Etl) -> None:
    """``runs`` lists the latest runs first, each with its stages and how it ended."""
    etl("export", "again.jsonl")
    runs = [json.loads(line) for line in etl("runs", "--json").out.splitlines()]
    assert [(run["stages"], run["state"]) for run in runs] == [
        (["export"], "done"), (["ingest", "fetch", "caption", "export"], "partial"),
    ]  # fmt: skip
    assert len(etl("runs", "--limit", "1").out.splitlines()) == 2


def test_verify(etl: Etl, finished: Any) -> None:
    """``verify`` ends with 3 over a lost picture and puts it back into the queue; a sound state gives 0."""
    sound = etl("verify", "--json")
    assert sound.code == 0
    assert (sound.json()["images"], sound.json()["problems"]) == (5, [])
    next((finished.folder / "state" / "images" / "working").rglob("*.jpg")).unlink()
    found = etl("verify")
    assert (found.code, found.out) == (3, "")
    assert "1 missing" in found.err and "put right 1 source is ready to be fetched again: run `etl fetch`" in found.err
    assert etl("verify").code == 0, "what is put right is found once"
    assert etl("status", "--json").json()["sources"]["ready"] == 1
    assert etl("fetch", "--json", "--decoders", "1").json()["stages"]["fetch"]["done"] == 1
    assert etl("verify", "--json").json()["missing"] == 0


def test_doctor(etl: Etl) -> None:
    """``doctor`` names each finding with its verdict, as a table and as one object per line."""
    found = [json.loads(line) for line in etl("doctor", "--json").out.splitlines()]
    names = "python packages sqlite disk files proxy gpu weights time"
    assert " ".join(one["name"] for one in found) == names
    assert {one["verdict"] for one in found} <= {"ok", "note", "fail"}
    assert re.search(r"^ok +sqlite", etl("doctor").out, re.MULTILINE)
    assert etl("doctor", "--json", "--state", "elsewhere").code == 0


def test_doctor_counts_the_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that the settings may run into is told with what they may need."""
    from etl.run.checks.machine import open_files

    assert open_files(Settings(decoders=2)).verdict == "ok"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert open_files(Settings(decoders=2)).verdict == "ok"
    found = open_files(Settings(decoders=2, endpoint=("http://a", "http://b", "http://c")))
    assert (found.verdict, found.detail) == ("note", "256 may be open, these settings may need 292")
    assert found.cure == "raise `ulimit -n`"


@pytest.mark.soak
def test_doctor_tries_what_a_cpu_can_run(etl: Etl) -> None:
    """``doctor --gpu --device cpu`` tries the engine in a process of its own, and says what is to be expected."""
    answer = etl("doctor", "--gpu", "--device", "cpu", "--model", "demo", "--json")
    found = {one["name"]: one for one in map(json.loads, answer.out.splitlines())}
    assert answer.code == 0
    assert found["slots"]["verdict"] == found["slots, penalised"]["verdict"] == "ok"
    assert {"kernel", "allocator", "attention", "memory", "speed"} <= found.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_doctor_without_a_gpu_to_try(etl: Etl) -> None:
    """``doctor --gpu`` exits 1 where there is no GPU, and names the way out."""
    answer = etl("doctor", "--gpu")
    assert answer.code == 1
    assert "there is none to be tried; --device cpu tries what a CPU can run" in answer.out


def test_doctor_fails_for_a_full_disk(etl: Etl, monkeypatch: pytest.MonkeyPatch) -> None:
    """``doctor`` exits 1 when something keeps work from going on."""
    monkeypatch.setenv("ETL_MIN_FREE", str(10**15))
    answer = etl("doctor")
    assert answer.code == 1
    assert re.search(r"^fail +disk", answer.out, re.MULTILINE)


def test_a_gpu_that_cannot_be_used_ends_it(etl: Etl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``doctor`` exits 1, ``caption`` and ``run`` 2, with a line that names the cure; on the CPU it is no matter."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-0, NVIDIA H200, 580.65, Disabled'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    random_scene(random.Random(1)).draw().save(tmp_path / "1.png")
    (tmp_path / "one.jsonl").write_text('{"id": "1", "path": "1.png", "description_source": "synthetic"}\n')
    why = "NVIDIA H200, driver 580.65, is there but PyTorch"
    answer = etl("doctor")
    assert answer.code == 1
    assert re.search(rf"^fail +gpu +{why} .*\n +`.*whl/cu130`, or use --device cpu$", answer.out, re.MULTILINE)
    assert etl("doctor", "--device", "cpu").code == 0
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("ETL_BACKEND", "openai")
        assert etl("doctor").code == 0
    local = ("--model", str(DEMO_CHECKPOINT))
    assert etl("run", "--input", "one.jsonl", "--output", "out.jsonl", *local).code == 2
    told = etl("caption", *local)
    assert (told.code, told.out) == (2, "")
    what, cure = told.err.splitlines()
    assert what.startswith(f"error: {why}") and cure.endswith("whl/cu130`, or use --device cpu")
    assert etl("runs").out == "", "a run that cannot work is not on record"


@pytest.mark.usefixtures("finished")
def test_retry_failed(etl: Etl) -> None:
    """``retry-failed`` makes failed items ready again, those that were chosen; a dry run only counts."""
    assert etl("retry-failed", "--dry-run", "--json").json() == {"fetch": 2, "caption": 0}
    assert etl("status", "--json").json()["sources"]["dead"] == 2
    assert etl("retry-failed", "--class", "local_file", "--json").json() == {"fetch": 1, "caption": 0}
    told = etl("retry-failed", "--key", "k5")
    assert told.out == ""
    assert "fetch: 1 failed item is ready again" in told.err
    assert (
        etl("status", "--json").json()["sources"] | {"ready": 2, "dead": 0} == etl("status", "--json").json()["sources"]
    )


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
@pytest.mark.usefixtures("finished")
def test_control_without_a_run(etl: Etl, command: str) -> None:
    """Commands to a run say so when there is none."""
    answer = etl(command)
    assert (answer.code, answer.out) == (2, "")
    assert f"nothing to {command}" in answer.err


@pytest.mark.parametrize("arguments", LOOKING, ids=lambda one: one[0])
@pytest.mark.usefixtures("finished")
def test_looking_commands_answer_on_stdout(etl: Etl, arguments: list[str]) -> None:
    """Commands that look write their answer to stdout and nothing to stderr, with and without --json."""
    plain, machine = etl(*arguments), etl(*arguments, "--json")
    assert plain.out and not plain.err and not machine.err
    assert all(isinstance(json.loads(line), dict) for line in machine.out.splitlines())


@pytest.mark.usefixtures("finished")
def test_work_commands_tell_people_on_stderr(etl: Etl) -> None:
    """Commands that work keep stdout free for data: nothing there without --json, one object with it."""
    for arguments in (["ingest", "manifest.jsonl"], ["fetch", "--decoders", "1"], ["export", "again.jsonl"]):
        plain, quiet, machine = etl(*arguments), etl(*arguments, "--quiet"), etl(*arguments, "--json")
        assert (plain.out, quiet.out, quiet.err) == ("", "", "")
        assert plain.err
        assert isinstance(json.loads(machine.out), dict)
        assert machine.err == ""


def test_export_to_stdout(etl: Etl, finished: Any) -> None:
    """``export -`` writes lines alone to stdout, with --json too, and its summary to stderr."""
    for flags in ([], ["--json"]):
        answer = etl("export", "-", *flags)
        assert answer.out == (finished.folder / "out.jsonl").read_text()
        assert "stdout: 8 rows" in answer.err


def test_two_answers_on_one_stdout_are_refused(etl: Etl, made: MadeState) -> None:
    """``run --json --output -`` would mix two kinds of lines, so it is refused before anything is done."""
    made.ingest(b'{"id":"a","path":"a.jpg"}\n')
    answer = etl("run", "--json", "--output", "-", "--model", "demo")
    assert (answer.code, answer.out) == (2, "")
    assert "--output FILE" in answer.err
    assert etl("status", "--json").json()["run"]["stages"] == [Stage.INGEST]


def test_quiet_and_verbose(process: Etl, etl: Etl, made: MadeState) -> None:
    """``-q`` leaves errors alone on stderr, ``-vv`` adds log lines; answers stay what they are."""
    made.ingest(b'{"id":"a","url":"http://127.0.0.1:9/a.jpg"}\n')
    quick = ("--max-attempts", "1", "--decoders", "1", "--allow-host", "127.0.0.1")
    loud = process("fetch", *quick, "-vv")
    assert loud.code == 3
    assert " DEBUG " in loud.err
    quiet = etl("fetch", *quick, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (3, "", "")
    failed = etl("fetch", "--state", "nowhere", "-q")
    assert failed.code == 2
    assert failed.err.startswith("error: ")


def test_a_reader_that_goes_away(etl: Etl, made: MadeState, tmp_path: Path) -> None:
    """When whoever reads the export stops early, the program ends without a traceback."""
    made.ingest(b"".join(b'{"id":"%d","path":"a.jpg","x":"%s"}\n' % (n, b"x" * 500) for n in range(2000)))
    command = f"{sys.executable} -m etl.cli.app export - -q | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 141
    assert done.stderr == b""
    assert etl("status").code == 0


def test_control_of_a_run_that_does_not_answer(etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that holds the state but does not answer in time is an error that names what to look at."""
    made.ingest(b'{"id":"a","path":"a.jpg"}\n')
    monkeypatch.setattr("etl.state.commands.send.__kwdefaults__", {"patience_s": 0.3})
    with StateLock(made.settings.state):
        answer = etl("pause")
    assert answer.code == 1
    assert "etl status" in answer.err
