"""Over a server that others wrote, `transformers serve`, the words are those of the local backend."""

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from caption.conftest import Scenes
from support.watching import wait_for

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.caption.model.loading import LoadedModel
from etl.caption.openai.captioner import EndpointCaptioner
from etl.domain.items import CaptionResult, ItemFailure
from etl.settings import Settings

pytestmark = pytest.mark.soak

PYTHON = os.environ.get("SERVE_PYTHON", sys.executable)
"""The Python that has `transformers[serving]`, where that is not this one."""

SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of `transformers serve` with the tiny model."""
    probe = "from transformers.utils.import_utils import is_serve_available as a; raise SystemExit(not a())"
    if subprocess.run([PYTHON, "-c", probe], check=False, capture_output=True).returncode:
        pytest.skip("the server is not installed: pip install 'transformers[serving]', or set SERVE_PYTHON")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        PYTHON, "-c", SERVE, "serve", str(DEMO_CHECKPOINT), "--host", "127.0.0.1", "--port", str(port),
        "--device", "cpu", "--dtype", "float32",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("serve") / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ) as process,
    ):
        try:
            wait_for(lambda: process.poll() is not None or _answers(port), 120)
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def _answers(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False)
    except httpx2.HTTPError:
        return False
    return True


@pytest.mark.parametrize("penalty", [None, 1.2])
def test_the_words_are_those_of_the_local_backend(
    url: str, loaded: LoadedModel, scenes: Scenes, penalty: float | None
) -> None:
    """Every scene of the demo gets the same words, tokens and flags; also when it is captioned again with a penalty."""
    items = [dataclasses.replace(item, repetition_penalty=penalty) for item in scenes.items]
    settings = Settings(
        model="demo", device="cpu", dtype="float32", max_new_tokens=40,
        backend="openai", endpoint=(url,), endpoint_model=str(DEMO_CHECKPOINT),
    )  # fmt: skip
    captioner = EndpointCaptioner(settings, scenes.locate, 1024)
    try:
        found = {outcome.id: outcome for outcome in captioner.caption(items)}
        assert captioner.recipe.revision == "main"
    finally:
        captioner.close()
    wanted = {outcome.id: outcome for outcome in GenerateCaptioner(loaded, settings, scenes.locate).caption(items)}
    assert all(isinstance(outcome, CaptionResult) for outcome in wanted.values())
    assert found == wanted


def test_a_picture_that_the_server_cannot_read_fails_alone(url: str, scenes: Scenes, tmp_path: Path) -> None:
    """The server says no more than 500 of a broken picture: it fails after some tries, its neighbours are captioned."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff" + bytes(100) + b"\xff\xd9")
    settings = Settings(backend="openai", endpoint=(url,), endpoint_model=str(DEMO_CHECKPOINT), max_new_tokens=40)
    bad = scenes.items[0]
    captioner = EndpointCaptioner(
        settings, lambda sha256: broken if sha256 == bad.working_sha256 else scenes.locate(sha256), 1024
    )
    try:
        outcomes = {outcome.id: outcome for outcome in captioner.caption(scenes.items)}
    finally:
        captioner.close()
    failed = outcomes.pop(bad.id)
    assert isinstance(failed, ItemFailure) and (failed.slug, failed.retryable) == ("endpoint_failed", True)
    assert len(outcomes) == 11 and all(isinstance(outcome, CaptionResult) for outcome in outcomes.values())
