"""`vllm serve` as a child, played by a real process: started, asked, killed, started again, and gone with us."""

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.numpy import load_file
from support.etl_process import SIGNALS, Program
from support.vllm_stand_in import LIVES, SETTINGS, Life, install, lives
from support.watching import exists, wait_for
from support.workbench import Workbench, scenes
from support.zygote import Zygote

from etl.caption.backends import open_captioner
from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.caption.need import wait_for_picture
from etl.caption.openai.address import Address
from etl.caption.vllm import captioner as vllm
from etl.caption.vllm.captioner import VllmCaptioner
from etl.caption.vllm.command import command, deciding, environment, find_program
from etl.caption.vllm.server import KEEPER, Server, is_ours
from etl.caption.vllm.tensor_names import known_to_vllm
from etl.domain.views import StageSummary
from etl.errors import ConfigError, ModelError
from etl.images.cache import ImageCache
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.read.reader import Reader

pytestmark = pytest.mark.usefixtures("forked_decoders")

Orders = Callable[..., None]


@pytest.fixture(autouse=True)
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Orders:
    """Return what tells the stand-in, installed beside the test, how to behave; whatever it was told, it is quick."""
    install(tmp_path / "env")
    monkeypatch.setenv(LIVES, str(tmp_path / "lives"))
    monkeypatch.setattr(vllm, "PAUSE_S", 0.01)
    monkeypatch.setattr("etl.caption.vllm.server.LOOK_S", 0.02)
    return lambda **told: monkeypatch.setenv(SETTINGS, json.dumps(told))


def prepared(directory: Path, count: int, **changes: Any) -> Workbench:
    """Return a state with so many fetched pictures."""
    bench = Workbench(directory)
    bench.settings = dataclasses.replace(
        bench.settings, backend="vllm", model="demo", vllm=str(directory / "env"), **changes
    )
    for number, (_, body) in enumerate(scenes(count)):
        (directory / f"{number}.jpg").write_bytes(body)
    bench.ingest(*(str(directory / f"{number}.jpg") for number in range(count)))
    assert bench.fetch().done == count
    return bench


def opened(bench: Workbench) -> VllmCaptioner:
    """Return the captioner of a state."""
    captioner = open_captioner(bench.settings, ImageCache.of_state(bench.state), 256)
    assert isinstance(captioner, VllmCaptioner)
    return captioner


def assert_right_words(bench: Workbench) -> None:
    """Assert that each caption is that of its picture and prompt, as the stand-in has them."""
    sql = (
        "SELECT c.text, p.text || ' ' || substr(i.working_sha256, 1, 8) FROM captions c "
        "JOIN images i ON i.id = c.image JOIN prompts p ON p.id = c.prompt"
    )
    assert all(text == wanted for text, wanted in bench.rows(sql))


def assert_gone(found: list[Life]) -> None:
    """Assert that of these nothing lives on, their engines neither."""
    wait_for(lambda: not any(exists(pid) for one in found for pid in (one.pid, one.engine)), 10)


