"""The options of a server: where it listens, what it may open, how much clients may send."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from streammem.audio.track import SpeechOptions
from streammem.errors import ConfigError
from streammem.server.addresses import Allowed, is_loopback


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server; a request beyond them is refused.

    Attributes:
        sessions: open at a time.
        memories: open at a time; one more closes the one that was used longest ago.
        body_bytes: of a request with JSON.
        frame_bytes: of a pushed picture.
        upload_bytes: of a video that is uploaded or fetched.
        quota_bytes: of all of them together.
        frames_waiting: pushed pictures of a session that wait for perception.
        questions_waiting: requests of a session that wait for their turn.
        question_chars: of a question or description.
        requests_per_s: of one client in the long run.
        burst: requests of one client at once.
        idle_s: seconds without a request after which a session or upload is closed and removed;
            infinite for never.
        events: of a session that are kept for clients that are slow or connect later.
        kept_bytes: on disk, of each memory in ``ServerConfig.keep_in``.
        videos: of chat messages that are kept open, as sessions; one more closes the one that was
            asked longest ago.
        video_s: seconds of such a video.
        videos_waiting: chat messages with a video that wait for it to be watched and asked.
    """

    sessions: int = 16
    memories: int = 8
    body_bytes: int = 1 << 20
    frame_bytes: int = 32 << 20
    upload_bytes: int = 2 << 30
    quota_bytes: int = 8 << 30
    frames_waiting: int = 32
    questions_waiting: int = 8
    question_chars: int = 2000
    requests_per_s: float = 50.0
    burst: int = 200
    idle_s: float = 3600.0
    events: int = 4096
    kept_bytes: int = 2 << 30
    videos: int = 8
    video_s: float = 6 * 3600.0
    videos_waiting: int = 64

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where a server listens, what it may open, and which clients it admits.

    Attributes:
        host: address to listen on.
        port: to listen on; 0 for a free one.
        token: what clients must present; required beyond loopback.
        memories: folder of memories, which clients read and write by name.
        read_only: clients only read them.
        uploads: folder for uploads; None makes a temporary one. Uploads are removed at the end.
        allowed: hosts and networks that clients may name in a source.
        files: folders below which clients may name files, as ``file:///path``.
        prefix: path of the server behind a proxy, as in ``/cameras``; the proxy may remove it from
            requests or leave it there. Empty for none.
        alerts: descriptions to look for in the operator's sources.
        speech: where the words of all sources come from, unless a client wants none of it.
        confirm_alerts: of these sources, ask the model of each alert before it is reported.
        keep_in: folder in which each of the operator's cameras has a memory, so that its past
            survives a restart; None keeps it in RAM.
        limits: bounds on what clients may send and open.

    Raises:
        ConfigError: reachable from other computers without a token, or a folder is missing.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    memories: Path | None = None
    read_only: bool = False
    uploads: Path | None = None
    allowed: Allowed = field(default_factory=Allowed)
    files: tuple[Path, ...] = ()
    alerts: tuple[str, ...] = ()
    confirm_alerts: bool = False
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    keep_in: Path | None = None
    prefix: str = ""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < 16:
            raise ConfigError("the token is shorter than 16 characters; choose a longer one")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host}: others could reach it; set STREAMMEM_TOKEN, or listen on "
                "127.0.0.1"
            )
        if self.prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.prefix):
            raise ConfigError(f"--prefix {self.prefix}: give a path such as /cameras")
        if not all(alert.strip() for alert in self.alerts):
            raise ConfigError("--alert is empty; describe what to wait for")
        for folder in (self.memories, self.uploads, *self.files):
            if folder is not None and not folder.is_dir():
                raise ConfigError(f"{folder}: no such folder; make it first")
