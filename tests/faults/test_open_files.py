"""A process that may open no more files says so, whatever it was about to open, and no host or picture is blamed."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.etl_process import Program
from support.fault_server import FaultServer
from support.workbench import write_manifest

from etl.open_files import LEAST

HELD = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv.pop(1)),) * 2)
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(sys.argv.pop(1)))]
from etl.cli.app import main
main()
"""


def run_with(program: Program, files: int, held: int, *arguments: str) -> tuple[int, list[str]]:
    """Run a command that may open so many files and has so many open; return its exit code and what it said."""
    ran = subprocess.run(
        [sys.executable, "-c", HELD, str(files), str(held), *arguments],
        cwd=program.directory, env=program.environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return ran.returncode, ran.stderr.splitlines()


@pytest.mark.parametrize("held", [42, 52])
def test_a_fetch_that_runs_out_of_files(tmp_path: Path, held: int) -> None:
    """In the middle and at the start: exit 5, what to raise, and nothing is charged."""
    with FaultServer() as server:
        urls = [server.add(f"/{number}.jpg", b"") for number in range(40)]
        program = Program(tmp_path, concurrency=32, per_host=32)
        manifest = write_manifest(tmp_path / "m.jsonl", ({"id": url, "url": url} for url in urls))
        assert program.here("ingest", manifest).code == 0
        code, said = run_with(program, LEAST, held, "fetch")
        assert (code, said[-1]) == (
            5,
            f"error: too many open files: raise `ulimit -n`, which is {LEAST} here, and run again",
        )
        assert not [line for line in said if "permission" in line or "Traceback" in line]
        refused = program.rows("SELECT error_class, count(*) FROM sources WHERE error_class IS NOT NULL GROUP BY 1")
        assert not {name for name, _ in refused} - {"not_an_image"}
        assert program.here("fetch").code == 3
        assert program.rows("SELECT DISTINCT status, error_class FROM sources") == [("dead", "not_an_image")]


def test_a_limit_that_is_too_low_to_begin_with(tmp_path: Path) -> None:
    """Nothing begins, in one line; where only the shell's own limit is low, it is raised without a word."""
    program = Program(tmp_path)
    (tmp_path / "m.jsonl").write_text('{"id": "1", "url": "http://127.0.0.1/"}\n')
    assert run_with(program, LEAST - 1, 0, "ingest", "m.jsonl") == (
        5, [f"error: no more than {LEAST - 1} files may be open: raise `ulimit -n` to {LEAST} or more"],
    )  # fmt: skip
    assert not program.state.exists()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ran = subprocess.run(
        [sys.executable, "-c", HELD.replace(",) * 2)", f", {hard}))"), str(LEAST // 2), "0", "ingest", "m.jsonl"],
        cwd=tmp_path, env=program.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
