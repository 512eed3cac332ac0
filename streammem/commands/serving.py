"""`serve`, `ui` and `mcp`: the same sessions and memories for programs, people and agents."""

import argparse
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.extras import require
from streammem.commands.options import (
    Parser,
    add_command,
    add_session_options,
    byte_size,
    configured,
    duration,
)
from streammem.commands.publishing import add_mqtt_options, broker_of, outlets
from streammem.errors import ConfigError, StreammemError
from streammem.output.terminal import note

if TYPE_CHECKING:
    from fastapi import FastAPI

    from streammem.server.limits import ServerConfig
    from streammem.server.sessions import Sessions

TOKEN = "STREAMMEM_TOKEN"
GRACE_S = 5  # for clients that are still connected when the server ends


def add_to(commands: Any) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "serve",
        serve,
        "an HTTP server: sessions, questions, memories, OpenAI's chat form",
        "streammem serve --memories memories",
        "streammem serve --allow-source camera.example.com --allow-source 192.168.1.0/24",
        "STREAMMEM_TOKEN=... streammem serve --host 0.0.0.0   others must present the token",
        'streammem serve rtsp://camera/1 --alert "a dog" --mqtt mqtt://broker/home',
    )
    _add_server_options(parser)
    add_mqtt_options(parser)
    parser = add_command(
        commands,
        "ui",
        page,
        "a page in the browser: watch, ask, find",
        "streammem ui",
        "streammem ui --memories memories --port 7860",
    )
    _add_server_options(parser)
    parser = add_command(
        commands,
        "mcp",
        agents,
        "tools for agents (Model Context Protocol), on standard input and output",
        "streammem mcp --memories memories",
        "streammem mcp rtsp://camera/1                          asked while it is watched",
    )
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="watched meanwhile; see caption --help")
    add("--memories", type=Path, metavar="DIR", help="folder whose memories may be asked")
    add_session_options(parser)


def _add_server_options(parser: Parser) -> None:
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="watched from the start; see caption --help")
    add("--host", default="127.0.0.1", help=f"address to listen on; others need {TOKEN} to be set")
    add("--port", type=int, default=8080, help="default 8080; 0 is a free one")
    add("--memories", type=Path, metavar="DIR", help="folder whose memories may be asked, by name")
    add("--uploads", type=Path, metavar="DIR", help="folder for uploads (default: a temporary one)")
    about = "host (with *), address or network that clients may name in a source; may be repeated"
    add("--allow-source", action="append", default=[], metavar="HOST", help=about)
    about = "told once each time that this appears in a SOURCE named here; may be repeated"
    add("--alert", action="append", default=[], metavar="TEXT", help=about)
    limits = parser.add_argument_group("limits").add_argument
    limits("--max-sessions", type=int, metavar="N", help="open at a time (default 16)")
    limits("--max-upload", type=byte_size, metavar="SIZE", help="of one video (default 2GiB)")
    limits("--quota", type=byte_size, metavar="SIZE", help="of all uploads (default 8GiB)")
    limits("--max-rate", type=float, metavar="N", help="requests a second a client (default 50)")
    limits("--idle", type=duration, metavar="TIME", help="closes what nobody asks (default 1h)")
    add_session_options(parser)


def serve(arguments: argparse.Namespace) -> int:
    """Serve over HTTP until interrupted."""
    require("serve", "fastapi", "uvicorn", "websockets")
    broker = broker_of(arguments)
    if broker and not arguments.sources:
        raise ConfigError("--mqtt tells of the sources named on the command line; name one")
    config = server_config(arguments)

    from streammem.server.app import make_app

    with closing(_bound(config)) as listening:
        sessions = open_sessions(arguments, config)
        if broker:
            sessions.outlet = outlets(broker, arguments.camera, config.alerts)
        return _run(make_app(sessions, arguments.sources), listening)


