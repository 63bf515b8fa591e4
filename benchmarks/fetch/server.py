"""Static servers for the fetch benchmark: nginx, or a small one of our own that can also be slow and fail.

    python -m benchmarks.fetch.server DIRECTORY [--latency 0.2] [--fault-percent 2]

prints its port and serves until it is ended.
"""

import argparse
import asyncio
import contextlib
import getpass
import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process_tree import session_cpu_s

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
"""Of the server below; each is a host to those who ask, whose limit for one host is 32 requests at once."""

_NGINX = """
daemon off;
user {user};
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  types {{ image/jpeg jpg; image/tiff tif; }}
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  server {{ listen 127.0.0.1:{port}{tls}; root {root}; }}
}}
"""


@dataclass(frozen=True)
class Server:
    """A server at work in a process of its own; ``url`` is without a slash at its end."""

    name: str
    url: str
    session: int

    def cpu_s(self) -> float:
        """Return the CPU time that it has taken so far, in seconds."""
        return session_cpu_s(self.session)


def make_certificate(directory: Path) -> Path:
    """Write a certificate for 127.0.0.1 that vouches for itself, with its key in the same file; return its path."""
    path = directory / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"]
    path.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return path


@contextlib.contextmanager
def nginx(program: str, root: Path, work: Path, certificate: Path | None = None) -> Iterator[Server]:
    """Serve ``root`` with one nginx worker, whose files go into ``work``; with a certificate, over TLS."""
    work.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = work / "nginx.conf"
    tls = f" ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate}" if certificate else ""
    config.write_text(_NGINX.format(user=getpass.getuser(), work=work, port=port, root=root, tls=tls))
    command = [program, "-p", str(work), "-e", str(work / "error.log"), "-c", str(config)]
    process = subprocess.Popen(command, start_new_session=True)
    with _ended_after(process):
        _wait_for(port, process)
        yield Server("nginx", f"http{'s' * bool(certificate)}://127.0.0.1:{port}", process.pid)


@contextlib.contextmanager
def own_server(root: Path, *, latency_s: float = 0.0, fault_percent: float = 0.0) -> Iterator[Server]:
    """Serve ``root`` with the server below; each start forgets which faults it has shown."""
    command = [
        sys.executable, "-m", "benchmarks.fetch.server", str(root), "--latency", str(latency_s), "--fault-percent",
        str(fault_percent),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    with _ended_after(process):
        assert process.stdout is not None
        yield Server("own asyncio server", f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid)


@contextlib.contextmanager
def _ended_after(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(100):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    sys.exit("nginx did not start")


def is_faulty(path: str, percent: float) -> bool:
    """Whether the first request for this path is answered with 503."""
    return int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) % 10_000 < percent * 100


class _Static:
    def __init__(self, root: Path, latency_s: float, fault_percent: float) -> None:
        self._root = root
        self._latency_s = latency_s
        self._fault_percent = fault_percent
        self._failed: set[str] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = head.split(" ", 2)[1]
        await asyncio.sleep(self._latency_s)
        file = self._root / path.lstrip("/")
        if path not in self._failed and is_faulty(path, self._fault_percent):
            self._failed.add(path)
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        elif not file.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            with file.open("rb") as body:
                kind = "image/tiff" if file.suffix == ".tif" else "image/jpeg"
                length = file.stat().st_size
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode())
                await asyncio.get_running_loop().sendfile(writer.transport, body)
        await writer.drain()
        return "connection: close" not in head.lower()


async def _serve(static: _Static) -> None:
    server = await asyncio.start_server(static.serve, ADDRESSES[0], 0, backlog=256)
    port = server.sockets[0].getsockname()[1]
    for address in ADDRESSES[1:]:
        await asyncio.start_server(static.serve, address, port, backlog=256)
    print(port, flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a directory on a free port of 127.0.0.1, and print the port.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--fault-percent", type=float, default=0.0, help="share of files whose first answer is 503")
    arguments = parser.parse_args()
    asyncio.run(_serve(_Static(arguments.directory, arguments.latency, arguments.fault_percent)))


if __name__ == "__main__":
    main()
