"""Small pictures of thousands of hosts, with ``--profile crawl``: requests a second, memory, and every host's limit.

    python -m benchmarks.fetch.crawl [--hosts 2000] [--pictures 100000] [--kill] [--robots]

Each host is a name with a loopback address of its own, which a stand-in for the resolver knows, so no network is
needed; one server answers for all, after a moment, and counts the requests that it has of each.  With ``--kill``
the fetch is killed in the middle and started again; with ``--robots`` each host's robots.txt is obeyed.  Ends with exit
code 1 where a host had more requests at once than it was to have, a picture is missing, more were asked for twice than
were in flight, or a robots.txt more than once by a process.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fetch.small_pictures import drawn, picture
from etl.settings import PROFILES
from etl.state.read.reader import Reader

ANSWER_S = 0.02
SUFFIX = ".crawl.example"
RULES = b"User-agent: *\n" + b"".join(b"Disallow: /private/%d/\n" % number for number in range(20))
LOOK_S = 0.5


def address(host: int) -> str:
    """Return a host's own loopback address."""
    return f"127.{1 + host // 62500}.{1 + host // 250 % 250}.{1 + host % 250}"


def resolve_here() -> None:
    """Let the names of the hosts be answered without asking anybody."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        return real(address(int(name.removesuffix(SUFFIX))) if name.endswith(SUFFIX) else host, *rest, **named)

    socket.getaddrinfo = getaddrinfo


async def serve() -> None:
    """Answer until standard input ends; then print the most requests at once of any host, of all, and their numbers."""
    scenes = drawn()
    # Every picture has bytes of its own behind its end, which is cheaper than pixels of its own.
    bodies = [picture(scenes, b"%d" % number) for number in range(50)]
    now: Counter[bytes] = Counter()
    most: Counter[str] = Counter()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path, host = head.split(b" ", 2)[1], head.lower().partition(b"host: ")[2].partition(b":")[0]
                now[host] += 1
                most["host"], most["all"] = max(most["host"], now[host]), max(most["all"], now.total())
                is_rules = path == b"/robots.txt"
                most["robots" if is_rules else "requests"] += 1
                await asyncio.sleep(ANSWER_S)
                now[host] -= 1
                body = RULES if is_rules else bodies[hash(path) % len(bodies)] + path
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body))
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        print(json.dumps(most), flush=True)


@contextmanager
def served() -> Iterator[subprocess.Popen[str]]:
    """Yield the server's process."""
    command = [sys.executable, "-m", "benchmarks.fetch.crawl", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def run(work: Path, done: int | None = None) -> dict[str, float]:
    """Fetch, until all is there or so many are, when it is killed; return what it took."""
    begun, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "benchmarks.fetch.crawl", "--fetch"]
    with subprocess.Popen(command, env=os.environ | {"ETL_STATE": str(work / "state")}) as process:
        while process.poll() is None:
            time.sleep(LOOK_S)
            peak = max(peak, memory(process.pid))
            if done is not None and counted(work) >= done:
                process.kill()
        if process.returncode not in (0, -9 if done is not None else 0):
            sys.exit(f"etl fetch: exit code {process.returncode}")
    return {"seconds": time.monotonic() - begun, "peak_pss_mb": peak / 1e6}


def counted(work: Path) -> int:
    """Return how many sources are done."""
    with Reader(work / "state") as reader:
        return int(reader.rows("SELECT count(*) FROM sources WHERE status = 'done'")[0][0])


def memory(process: int) -> int:
    """Return the bytes that a process and its children hold, shared ones divided."""
    try:
        family = [psutil.Process(process)]
        family += family[0].children(recursive=True)
        return sum(each.memory_full_info().pss for each in family)
    except psutil.Error:
        return 0


def measure(work: Path, hosts: int, pictures: int, *, kill: bool, robots: bool = False) -> bool:
    """Print what a crawl took; return whether all was as it should be."""
    with served() as server:
        assert server.stdin is not None and server.stdout is not None
        port = int(server.stdout.readline())
        urls = (f"http://{number % hosts}{SUFFIX}:{port}/{number}.jpg" for number in range(pictures))
        (work / "m.jsonl").write_text("".join(json.dumps({"id": url, "url": url}) + "\n" for url in urls))
        environment = os.environ | {"ETL_STATE": str(work / "state")}
        subprocess.run([sys.executable, "-m", "etl.cli.app", "ingest", "-q", str(work / "m.jsonl")], env=environment)
        (work / "state" / "hosts").write_text(json.dumps([hosts, robots]))
        parts = [run(work, pictures // 2)] if kill else []
        known = counted(work)
        parts.append(run(work))
        server.stdin.close()
        most = json.loads(server.stdout.readline())
    there = counted(work)
    seconds = sum(part["seconds"] for part in parts)
    peak = max(part["peak_pss_mb"] for part in parts)
    again = most["requests"] - pictures
    print(
        f"{there} of {pictures} pictures of {hosts} hosts in {seconds:.1f} s: {pictures / seconds:.0f} a second, peak "
        f"{peak:.0f} MB; at most {most['host']} requests at once of a host, {most['all']} of all; {again} asked again"
        + (f" after a kill at {known}" if kill else "")
        + (f"; {most['robots']} robots.txt" if robots else "")
    )
    crawl = PROFILES["crawl"]
    kept = most["host"] <= crawl["per_host"] and most.get("robots", 0) <= hosts * (1 + kill)
    return there == pictures and kept and again <= 2 * crawl["concurrency"] * kill


def fetch(state: Path) -> None:
    """Run ``etl fetch`` with names of our own."""
    from etl.cli.app import main as etl

    resolve_here()
    hosts, robots = json.loads((state / "hosts").read_text())
    os.environ["ETL_ALLOW_HOST"] = ",".join(map(address, range(hosts)))
    os.environ["ETL_RESPECT_ROBOTS"] = str(robots).lower()
    sys.argv = ["etl", "fetch", "-q", "--profile", "crawl"]
    etl()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--robots", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fetch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
    elif arguments.fetch:
        fetch(Path(os.environ["ETL_STATE"]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            numbers = Path(folder), arguments.hosts, arguments.pictures
            sys.exit(not measure(*numbers, kill=arguments.kill, robots=arguments.robots))


if __name__ == "__main__":
    main()