def page(arguments: argparse.Namespace) -> int:
    """Serve the page, and the HTTP interface beside it, until interrupted."""
    require("ui", "fastapi", "uvicorn", "gradio")
    config = server_config(arguments)

    from streammem.server.app import make_app
    from streammem.ui import add_page

    with closing(_bound(config)) as listening:
        sessions = open_sessions(arguments, config)
        return _run(add_page(make_app(sessions, arguments.sources), sessions), listening)


def agents(arguments: argparse.Namespace) -> int:
    """Serve tools on standard input and output until that ends."""
    require("mcp", "mcp", "anyio")
    import asyncio

    from streammem.integrations.mcp import make_server
    from streammem.server.limits import ServerConfig

    sessions = open_sessions(arguments, ServerConfig(memories=arguments.memories))
    try:
        asyncio.run(make_server(sessions, arguments.sources).run_stdio_async())
    except ExceptionGroup as group:
        raise _known(group) from group
    return 0


def server_config(arguments: argparse.Namespace) -> "ServerConfig":
    """Turn flags and the environment into a server's options.

    Raises:
        ConfigError: open to others without a token, or a value that cannot be meant.
    """
    from streammem.server.addresses import Allowed
    from streammem.server.limits import Limits, ServerConfig

    if not 0 <= arguments.port < 65536:
        raise ConfigError(f"--port {arguments.port}: give 0 to 65535")
    given = {
        "sessions": arguments.max_sessions,
        "upload_bytes": arguments.max_upload,
        "quota_bytes": arguments.quota,
        "requests_per_s": arguments.max_rate,
        "idle_s": arguments.idle,
    }
    return ServerConfig(
        host=arguments.host,
        port=arguments.port,
        token=os.environ.get(TOKEN) or None,
        memories=arguments.memories,
        uploads=arguments.uploads,
        allowed=Allowed.of(arguments.allow_source),
        alerts=tuple(arguments.alert),
        limits=Limits(**{name: value for name, value in given.items() if value is not None}),
    )


def open_sessions(arguments: argparse.Namespace, config: "ServerConfig") -> "Sessions":
    """Check the sources and every option, then load the model."""
    from streammem.server.malloc_trim import return_freed_memory

    return_freed_memory()  # first: importing torch may start threads
    from streammem.commands.opening import quiet_libraries
    from streammem.engine.session_config import SessionConfig
    from streammem.models.checkpoint import load
    from streammem.models.threads import limit_threads
    from streammem.server.sessions import Sessions
    from streammem.video.source import kind_of, open_source

    configured(SessionConfig(), arguments)
    for source in arguments.sources:
        # Told now: once a server's tasks run, one that reads its input would wait for more of it.
        if kind_of(source) == "file":
            open_source(source).close()
    quiet_libraries()
    limit_threads(busy=2)
    model = load(arguments.model, device=arguments.device)
    own = SessionConfig(scenes=model.scenes, caption=model.decoding)
    return Sessions(model, configured(own, arguments), config)


def _known(group: ExceptionGroup) -> Exception:
    """Return the error of ours that a group of tasks ended with, else the group."""
    ours: Exception | None = group.subgroup(StreammemError)
    while isinstance(ours, ExceptionGroup):
        ours = ours.exceptions[0]
    return ours or group


def _bound(config: "ServerConfig") -> socket.socket:
    """Listen before the model is loaded, so that a port in use is told at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"{where}: cannot listen there ({error.strerror})") from error
    return listening


def _run(app: "FastAPI", listening: socket.socket) -> int:
    import uvicorn

    host, port = listening.getsockname()[:2]

    class Server(uvicorn.Server):
        """Ends at once where a source of the command line cannot be opened."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if app.state.failed is None:  # told now: before, who asks is refused a connection
                note(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
            self.should_exit = self.should_exit or app.state.failed is not None

    options = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=GRACE_S, ws_max_size=1 << 16
    )
    Server(options).run(sockets=[listening])
    if app.state.failed is not None:
        raise app.state.failed
    return 0
