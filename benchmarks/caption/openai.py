"""What captioning over endpoints costs the driver: CPU per caption beside a server that answers at once.

    python -m benchmarks.caption.openai --captions 1000 --in-flight 1 16 64 --kilobytes 20 150

The server is a process of its own that reads each request and answers from memory, after ``--delay`` seconds.  The
pictures are bytes of the given size: nobody looks at them.  State and database are left out.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from etl.caption.openai.captioner import EndpointCaptioner
from etl.domain.items import CaptionItem, CaptionResult
from etl.settings import Settings

ANSWER = json.dumps(
    {
        "model": "stub",
        "usage": {"prompt_tokens": 600, "completion_tokens": 60},
        "choices": [{"message": {"content": "A stone bridge over a river. " * 8}, "finish_reason": "stop"}],
    }
).encode()
MODELS = json.dumps({"data": [{"id": "stub"}]}).encode()


async def _serve(delay_s: float) -> None:
    """Answer until killed; print the port first."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                body = ANSWER if head.startswith(b"post") else MODELS
                if delay_s and length:
                    await asyncio.sleep(delay_s)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**22)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def serving(delay_s: float) -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.caption.openai", "--serve", "--delay", str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def measure(url: str, folder: Path, captions: int, in_flight: int, size: int) -> tuple[float, float]:
    """Return CPU milliseconds of this process for each caption, and captions per second."""
    body = b"\xff\xd8\xff" + os.urandom(size - 5) + b"\xff\xd9"
    name = hashlib.sha256(body).hexdigest()
    (folder / name).write_bytes(body)
    settings = Settings(backend="openai", endpoint=(url,), endpoint_concurrency=in_flight)
    captioner = EndpointCaptioner(settings, lambda sha256: folder / sha256, 1024)
    try:
        # Until it has found its pace.
        _caption(captioner, name, 8 * in_flight + 200)
        cpu, begun = time.process_time(), time.perf_counter()
        _caption(captioner, name, captions)
        return 1000 * (time.process_time() - cpu) / captions, captions / (time.perf_counter() - begun)
    finally:
        captioner.close()


def _caption(captioner: EndpointCaptioner, name: str, count: int) -> None:
    items = (CaptionItem(number, name, "Describe this photograph.") for number in range(count))
    assert sum(isinstance(outcome, CaptionResult) for outcome in captioner.caption(items)) == count


def main() -> None:
    """Print one row for each size and number of requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--kilobytes", type=int, nargs="+", default=[20, 150])
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(_serve(given.delay))
        return
    print("picture  requests at most  CPU per caption  captions per second")
    with serving(given.delay) as url, tempfile.TemporaryDirectory() as folder:
        for kilobytes in given.kilobytes:
            for in_flight in given.in_flight:
                cpu, rate = measure(url, Path(folder), given.captions, in_flight, 1000 * kilobytes)
                print(f"{kilobytes:>4} kB  {in_flight:>16}  {cpu:>12.2f} ms  {rate:>19.0f}")


if __name__ == "__main__":
    main()
