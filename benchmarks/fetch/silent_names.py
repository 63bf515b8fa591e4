"""60 pictures of a good host, alone and beside 400 hosts whose names nobody answers for 30 seconds.

    python -m benchmarks.fetch.silent_names [--silent 400] [--pictures 60]

A stand-in for the resolver keeps silent, so no network is needed; the good host has one request per 50 ms.  Prints the
seconds until its last picture is committed and what it was charged; ends with exit code 1 beyond 1.5 times the time
alone, or where anything was charged.
"""

import argparse
import json
import random
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.fetch.small_pictures import drawn, picture
from etl.demo.server import DemoServer
from etl.domain.statuses import Stage
from etl.fetch.stage import fetch
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.read.reader import Reader
from etl.state.store import Store

SILENCE_S = 30.0
LIMIT = 1.5


def resolve_silently() -> None:
    """Let names below ``silent.example`` be answered after `SILENCE_S`, with a failure, and others by loopback."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        if str(host).endswith(".silent.example"):
            time.sleep(SILENCE_S)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real("127.0.0.1" if host == "good.example" else host, *rest, **named)

    socket.getaddrinfo = getaddrinfo


def measure(directory: Path, pictures: list[str], silent: int) -> tuple[float, int, int]:
    """Return the seconds until all pictures are there, the failures charged for them, and the most threads."""
    names = [f"http://{n}.{random.Random(n).randrange(999)}.silent.example/a.jpg" for n in range(silent)]
    lines = (json.dumps({"id": url, "url": url}) + "\n" for url in [*names, *pictures])
    (directory / "m.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = Settings(state=directory / "state", allow_host=("127.0.0.1",), host_rate=20, min_free=0)
    control, threads = RunControl(), 0
    with Store.open(settings) as store, store.run((Stage.INGEST,)):
        ingest(store, Manifest(str(directory / "m.jsonl")), IngestOptions())
    with ThreadPoolExecutor(1) as pool, Store.open(settings) as store, store.run((Stage.FETCH,)) as run:
        begun = time.monotonic()
        work = pool.submit(fetch, store, run, settings, control)
        with Reader(settings.state) as reader:
            done = "SELECT count(*) FROM sources WHERE status = 'done'"
            while reader.rows(done)[0][0] < len(pictures) and not work.done():
                threads = max(threads, threading.active_count())
                time.sleep(0.02)
            seconds = time.monotonic() - begun
            charged = "SELECT count(*) FROM attempts a JOIN sources s ON s.id = a.item WHERE s.host = 'good.example' "
            failures = reader.rows(charged + "AND a.error_class IS NOT NULL")[0][0]
        control.stop()
        work.result()
    return seconds, failures, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silent", type=int, default=400)
    parser.add_argument("--pictures", type=int, default=60)
    arguments = parser.parse_args()
    resolve_silently()
    scenes, found = drawn(), []
    with DemoServer() as server, tempfile.TemporaryDirectory() as folder:
        for n in range(arguments.pictures):
            url = server.add(f"/{n}.jpg", picture(scenes, b"%d" % n), "image/jpeg")
            found.append(url.replace("127.0.0.1", "good.example"))
        for silent in (0, arguments.silent):
            (directory := Path(folder, str(silent))).mkdir()
            result = measure(directory, found, silent)
            if not silent:
                alone = result[0]
            print(f"{silent:>4} silent names: {result[0]:6.2f} s, {result[1]} failures charged, {result[2]} threads")
    print(f"{result[0] / alone:.2f} times the time alone")
    sys.exit(result[0] > LIMIT * alone or result[1] > 0)


if __name__ == "__main__":
    main()
