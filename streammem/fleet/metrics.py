"""`/metrics` over HTTP: counters as text, for Prometheus; it serves nothing else.

with serve_metrics("127.0.0.1", 9400, board.prometheus) as port: ...
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from streammem.errors import ConfigError

TIMEOUT_S = 10.0


@contextmanager
def serve_metrics(host: str, port: int, text: Callable[[], str]) -> Iterator[int]:
    """Serve counters until the end of the block.

    Args:
        host: to listen on; of IPv6 where it holds a colon.
        port: likewise; 0 for a free one.
        text: called, in a thread of the server, for each request.

    Yields:
        The port.

    Raises:
        ConfigError: the port is taken or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                return self.send_error(404)
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--metrics-port {written(host)}:{port}: cannot be listened on ({error})"
        ) from error
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def written(host: str) -> str:
    """Return a host as an address has it: of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
