"""Connections: through TLS and through the tunnel of a proxy, how they end, and what may wait in them."""

import asyncio
import base64
import dataclasses
import random
import socket
from pathlib import Path

import pytest
from support import fault_server as faults
from support.fault_server import FaultServer

from etl.errors import FetchError
from etl.net.client import Downloader
from etl.net.stream import MOST_WAITING, Stream
from etl.settings import Settings

BODY = random.Random(1).randbytes(150_000)


class TunnelProxy:
    """A proxy that only makes tunnels, in the event loop of the test."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one CONNECT, and carry bytes until either side ends."""
        self.open += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            port = int(self.heads[-1].split()[1].rpartition(b":")[2])
            inner, outer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.gather(self._carry(reader, outer), self._carry(inner, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    @staticmethod
    async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        finally:
            writer.close()


def test_https_goes_through_the_tunnel_of_a_proxy(
    certificate: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tunnel serves one download after the other, only the proxy sees its password, and none is left behind by
    downloads that are cancelled at any moment.
    """
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    proxy = TunnelProxy()

    async def go() -> list[int]:
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
        async with Downloader(dataclasses.replace(settings, connect_timeout=5, read_timeout=5)) as downloader:
            url = server.add("/a.jpg", BODY)
            sizes = [(await downloader.download(url, tmp_path / "a.part")).size for _ in range(2)]
            made = len(proxy.heads)
            for turn in range(12):
                job = asyncio.create_task(downloader.download(server.add(f"/{turn}.jpg", BODY), tmp_path / "b.part"))
                for _ in range(turn):
                    await asyncio.sleep(0.001)
                job.cancel()
                await asyncio.gather(job, return_exceptions=True)
            sizes.append((await downloader.download(url, tmp_path / "a.part")).size)
        listening.close()
        while proxy.open:
            await asyncio.sleep(0.01)
        return [made, *sizes]

    with FaultServer(tls=certificate) as server:
        assert asyncio.run(asyncio.wait_for(go(), 30)) == [1, len(BODY), len(BODY), len(BODY)]
        assert not any("Proxy-Authorization" in request.headers for request in server.log)
    user = b"Proxy-Authorization: Basic " + base64.b64encode(b"me:secret")
    assert all(user in head for head in proxy.heads)


ENDINGS: dict[str, tuple[faults.Behaviour, str]] = {
    "length": (faults.ok, ""),
    "no length": (faults.no_length, ""),
    "short": (faults.truncated, "truncated"),
    "chunked": (faults.chunked_cut, "truncated"),
    "reset": (faults.reset_mid_body, "reset"),
    "no answer": (faults.disconnect, "reset"),
}


def test_each_end_of_a_tls_connection_has_its_meaning(
    certificate: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that closes without TLS's goodbye has sent what it has sent, as one without TLS has."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")

    async def go() -> dict[str, str]:
        found = {}
        async with Downloader(dataclasses.replace(settings, connect_timeout=5, read_timeout=5)) as downloader:
            for name, (behaviour, _) in ENDINGS.items():
                server.add("/a.jpg", BODY)
                url, found[name] = server.fail("/a.jpg", behaviour), ""
                try:
                    assert (await downloader.download(url, tmp_path / "a.part")).size == len(BODY)
                except FetchError as error:
                    found[name] = error.slug
        return found

    with FaultServer(tls=certificate) as server:
        assert asyncio.run(go()) == {name: slug for name, (_, slug) in ENDINGS.items()}


def test_what_is_not_read_is_not_taken() -> None:
    """Bytes for which nobody asks stay with their sender beyond a bound, and come once they are asked for."""
    data = random.Random(2).randbytes(2 * 1024**2)

    async def go() -> bytes:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        _, stream = await asyncio.get_running_loop().create_connection(Stream, sock=ours)
        sent = idle = 0
        while idle < 20 and sent < len(data):
            try:
                sent += theirs.send(data[sent:])
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0)
        assert MOST_WAITING < sent < len(data) / 2
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, data[sent:]))
        received = b""
        while len(received) < len(data):
            received += await stream.read(1)
        await sending
        theirs.close()
        assert await stream.read(1) == b""
        await stream.aclose()
        return received

    assert asyncio.run(go()) == data
