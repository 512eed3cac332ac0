"""A small RTSP camera on loopback, for tests and `make demo-live`: H.264 over TCP or UDP.

It is no general server: one stream, with G.711 sound if wanted, and switches that make it misbehave
as cameras do.
"""

import base64
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK_HZ = 90_000
PAYLOAD_BYTES = 1400
PAYLOAD_TYPE = 96
SOUND_HZ, SOUND_BLOCK = 8_000, 160  # samples a second, and in a packet


@dataclass(frozen=True, slots=True)
class Unit:
    """One encoded picture: seconds at which it is shown, and its NAL units."""

    time: float
    nals: tuple[bytes, ...]


def encode(pictures: Sequence[np.ndarray], fps: float = 25.0, gop: int = 5) -> list[Unit]:
    """Encode [H, W, 3] uint8 pictures as H.264 without reordering."""
    context = av.CodecContext.create("libx264", "w")
    context.options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(gop)}
    context.pix_fmt, context.framerate, context.thread_count = "yuv420p", round(fps), 1
    context.time_base = Fraction(1, round(fps))
    context.height, context.width = pictures[0].shape[:2]
    units = []
    for number, pixels in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        frame.pts = number
        units += [Unit(number / fps, split(bytes(p))) for p in context.encode(frame)]
    return units


def from_file(path: Path) -> list[Unit]:
    """Read the pictures of an H.264 file without encoding them again; none may be reordered."""
    units = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        annexb = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in container.demux(stream):
            for plain in annexb.filter(packet) if packet.size else ():
                shown = float(plain.pts * plain.time_base)
                units.append(Unit(shown, split(bytes(plain))))
    return units


def split(annexb: bytes) -> tuple[bytes, ...]:
    """Split a byte stream at its start codes."""
    parts = annexb.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
    return tuple(part for part in parts if part)