def test_captions_come_from_a_vllm_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the model, our limits and a key that no argument or file has; no proxy is asked; nothing of it stays.

    When all is captioned it is not started again, unless the settings make another recipe.
    """
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ETL_API_KEY", "sk-of-another-server")
    bench = prepared(tmp_path, 6, gpu_memory_fraction=0.5, vllm_arg=("max-num-seqs=4", "--quantization=fp8"))
    captioner = opened(bench)
    [life] = lives(tmp_path / "lives")
    address = f"http://127.0.0.1:{life.arguments[-1].removeprefix('--port=')}/v1/models"
    assert httpx2.get(address, trust_env=False).status_code == 401, "anybody may use it"
    assert bench.caption(captioner) == StageSummary(done=6)
    captioner.close()
    captioner.close()
    assert_gone([life])
    assert_right_words(bench)
    key = life.environment["VLLM_API_KEY"]
    assert len(key) > 40 and key not in str(life.arguments) and life.directory == "/"
    assert "ETL_API_KEY" not in life.environment and life.environment["HF_HUB_OFFLINE"] == "1"
    assert life.arguments[0] == "serve" and not Path(life.arguments[1]).exists(), "the copy is still there"
    assert {
        "--served-model-name=demo", "--load-format=safetensors", "--gpu-memory-utilization=0.5", "--max-num-seqs=4",
        "--quantization=fp8", "--host=127.0.0.1",
    } <= set(life.arguments)  # fmt: skip
    [(spec,)] = bench.rows("SELECT spec FROM recipes")
    recipe = json.loads(spec)
    assert (recipe["model"], recipe["engine"], recipe["revision"][:7]) == ("demo", "vllm", "sha256:")
    assert recipe["generation"]["vllm quantization"] == "fp8" and "vllm max-num-seqs" not in recipe["generation"]
    with Reader(bench.state) as reader:
        for changes, wanted in (({}, False), ({"max_new_tokens": 7}, True), ({"vllm_arg": ()}, True)):
            asked = dataclasses.replace(bench.settings, **changes)
            assert wait_for_picture(reader, asked, 256, RunControl(), lambda: False) is wanted, changes
    files = [path for path in bench.state.rglob("*") if path.is_file()]
    assert not [path for path in files if key.encode() in path.read_bytes()]
    log = bench.state / "logs" / "vllm.log"
    assert log.read_text() == "INFO loading weights\n" and log.stat().st_mode & 0o777 == 0o600


def test_one_that_dies_is_started_again(tmp_path: Path, orders: Orders) -> None:
    """Killed at its third caption, its engine goes too; what it had in hand is charged a crash, and all are made."""
    orders(dies_at=3, delay_s=0.01)
    bench = prepared(tmp_path, 8)
    captioner = opened(bench)
    summary = bench.caption(captioner)
    first, second = lives(tmp_path / "lives")
    assert_gone([first])
    captioner.close()
    assert_gone([second])
    assert (summary.done, summary.dead) == (8, 0) and 1 <= summary.retried <= 6
    [(crashed,)] = bench.rows("SELECT count(*) FROM captions WHERE crashes = 1")
    assert 1 <= crashed <= summary.retried, "an answer may have been cut short"
    assert_right_words(bench)
    assert first.arguments[:-1] == second.arguments[:-1]
    assert first.environment["VLLM_API_KEY"] != second.environment["VLLM_API_KEY"]


@pytest.mark.soak
def test_a_picture_that_kills_it_is_dead_at_last(tmp_path: Path, orders: Orders) -> None:
    """It is tried alone after three crashes and dead after five; its neighbours are captioned."""
    bench = prepared(tmp_path, 6)
    [(poison,)] = bench.rows("SELECT working_sha256 FROM images LIMIT 1")
    orders(poison=poison)
    captioner = opened(bench)
    summary = bench.caption(captioner)
    captioner.close()
    assert (summary.done, summary.dead) == (5, 1)
    assert bench.rows("SELECT error_class, crashes FROM captions WHERE status = 'dead'") == [("crashed", 5)]
    assert_gone(lives(tmp_path / "lives"))


ENGINE_SAID = """(EngineCore pid=7) ERROR 11-29 [core.py:1] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-29 [core.py:1] ValueError: No available memory for the cache blocks.\x1b[31m
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.
"""


WARNED = "(APIServer pid=6) WARNING 11-29 [a.py:1] errors like `OSError: [Errno 24] Too many open files`.\nbye"
SAID = [
    (ENGINE_SAID.splitlines()[-1], "RuntimeError: Engine core initialization failed.", ""),
    ("vllm serve: error: unrecognized arguments: --x", "error: unrecognized arguments: --x", "check --vllm-arg"),
    ("bye", "exit code 0, after bye", ""),
    (WARNED, "exit code 0, after bye", ""),
]


def test_one_that_cannot_start_says_why(tmp_path: Path, orders: Orders) -> None:
    """The last error that it printed, which is that of its engine, comes on one line with what may cure it.

    A warning is no error, and what follows from an error counts where nothing else was said.
    """
    orders(says=ENGINE_SAID, fails=True)
    settings = Settings(backend="vllm", model="demo", vllm=str(tmp_path / "env"), state=tmp_path / "state")
    with pytest.raises(ModelError) as caught:
        open_captioner(settings, ImageCache.of_state(settings.state), 256)
    assert str(caught.value).startswith("vLLM cannot be started: ValueError: No available memory")
    assert "lower --gpu-memory-fraction" in caught.value.cure and not {"\n", "\x1b"} & set(str(caught.value))
    assert len(lives(tmp_path / "lives")) == 1
    assert_gone(lives(tmp_path / "lives"))
    for said, words, cure in SAID:
        server = Server([], lambda _: {}, tmp_path / "vllm.log", tmp_path)
        server.address = Address("", "key")
        server._read(io.BytesIO(said.encode()))
        error = server.failure("it ended")
        assert str(error).startswith(f"it ended: {words}") and error.cure.startswith(cure)
        assert error.cure.endswith(f"all that it said is in {tmp_path / 'vllm.log'}")
        server.end()


def test_one_that_dies_again_and_again_ends_the_run(tmp_path: Path, orders: Orders, monkeypatch: Any) -> None:
    """After so many deaths without a caption there is one line, and what is left is given back."""
    monkeypatch.setattr(vllm, "FRUITLESS", 2)
    bench = prepared(tmp_path, 3)
    captioner = opened(bench)
    orders(fails=True, says="OSError: no GPU")
    captioner._server._environment = functools.partial(environment, bench.settings)
    os.kill(lives(tmp_path / "lives")[0].pid, signal.SIGKILL)
    # Seen only after a picture was handed over, its death would be charged to that picture.
    wait_for(lambda: captioner._server.ended)
    with pytest.raises(ModelError, match="died 2 times in a row without a caption, lastly: OSError: no GPU"):
        bench.caption(captioner)
    captioner.close()
    assert bench.rows("SELECT count(*), max(attempts) FROM captions WHERE status = 'ready'") == [(3, 0)]
    assert len(lives(tmp_path / "lives")) == 3
    assert_gone(lives(tmp_path / "lives"))


def test_its_log_is_bounded_and_a_stop_ends_the_wait(
    tmp_path: Path, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it prints, two files of the limit stay; one that is loading and stubborn is killed in the end."""
    orders(says="x" * 9000 + "\nmore words\n" * 500, times=8, start_s=600, stubborn=True)
    monkeypatch.setattr("etl.caption.vllm.server.MAX_BYTES", 10_000)
    monkeypatch.setattr("etl.caption.vllm.server.END_S", 0.1)
    settings = Settings(vllm=str(tmp_path / "env"))
    program = find_program(settings.vllm)
    log = tmp_path / "logs" / "vllm.log"
    asked = command(settings, program, "demo", DEMO_CHECKPOINT)
    server = Server(asked, lambda key: environment(settings, key), log, tmp_path / "spare")
    server.start()
    assert not server.wait_until_ready(lambda: log.exists() and log.read_text().endswith("more words\n"))
    server.end()
    assert_gone(lives(tmp_path / "lives"))
    files = sorted(log.parent.iterdir())
    assert [path.name for path in files] == ["vllm.log", "vllm.log.1"]
    assert all(path.stat().st_size <= 10_000 for path in files)


def test_only_what_is_ours_is_asked() -> None:
    """A port where nobody listens, or another user, is not taken for it; one of our own is."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not is_ours(port)
        listener.listen()
        assert is_ours(port)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.getuid", lambda: 54321)
            assert not is_ours(port)


GROUP = "trap '' TERM; sleep 600 & echo $! >engine; echo $$ >server; wait"


@pytest.mark.parametrize("how", ["parent", "keeper", "server"])
def test_nothing_outlives_who_started_it(tmp_path: Path, how: str) -> None:
    """Killed with -9, be it we or the server: no engine is left, though deaf; the keeper: the server is told."""
    # The keeper's own death is told to the server by the kernel, with a TERM that vLLM obeys and hands on.
    script = GROUP.removeprefix("trap '' TERM; ") if how == "keeper" else GROUP
    start = (
        "import subprocess as s, sys, time; p = s.Popen(sys.argv[1:], stdin=s.PIPE, start_new_session=True); "
        "open('keeper', 'w').write(f'{p.pid}\\n'); time.sleep(600)"
    )
    keeper = [sys.executable, "-I", str(KEEPER), "0.1", str(tmp_path / "spare"), "sh", "-c", script]
    (tmp_path / "spare").mkdir()
    with subprocess.Popen([sys.executable, "-c", start, *keeper], cwd=tmp_path) as parent:
        files = [tmp_path / name for name in ("keeper", "engine", "server")]
        wait_for(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files), 30)
        pids = {file.name: int(file.read_text()) for file in files} | {"parent": parent.pid}
        try:
            os.kill(pids[how], signal.SIGKILL)
            wait_for(lambda: not exists(pids["server"]) and (how == "keeper" or not exists(pids["engine"])), 10)
            assert how == "parent" or exists(parent.pid)
            wait_for(lambda: (tmp_path / "spare").exists() is (how != "parent"), 10)
        finally:
            parent.kill()
            for pid in pids.values():
                if exists(pid):
                    os.kill(pid, signal.SIGKILL)


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program, an environment or a name on PATH; where there is none, one line says how to install it."""
    program = tmp_path / "env" / "bin" / "vllm"
    for given in (str(program), str(tmp_path / "env")):
        assert find_program(given) == program
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_program("vllm") == program
    monkeypatch.setenv("PATH", str(tmp_path))
    for given in ("vllm", "~/nowhere/vllm", str(tmp_path)):
        words = "on PATH" if given == "vllm" else f"at {given}"
        with pytest.raises(ConfigError, match=words) as caught:
            find_program(given)
        assert "pip install vllm" in caught.value.cure and "\n" not in str(caught.value)


def test_which_gpus_it_sees_and_what_it_may_be_told() -> None:
    """Numbers count among those that we see; what we choose ourselves cannot be given, nor what is no argument."""
    seen = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}
    for changes, there, wanted in (
        ({"gpus": "0,2"}, seen, "GPU-a,GPU-c"), ({"device": "cuda:1"}, seen, "GPU-b"), ({"gpus": "3"}, {}, "3"),
        ({}, seen, "GPU-a,GPU-b,GPU-c"), ({}, {}, None),
    ):  # fmt: skip
        found = environment(Settings(**changes), "key", there)  # type: ignore[arg-type]
        assert found.get("CUDA_VISIBLE_DEVICES") == wanted
    with pytest.raises(ConfigError, match="GPU 3 was asked for"):
        environment(Settings(gpus="3"), "key", seen)
    for wrong in ("port=1", "--api-key=x", "host=0.0.0.0", "X=1", "tensor-parallel-size=", ""):
        with pytest.raises(ConfigError, match="vllm_arg"):
            Settings(vllm_arg=(wrong,))
    assert deciding(Settings(vllm_arg=("enforce-eager", "--quantization=awq"))) == {"vllm quantization": "awq"}


