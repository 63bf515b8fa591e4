"""A loopback server of small JPEGs, as many as are asked for, each with pixels of its own.

    python -m benchmarks.fetch.small_pictures PORT

prints one line when it listens, and serves until it is ended.
"""

import asyncio
import hashlib
import io
import random
import sys

from PIL import Image

from etl.demo.scenes import random_scene

SCENES = 50
"""Drawn scenes that the pictures take turns with."""

EDGE = 64
"""Pixels of an edge."""


def drawn() -> list[Image.Image]:
    """Return the scenes."""
    rng = random.Random(0)
    return [random_scene(rng).draw(EDGE, EDGE) for _ in range(SCENES)]


def picture(scenes: list[Image.Image], path: bytes) -> bytes:
    """Return the picture of a path as a JPEG file: a scene with a stripe of grey squares that only it has."""
    code = hashlib.sha256(path).digest()
    image = scenes[code[0] % SCENES].copy()
    for place, value in enumerate(code[1 : 1 + EDGE // 8]):
        image.paste((value, value, value), (8 * place, 0, 8 * place + 8, 8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


async def serve(port: int) -> None:
    """Answer every request until cancelled."""
    scenes = drawn()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                body = picture(scenes, head.split(b" ", 2)[1])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body))
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