@dataclass
class RtspCamera:
    """Serves pictures to any number of clients until it is closed; a context manager.

    Attributes:
        units: what is shown; may be replaced while it runs, which clients see as a camera that
            changes its resolution.
        speed: 1 shows them in real time, None as fast as they are taken.
        loop: begin again after the last one, instead of closing the connection.
        first_timestamp: RTP time of each connection's first picture; None draws one.
        sound: [N] float32 at SOUND_HZ, from the first picture on, over and over; over TCP only.
        password: required ``user:password`` in the URL; None requires none.
        port: to listen on; 0 lets the system choose.
        stalled: while set, connections stay open and nothing is sent.
        corrupt: share of NAL units of which bytes are overwritten.
        num_connections: that were ever played to.
    """

    units: Sequence[Unit]
    speed: float | None = 1.0
    loop: bool = True
    first_timestamp: int | None = None
    sound: np.ndarray | None = None
    password: str | None = None
    port: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    corrupt: float = 0.0
    num_connections: int = 0

    def __post_init__(self) -> None:
        self._clients: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._random = random.Random(1)
        self._listen()

    @property
    def url(self) -> str:
        login = f"user:{self.password}@" if self.password else ""
        return f"rtsp://{login}127.0.0.1:{self.port}/live"

    def _listen(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._start(self._accept, self._socket)

    def _start(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, name="rtsp-camera", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def drop(self) -> None:
        """Break every connection, as a camera does that restarts at once."""
        for client in list(self._clients):
            _close(client)

    def die(self) -> None:
        """Break every connection and refuse new ones until ``revive``."""
        _close(self._socket)
        self.drop()

    def revive(self) -> None:
        """Listen again, at the same port."""
        self._listen()

    def close(self) -> None:
        self._closed.set()
        self.die()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "RtspCamera":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self, listening: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                client, _ = listening.accept()
            except OSError:
                return
            self._clients.add(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, client.makefile("rb") as requests:
                self._answer(client, requests)
        except OSError:
            pass  # the client left, or the camera was made to fail
        finally:
            self._clients.discard(client)

    def _answer(self, client: socket.socket, requests) -> None:
        target = Target(client)
        while request := _read(requests):
            method, uri, headers = request
            reply = {"CSeq": headers.get("cseq", "0"), "Session": "1"}
            if self.password and not self._allowed(headers):
                reply["WWW-Authenticate"] = 'Basic realm="camera"'
                client.sendall(_reply("401 Unauthorized", reply))
                continue
            body = b""
            if method == "OPTIONS":
                reply["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"
            elif method == "DESCRIBE":
                reply["Content-Type"] = "application/sdp"
                body = _description(self.units[0].nals, sound=self.sound is not None)
            elif method == "SETUP":
                track = int(uri.endswith("track1"))
                reply["Transport"] = target.set_up(headers["transport"], 2 * track)
            client.sendall(_reply("200 OK", reply, body))
            if method == "PLAY":
                self.num_connections += 1
                began = time.monotonic()
                self._start(self._play, target, began)
                if self.sound is not None:
                    self._start(self._play_sound, target, began)
            elif method == "TEARDOWN":
                return

    def _allowed(self, headers: dict[str, str]) -> bool:
        wanted = base64.b64encode(f"user:{self.password}".encode()).decode()
        return headers.get("authorization") == f"Basic {wanted}"

    def _play_sound(self, target: "Target", began: float) -> None:
        coded = mu_law(self.sound)
        first, sequence = self._random.randrange(1 << 32), itertools.count()
        try:
            for number in itertools.count():
                self._wait(began, (number + 1) * SOUND_BLOCK / SOUND_HZ)
                if self._closed.is_set():
                    return
                at = number * SOUND_BLOCK
                payload = np.take(coded, range(at, at + SOUND_BLOCK), mode="wrap").tobytes()
                stamp = (first + at) % (1 << 32)
                header = struct.pack(">BBHII", 0x80, 0, next(sequence) % 65536, stamp, 8)
                target.send(header + payload, 2)
        except OSError:
            pass  # the client left

    def _play(self, target: "Target", began: float) -> None:
        stamp = self.first_timestamp
        if stamp is None:
            stamp = self._random.randrange(1 << 32)
        sequence = itertools.count()
        try:
            for shown, unit in self._shown():
                self._wait(began, shown)
                if self._closed.is_set():
                    return
                at = (stamp + round(shown * CLOCK_HZ)) % (1 << 32)
                for payload, last in _payloads(self._spoiled(unit.nals)):
                    flags = PAYLOAD_TYPE | (0x80 if last else 0)
                    header = struct.pack(">BBHII", 0x80, flags, next(sequence) % 65536, at, 7)
                    target.send(header + payload)
            if not self._closed.is_set():
                _close(target.client)
        except OSError:
            pass  # the client left

    def _shown(self) -> Iterator[tuple[float, Unit]]:
        """Give pictures with rising times, over and over if they loop."""
        offset = 0.0
        while True:
            units = self.units
            for unit in units:
                yield offset + unit.time, unit
                if self.units is not units:
                    break
            offset += unit.time + (units[1].time - units[0].time if len(units) > 1 else 1.0)
            if not self.loop:
                return

    def _wait(self, began: float, shown: float) -> None:
        while self.stalled.is_set() and not self._closed.wait(0.01):
            pass
        if self.speed is not None:
            self._closed.wait(max(0.0, began + shown / self.speed - time.monotonic()))

    def _spoiled(self, nals: tuple[bytes, ...]) -> list[bytes]:
        return [
            nal[: len(nal) // 3] + self._random.randbytes(len(nal) - len(nal) // 3)
            if self._random.random() < self.corrupt
            else nal
            for nal in nals
        ]


class Target:
    """Where RTP packets go: into the RTSP connection, or to a UDP port of the client."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self._udp: socket.socket | None = None
        self._sending = threading.Lock()  # sound and pictures come from threads of their own

    def set_up(self, transport: str, channel: int = 0) -> str:
        if "TCP" in transport:
            return f"RTP/AVP/TCP;unicast;interleaved={channel}-{channel + 1}"
        ports = transport.split("client_port=")[1].split(";")[0]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self._udp.connect(("127.0.0.1", int(ports.split("-")[0])))
        mine = self._udp.getsockname()[1]
        return f"RTP/AVP;unicast;client_port={ports};server_port={mine}-{mine + 1}"

    def send(self, packet: bytes, channel: int = 0) -> None:
        if self.client.fileno() < 0:
            if self._udp:
                self._udp.close()
            raise OSError("the client left")
        if self._udp:
            self._udp.send(packet)
        else:
            with self._sending:
                self.client.sendall(struct.pack(">BBH", 0x24, channel, len(packet)) + packet)


def _payloads(nals: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Cut a picture's NAL units into RTP payloads, with whether it is the last. From RFC 6184."""
    for number, nal in enumerate(nals):
        last_nal = number == len(nals) - 1
        if len(nal) <= PAYLOAD_BYTES:
            yield nal, last_nal
            continue
        parts = [nal[at : at + PAYLOAD_BYTES] for at in range(1, len(nal), PAYLOAD_BYTES)]
        for at, part in enumerate(parts):
            edge = 0x80 if at == 0 else 0x40 if at == len(parts) - 1 else 0
            fragment = bytes([nal[0] & 0xE0 | 28, edge | nal[0] & 0x1F])
            yield fragment + part, last_nal and at == len(parts) - 1


def mu_law(samples: np.ndarray) -> np.ndarray:
    """Code samples in [-1, 1] as G.711 does, [N] uint8."""
    context = av.CodecContext.create("pcm_mulaw", "w")
    context.sample_rate, context.layout, context.format = SOUND_HZ, "mono", "s16"
    whole = (np.clip(samples, -1, 1) * 32767).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
    frame.sample_rate = SOUND_HZ
    packets = [*context.encode(frame), *context.encode(None)]
    return np.frombuffer(b"".join(bytes(packet) for packet in packets), np.uint8)


def _read(requests) -> tuple[str, str, dict[str, str]] | None:
    """Read the next request; skips what RTCP sends in between."""
    while first := requests.read(1):
        if first == b"$":
            requests.read(struct.unpack(">xH", requests.read(3))[0])
            continue
        lines = [(first + requests.readline()).decode()]
        while (line := requests.readline().decode().strip()) != "":
            lines.append(line)
        pairs = (line.partition(":") for line in lines[1:])
        method, uri = lines[0].split()[:2]
        return method, uri, {k.lower(): v.strip() for k, _, v in pairs}
    return None


def _reply(status: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    if body:
        headers = headers | {"Content-Length": str(len(body))}
    lines = [f"RTSP/1.0 {status}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def _description(nals: Sequence[bytes], *, sound: bool) -> bytes:
    sets = [base64.b64encode(nal).decode() for nal in nals if nal[0] & 0x1F in (7, 8)]
    lines = (
        "v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0",
        f"m=video 0 RTP/AVP {PAYLOAD_TYPE}", f"a=rtpmap:{PAYLOAD_TYPE} H264/{CLOCK_HZ}",
        f"a=fmtp:{PAYLOAD_TYPE} packetization-mode=1;sprop-parameter-sets={','.join(sets)}",
        "a=control:track0",
        *(("m=audio 0 RTP/AVP 0", "a=rtpmap:0 PCMU/8000", "a=control:track1") if sound else ()), "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()


def _close(opened: socket.socket) -> None:
    with suppress(OSError):  # it was not connected
        opened.shutdown(socket.SHUT_RDWR)
    opened.close()