def test_the_demo_has_names_that_vllm_knows(tmp_path: Path) -> None:
    """A copy has the tower's names of before, in the index too, and the same numbers; other folders are left alone."""
    sources, spare = tmp_path / "model", tmp_path / "spare"
    shutil.copytree(DEMO_CHECKPOINT, sources)
    spare.mkdir()
    before = load_file(DEMO_CHECKPOINT / "model.safetensors")
    index = "model.safetensors.index.json"
    (sources / index).write_text(json.dumps({"weight_map": dict.fromkeys(before, "model.safetensors")}))
    assert known_to_vllm(sources, spare) == spare
    after = load_file(spare / "model.safetensors")
    old, new = "vision_tower.", "vision_tower.vision_model."
    assert {name.replace(new, old): value.tolist() for name, value in after.items()} == {
        name: value.tolist() for name, value in before.items()
    }
    assert {name for name in after if name.startswith(old)} == {name for name in after if name.startswith(new)}
    assert set(json.loads((spare / index).read_text())["weight_map"]) == set(after)
    assert {path.name for path in spare.iterdir()} == {path.name for path in sources.iterdir()}
    assert known_to_vllm(spare, tmp_path / "none") == spare


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_run(tmp_path: Path, zygote: Zygote, orders: Orders, number: signal.Signals) -> None:
    """Through the command line: SIGTERM commits and ends it, kill -9 ends it too, and the next run makes the rest."""
    orders(delay_s=0.05)
    bench = prepared(tmp_path, 40)
    program = Program(tmp_path, zygote=zygote, backend="vllm", vllm=tmp_path / "env", batch_size=1)
    with program.start("caption", "-q") as run:
        wait_for(lambda: program.count("captions", "done") >= 4, 60)
        run.send(number)
        assert run.wait().code == SIGNALS.get(number, 128 + number)
        assert_gone(lives(tmp_path / "lives"))
    assert 4 <= program.count("captions", "done") < 40
    assert program.run("caption", "-q").code == 0
    assert bench.rows("SELECT status, count(*) FROM captions GROUP BY status") == [("done", 40)]
    assert_right_words(bench)
    assert_gone(lives(tmp_path / "lives"))
