"""A server around a tiny model, on a socket of this computer."""

import asyncio
import socket
from contextlib import asynccontextmanager

from tests.sessions import SHORT


@asynccontextmanager
async def listening(model, *, wrap=None, limits=None, **config):
    """Serve; give the URL and the sessions. ``wrap`` may add to the application."""
    import uvicorn

    from streammem.engine.session_config import SessionConfig
    from streammem.server.app import make_app
    from streammem.server.limits import Limits, ServerConfig
    from streammem.server.sessions import Sessions

    options = SessionConfig(answer=SHORT, caption=SHORT)
    sessions = Sessions(model, options, ServerConfig(limits=limits or Limits(), **config))
    app = make_app(sessions)
    app = wrap(app, sessions) if wrap else app
    with socket.create_server(("127.0.0.1", 0)) as sock:
        options = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(options)
        running = asyncio.ensure_future(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}", sessions
        finally:
            server.should_exit = True
            await running
