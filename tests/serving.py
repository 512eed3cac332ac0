"""A server around a tiny model, on a socket of this computer."""

import asyncio
import socket
from contextlib import asynccontextmanager

from tests.sessions import SHORT


@asynccontextmanager
async def listening(model, *, wrap=None, limits=None, **config):
    """Serve; give the URL and the rooms. ``wrap`` may add to the application."""
    import uvicorn

    from streammem.engine.session_config import SessionConfig
    from streammem.server.app import make_app
    from streammem.server.limits import Limits, ServerConfig
    from streammem.server.rooms import Rooms

    options = SessionConfig(answer=SHORT, caption=SHORT)
    rooms = Rooms(model, options, ServerConfig(limits=limits or Limits(), **config))
    app = make_app(rooms)
    app = wrap(app, rooms) if wrap else app
    with socket.create_server(("127.0.0.1", 0)) as sock:
        options = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(options)
        running = asyncio.ensure_future(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}", rooms
        finally:
            server.should_exit = True
            await running
