"""A list of a bucket and its thousand pictures, by real processes of ours and of moto's S3, killed again and again."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.etl_process import Program, wait_for_done
from support.watching import wait_for
from support.workbench import encoded

PICTURES, KILLS, CONCURRENCY = 1_000, 5, 8

VARIABLES = {
    "AWS_ACCESS_KEY_ID": "key-of-the-test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def moto(program: str, log: Path) -> Iterator[str]:
    """Run moto's server at a free port; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as output:
        process = subprocess.Popen([program, "-p", str(port)], stdout=output, stderr=output)
        try:
            wait_for(lambda: "Running on" in log.read_text())
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def bucket_of(endpoint: str) -> Any:
    """Return a client of the server."""
    import botocore.session

    names = {
        "aws_access_key_id": VARIABLES["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": VARIABLES["AWS_SECRET_ACCESS_KEY"],
    }
    return botocore.session.Session().create_client("s3", endpoint_url=endpoint, region_name="us-east-1", **names)


@pytest.mark.soak
def test_a_bucket_is_fetched_once_however_often_we_are_killed(tmp_path: Path) -> None:
    """Every picture is there at the end, and no more were asked for twice than were under way when we were killed."""
    found = shutil.which("moto_server", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if found is None:
        pytest.skip("needs moto's server: pip install 'moto[server,s3]'")
    log = tmp_path / "moto.log"
    with moto(found, log) as endpoint:
        client = bucket_of(endpoint)
        client.create_bucket(Bucket="scans")
        rows = []
        for n in range(PICTURES):
            colour = (n % 256, n // 256 * 40, 99)
            client.put_object(
                Bucket="scans", Key=f"box {n % 7}/n+{n}.png", Body=encoded(Image.new("RGB", (64, 48), colour), "PNG")
            )
            rows.append(json.dumps({"id": n, "file_name": f"box {n % 7}/n+{n}.png"}))
        client.put_object(Bucket="scans", Key="list.jsonl", Body="\n".join(rows).encode())
        before = len(log.read_text().splitlines())

        program = Program(
            tmp_path, variables=VARIABLES | {"AWS_ENDPOINT_URL": endpoint}, allow_host="", concurrency=CONCURRENCY,
            per_host=CONCURRENCY,
        )  # fmt: skip
        assert program.run("ingest", "s3://scans/list.jsonl").code == 0
        (tmp_path / "listed").mkdir()
        listed = Program(tmp_path / "listed", variables=VARIABLES | {"AWS_ENDPOINT_URL": endpoint}, allow_host="")
        assert listed.run("ingest", "s3://scans/").code == 0
        urls = "SELECT url FROM sources ORDER BY url"
        assert listed.rows(urls) == program.rows(urls) and len(listed.rows(urls)) == PICTURES
        rng = random.Random(7)
        for kill in range(1, KILLS + 1):
            with program.start("fetch") as running:
                goal = PICTURES * kill // (KILLS + 1) + rng.randrange(20)
                wait_for_done(program, running, "sources", goal)
                running.process.kill()
        ended = program.run("fetch", timeout_s=300)
        assert ended.code == 0, ended.stderr
        asked = [line for line in log.read_text().splitlines()[before:] if '"GET /scans/box' in line]
    assert program.rows("SELECT status, count(*) FROM sources GROUP BY status") == [("done", PICTURES)]
    assert program.rows("SELECT count(DISTINCT sha256) FROM images")[0][0] == PICTURES
    assert PICTURES <= len(asked) <= PICTURES + KILLS * 40
    kept = b"".join(path.read_bytes() for path in program.state.rglob("*") if path.is_file())
    assert not [word for word in ("key-of-the-test", "secret-of-the-test", "X-Amz-") if word.encode() in kept]
