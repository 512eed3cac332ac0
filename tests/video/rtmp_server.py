"""An RTMP server on loopback that plays an FLV file to each client: all that a player asks for.

    with RtmpCamera(path) as camera:
        open_source(camera.url)

Source: Adobe's Real Time Messaging Protocol 1.0.
"""

import socket
import struct
import threading
from contextlib import suppress

CHUNK, WINDOW, BANDWIDTH, COMMAND = 1, 5, 6, 20
CHUNK_BYTES = 1 << 20  # so large that each message is one chunk


class RtmpCamera:
    """Plays a file's tags; then it holds the connection, or closes it.

    Args:
        path: of an FLV file; replaced between connections where ``path`` is set anew.
        holds: keep a connection open after the last tag.
        first_ms: stamp of the first tag.
    """

    def __init__(self, path, *, holds=False, first_ms=0):
        self.path, self.holds, self._first_ms = path, holds, first_ms
        self.num_clients, self._closed = 0, threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtmp://127.0.0.1:{self._server.getsockname()[1]}/live/cam"
        self._threads = [threading.Thread(target=self._serve, name="rtmp-camera", daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._closed.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(30)

    def _serve(self):
        while not self._closed.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            client.settimeout(20)
            self.num_clients += 1
            self._threads.append(threading.Thread(target=self._play, args=(client,), daemon=True))
            self._threads[-1].start()

    def _play(self, client):
        with client, suppress(OSError, EOFError):
            hello = read(client, 1537)
            client.sendall(b"\x03" + bytes(8) + bytes(1528) + hello[1:])
            read(client, 1536)
            for name, number in commands(client):
                if name == "connect":
                    client.sendall(
                        message(WINDOW, struct.pack(">I", 5_000_000))
                        + message(BANDWIDTH, struct.pack(">IB", 5_000_000, 2))
                        + message(CHUNK, struct.pack(">I", CHUNK_BYTES))
                        + reply("_result", number, {}, {"code": "NetConnection.Connect.Success"})
                    )
                elif name == "createStream":
                    client.sendall(reply("_result", number, None, 1.0))
                elif name == "play":
                    started = {"level": "status", "code": "NetStream.Play.Start"}
                    client.sendall(reply("onStatus", 0.0, None, started))
                    break
            for kind, stamp, content in flv_tags(self.path.read_bytes()):
                stamp = (stamp + self._first_ms) % 2**32
                client.sendall(message(kind, content, stamp, stream=1))
            while self.holds and not self._closed.wait(0.02):
                pass
            client.shutdown(socket.SHUT_WR)


def read(client, count):
    content = b""
    while len(content) < count:
        piece = client.recv(count - len(content))
        if not piece:
            raise EOFError
        content += piece
    return content


def commands(client):
    """Give (name, transaction) of what a player asks, read from its chunks."""
    size, known = 128, {}
    while True:
        basic = read(client, 1)[0]
        form, chunks = basic >> 6, basic & 63
        head, content = known.get(chunks, ((0, 0), b""))
        if form < 3:
            fields = read(client, (11, 7, 3)[form])
            if form < 2:
                head = int.from_bytes(fields[3:6], "big"), fields[6]
        length, kind = head
        content += read(client, min(size, length - len(content)))
        known[chunks] = head, content if len(content) < length else b""
        if len(content) == length and kind == CHUNK:
            size = int.from_bytes(content, "big")
        elif len(content) == length and kind == COMMAND:
            end = 3 + int.from_bytes(content[1:3], "big")
            yield content[3:end].decode(), struct.unpack(">d", content[end + 1 : end + 9])[0]


def message(kind, content, stamp=0, stream=0):
    late = min(stamp, 0xFFFFFF).to_bytes(3, "big")
    head = b"\x04" + late + len(content).to_bytes(3, "big") + bytes([kind])
    head += struct.pack("<I", stream)
    if stamp >= 0xFFFFFF:
        head += struct.pack(">I", stamp)
    return head + content


def reply(*values):
    return message(COMMAND, b"".join(map(amf, values)))


def amf(value):
    """Encode a value. Source: Adobe's Action Message Format, AMF 0."""
    if value is None:
        return b"\x05"
    if isinstance(value, float):
        return b"\x00" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"\x02" + struct.pack(">H", len(value)) + value.encode()
    pairs = (struct.pack(">H", len(key)) + key.encode() + amf(each) for key, each in value.items())
    return b"\x03" + b"".join(pairs) + b"\x00\x00\x09"


def flv_tags(content):
    """Give (kind, milliseconds, content) of each tag of an FLV file."""
    at = 13
    while at + 11 <= len(content):
        kind, size = content[at], int.from_bytes(content[at + 1 : at + 4], "big")
        stamp = int.from_bytes(content[at + 7 : at + 8] + content[at + 4 : at + 7], "big")
        yield kind, stamp, content[at + 11 : at + 11 + size]
        at += 15 + size
