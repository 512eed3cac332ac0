"""`serve`, `ui` and `mcp`: the same sessions and memories for programs, people and agents."""

import argparse
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.options import (
    SPEECH_FLAGS,
    TOKEN,
    add_archive,
    add_command,
    add_flags,
    add_mqtt_options,
    add_server_options,
    add_session_options,
    configured,
    load_model,
    require,
    server_limits,
    speech_options,
)
from streammem.commands.publishing import broker_of, outlets
from streammem.errors import ConfigError, StreammemError
from streammem.output.terminal import note

if TYPE_CHECKING:
    from fastapi import FastAPI

    from streammem.server.limits import ServerConfig
    from streammem.server.sessions import Sessions

GRACE_S = 2  # for clients that are still connected when the sessions are closed


def add_to(commands: Any) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "serve",
        run_serve,
        "an HTTP server: sessions, questions, memories, OpenAI's chat form",
        "streammem serve --memories memories",
        "streammem serve --allow-source camera.example.com --allow-source 192.168.1.0/24",
        "STREAMMEM_TOKEN=... streammem serve --host 0.0.0.0   others must present the token",
        "streammem serve --archive house                       memories that are only read",
        'streammem serve rtsp://camera/1 --alert "a dog" --mqtt mqtt://broker/home',
    )
    add_server_options(parser)
    add_mqtt_options(parser)
    parser = add_command(
        commands,
        "ui",
        run_ui,
        "a page in the browser: watch, ask, find",
        "streammem ui",
        "streammem ui --memories memories --port 7860",
        "streammem ui holiday.mp4 --open                        watched at once, in a browser",
        "streammem ui rtsp://camera/1 rtsp://camera/2           opens on the first camera",
    )
    add_server_options(parser)
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser = add_command(
        commands,
        "mcp",
        run_mcp,
        "tools for agents (Model Context Protocol), on standard input and output",
        "streammem mcp --memories memories",
        "streammem mcp rtsp://camera/1                          asked while it is watched",
    )
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="watched meanwhile; see caption --help")
    add("--memories", type=Path, metavar="DIR", help="folder whose memories may be asked")
    add_archive(add)
    add_flags(parser, SPEECH_FLAGS)
    add_session_options(parser)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve over HTTP until interrupted."""
    require("serve", "fastapi", "uvicorn", "websockets")
    broker = broker_of(arguments)
    if broker and not arguments.sources:
        raise ConfigError("--mqtt tells of the sources named on the command line; name one")
    config = server_config(arguments)

    from streammem.server.app import make_app
    from streammem.ui import add_watch

    with closing(_bound(config)) as listening:
        sessions = open_sessions(arguments, config)
        if broker:
            sessions.outlet = outlets(broker, arguments.camera, config.alerts)
        app = add_watch(make_app(sessions, arguments.sources), sessions)
        return _run(app, sessions, listening)


def run_ui(arguments: argparse.Namespace) -> int:
    """Serve the page, and the HTTP interface beside it, until interrupted."""
    require("ui", "fastapi", "uvicorn", "gradio")
    config = server_config(arguments, by_default=True)  # people come back to a camera

    from streammem.server.app import make_app
    from streammem.ui.page import add_page

    with closing(_bound(config)) as listening:
        sessions = open_sessions(arguments, config)
        app = add_page(make_app(sessions, arguments.sources), sessions)
        return _run(app, sessions, listening, browse=arguments.open)


def run_mcp(arguments: argparse.Namespace) -> int:
    """Serve tools on standard input and output until that ends."""
    require("mcp", "mcp", "anyio")
    import asyncio

    from streammem.integrations.mcp import make_server
    from streammem.server.limits import ServerConfig

    _check_archive(arguments)
    config = ServerConfig(
        memories=arguments.archive or arguments.memories,
        read_only=arguments.archive is not None,
        speech=speech_options(arguments, several=True),
    )
    sessions = open_sessions(arguments, config)
    try:
        asyncio.run(make_server(sessions, arguments.sources).run_stdio_async())
    except ExceptionGroup as group:
        raise _known(group) from group
    return 0


def server_config(arguments: argparse.Namespace, *, by_default: bool = False) -> "ServerConfig":
    """Turn flags and the environment into a server's options.

    Args:
        arguments: with the flags of ``add_server_options``.
        by_default: whether what cameras show is kept on disk where no folder is named, too.

    Raises:
        ConfigError: open to others without a token, or a value that cannot be meant.
    """
    from streammem.server.addresses import Allowed
    from streammem.server.limits import ServerConfig

    if not 0 <= arguments.port < 65536:
        raise ConfigError(f"--port {arguments.port}: give 0 to 65535")
    _check_archive(arguments)
    keep_in = _keep_in(arguments, by_default=by_default)
    return ServerConfig(
        host=arguments.host,
        port=arguments.port,
        token=os.environ.get(TOKEN) or None,
        memories=arguments.archive or arguments.memories or keep_in,
        read_only=arguments.archive is not None,
        uploads=arguments.uploads,
        allowed=Allowed.of(arguments.allow_source),
        files=tuple(arguments.allow_files),
        alerts=tuple(arguments.alert),
        keep_in=keep_in,
        confirm_alerts=bool(arguments.confirm_alerts),
        speech=speech_options(arguments, several=True),
        prefix=arguments.prefix.rstrip("/"),
        limits=server_limits(arguments),
    )


def _check_archive(arguments: argparse.Namespace) -> None:
    """Refuse two folders of memories, or one memory in place of a folder of them.

    Raises:
        ConfigError: it is so.
    """
    from streammem.memory.folder import is_memory

    archive: Path | None = arguments.archive
    if archive is None:
        return
    if arguments.memories is not None:
        raise ConfigError("--archive and --memories: give one of them; --archive is only read")
    if is_memory(archive):
        raise ConfigError(f"--archive {archive}: is one memory; give the folder that holds it")


def _keep_in(arguments: argparse.Namespace, *, by_default: bool) -> Path | None:
    """Return the folder in which cameras of the command line have a memory each; None for RAM."""
    from streammem.server.limits import Limits
    from streammem.server.sessions import is_camera

    if arguments.no_memory or not any(is_camera(source) for source in arguments.sources):
        return None
    folder: Path | None = arguments.memories
    if folder is None and by_default and arguments.archive is None:
        folder = data_folder() / "memories"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot keep what cameras show there ({error.strerror}); give "
                "--memories DIR, or --no-memory"
            ) from None
    if folder is None:
        note("what cameras show is kept until the server ends; --memories DIR keeps it")
    else:
        most = Limits().kept_bytes >> 30
        note(
            f"what cameras show is kept in {folder}, {most} GiB each at most; --no-memory keeps it "
            "in RAM alone"
        )
    return folder


def data_folder() -> Path:
    """Return the folder of this user's data: ``$XDG_DATA_HOME/streammem``, or the usual one.

    Raises:
        ConfigError: there is no home directory.
    """
    if stated := os.environ.get("XDG_DATA_HOME"):
        return Path(stated) / "streammem"
    try:
        return Path.home() / ".local" / "share" / "streammem"
    except RuntimeError:
        raise ConfigError(
            "this user has no home directory: give --memories DIR, or --no-memory"
        ) from None


def open_sessions(arguments: argparse.Namespace, config: "ServerConfig") -> "Sessions":
    """Check the sources and every option, then load the model."""
    from streammem.server.malloc_trim import return_freed_memory

    return_freed_memory()  # first: importing torch may start threads
    from streammem.commands.opening import quiet_libraries
    from streammem.engine.checks import check_reads
    from streammem.engine.session_config import SessionConfig, defaults_of
    from streammem.engine.speech import check_recogniser
    from streammem.engine.whole_video import chosen_cuts, with_cuts
    from streammem.models.threads import limit_threads
    from streammem.server.sessions import Sessions
    from streammem.video import kind_of, open_source

    configured(SessionConfig(), arguments)
    check_recogniser(config.speech)
    for source in arguments.sources:
        # Before the tasks of a server run: one that reads its input would wait for more of it.
        if kind_of(source).name == "file":
            open_source(source).close()
    quiet_libraries()
    limit_threads(busy=2)
    model = load_model(arguments)
    if config.confirm_alerts:
        check_reads(model)
    options = configured(defaults_of(model), arguments)
    if (cuts := chosen_cuts(model, options.cuts)) != "streaming":
        raise ConfigError(
            f"cuts={cuts} reads a video as a whole, and a server's sessions are "
            "streams; give --set cuts=streaming"
        )
    return Sessions(with_cuts(model, cuts), options, config)


def _known(group: ExceptionGroup) -> Exception:
    """Return the error of ours that a group of tasks ended with, else the group."""
    ours: Exception | None = group.subgroup(StreammemError)
    while isinstance(ours, ExceptionGroup):
        ours = ours.exceptions[0]
    return ours or group


def _bound(config: "ServerConfig") -> socket.socket:
    """Listen before the model is loaded, so that a port in use is an error at once."""
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


def _browse(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        note(f"no browser is found here; open {url} in one")


def _run(
    app: "FastAPI", sessions: "Sessions", listening: socket.socket, *, browse: bool = False
) -> int:
    import asyncio
    import logging

    import uvicorn

    host, port = listening.getsockname()[:2]

    class Server(uvicorn.Server):
        """Ends at once where a source of the command line cannot be opened.

        Once it is to end it closes the sessions, which ends the streams of clients by itself.
        """

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if app.state.failed is None:  # not before: a client would be refused a connection
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                note(f"listening on {url}")
                if browse:  # beside the loop: a browser of the terminal returns when it is left
                    asyncio.get_running_loop().run_in_executor(None, _browse, url)
            self.should_exit = self.should_exit or app.state.failed is not None

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            closing = asyncio.ensure_future(sessions.close())
            while not (closing.done() or self.force_exit):  # a second interrupt waits for nothing
                await asyncio.sleep(0.05)
            # An open page holds connections of its own, whose end is no news.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    options = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=GRACE_S, ws_max_size=1 << 16
    )
    Server(options).run(sockets=[listening])
    if app.state.failed is not None:
        raise app.state.failed
    return 0
