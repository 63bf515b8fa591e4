"""The dashboard in a browser, by textual-serve, for this machine alone: each visitor gets a process of the dashboard.

Reach it from elsewhere through SSH (``ssh -L 8000:localhost:8000 host``).  It listens on the loopback address, and
answers no page of another site: a browser would send such a page's requests here too.
"""

import logging
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from etl.errors import UsageError
from etl.extras import install_extra

Handler = Callable[[Any], Awaitable[Any]]

HOST = "127.0.0.1"

_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


def serve(command: Sequence[str], port: int) -> None:
    """Serve the dashboard that ``command`` starts until Ctrl-C.

    Raises `UsageError` when textual-serve is not installed or the port is taken.
    """
    try:
        from aiohttp import web
        from textual_serve.server import Server
    except ModuleNotFoundError as error:
        raise UsageError(f"the dashboard in a browser needs more: {install_extra('web')}") from error

    @web.middleware  # type: ignore[untyped-decorator]
    async def own_pages_only(request: web.Request, handler: Handler) -> Any:
        if not allowed(request.headers.get("Host"), request.headers.get("Origin")):
            raise web.HTTPForbidden(text="this dashboard answers only this machine's own pages\n")
        return await handler(request)

    class Loopback(Server):  # type: ignore[misc]
        def initialize_logging(self) -> None:
            logging.getLogger("aiohttp").setLevel(logging.WARNING)

        async def _make_app(self) -> web.Application:
            app = await super()._make_app()
            app.middlewares.append(own_pages_only)
            return app

        async def on_startup(self, app: web.Application) -> None:  # noqa: ARG002 (aiohttp's)
            print(f"the dashboard is at http://{HOST}:{port}; Ctrl-C ends it", flush=True)

    try:
        Loopback(shlex.join(command), host=HOST, port=port, title="caption-etl").serve()
    except OSError as error:
        raise UsageError(f"cannot listen on port {port}: {error.strerror or error}") from error


def allowed(host: str | None, origin: str | None) -> bool:
    """Return whether a request was meant for this machine and comes from a page of this server, or from no page."""
    try:
        asked = urlsplit(f"//{host or ''}")
        if asked.hostname not in _NAMES:
            return False
        if origin is None:
            return True
        page = urlsplit(origin)
        return page.scheme == "http" and page.hostname in _NAMES and page.port == asked.port
    except ValueError:
        return False
