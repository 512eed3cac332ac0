"""The bodies of requests, as models that validate themselves, and of replies, as JSON."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
)

from streammem.audio.track import SpeechOptions
from streammem.engine.alerts import phrases_of
from streammem.engine.watch_options import WatchOptions
from streammem.memory.upkeep import MemorySummary
from streammem.output.render import NOTHING, to_json
from streammem.qa.plan import MAX_GOAL, MAX_STEPS
from streammem.server.queries import public_source
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost
from streammem.types import Alert, Answer, Event, Moment, Segment, wall_clock
from streammem.video.source import DEFAULT_FPS, SourceOptions

MAX_FPS = 30.0
MAX_S = 1e8  # seconds; three years
Str = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Strict(BaseModel):
    """A request in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _described(query: str) -> str:
    phrases_of(query)  # refused here: the session's thread would end of it
    return query


AlertText = Annotated[Str, Field(max_length=200), AfterValidator(_described)]
AlertTexts = Annotated[list[AlertText], Field(max_length=8)]


class SessionChange(Strict):
    """What is to change of an open session; what is left out stays."""

    title: Annotated[Str | None, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")] = None
    alerts: Annotated[AlertTexts | None, Field(description="to wait for from now on")] = None


class MemoryChange(Strict):
    """A new name for a memory."""

    name: Str


class NewSession(Strict):
    """A request to open a session."""

    source: Annotated[Str | None, Field(description="URL, upload:ID, or none: push frames")] = None
    memory: Annotated[Str | None, Field(description="name of a memory to keep it in")] = None
    fps: Annotated[float, Field(gt=0, le=MAX_FPS)] = DEFAULT_FPS
    start: Annotated[float, Field(ge=0, le=MAX_S)] = 0.0
    end: Annotated[float | None, Field(gt=0, le=MAX_S)] = None
    captions: Annotated[bool, Field(description="describe each scene")] = True
    alerts: AlertTexts = []
    speech: Annotated[
        Literal["auto", "on", "off"] | None,
        Field(description="what is said: auto reads subtitles; on recognises; none: the server's"),
    ] = None
    speech_language: Annotated[
        str | None, Field(max_length=60, pattern=r"^[A-Za-z]{2,3}( *, *[A-Za-z]{2,3})*$")
    ] = None

    def speech_options(self, own: SpeechOptions) -> SpeechOptions:
        """Return where its words come from.

        Args:
            own: the server's.

        Raises:
            Refused: speech is to be recognised, and the server does not.
        """
        recognises = own.recogniser is not None or own.speech == "on"
        if self.speech == "on" and not recognises:
            raise Refused(422, "this server recognises no speech; start it with --speech on")
        speech = own.speech if self.speech in (None, "on") else self.speech
        sounds = None if speech == "off" else own.sounds
        language = self.speech_language or own.language
        return SpeechOptions(speech, language, sounds, spend=own.spend)

    def options(self) -> WatchOptions:
        """Return how it is watched."""
        return WatchOptions(captions=self.captions, stats_s=10.0, alerts=tuple(self.alerts))

    def source_options(self) -> SourceOptions:
        """Return how it is opened."""
        return SourceOptions(fps=self.fps, start=self.start, end=self.end, reconnect=True)


class QuestionRequest(Strict):
    """A question, answered as a whole or piece by piece."""

    question: Str
    stream: bool = False


class ArchiveQuestion(Strict):
    """A question to all memories; an answer comes as a whole."""

    question: Str


class SearchRequest(Strict):
    """A description to search for."""

    query: Str
    count: Annotated[int, Field(ge=1, le=100)] = 5


class PlanRequest(Strict):
    """A goal, and the steps to it."""

    goal: Annotated[Str, Field(max_length=MAX_GOAL, examples=["make coffee"])]
    steps: Annotated[
        list[Annotated[Str, Field(max_length=MAX_GOAL)]],
        Field(max_length=MAX_STEPS, description="what each shows; none: guessed from past actions"),
    ] = []
    follow: Annotated[
        bool, Field(description="of a session: `plan` events from now on, in place of another plan")
    ] = False
    alert_steps: Annotated[
        bool, Field(description="alerts, too, of steps left out or out of order, while it follows")
    ] = False


class TextPart(BaseModel):
    """A text within a message."""

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    """What an assistant refused earlier; clients send it back with the whole chat."""

    type: Literal["refusal"]
    refusal: str


class PictureAddress(BaseModel):
    """Where a picture is: in the message itself, as ``data:image/jpeg;base64,...``."""

    url: str


class PicturePart(BaseModel):
    """A picture within a message."""

    type: Literal["image_url"]
    image_url: PictureAddress | str

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class VideoAddress(BaseModel):
    """Where a video is: ``https://host/a.mp4``, ``file:///path/a.mp4``, or ``upload:ID``."""

    url: Annotated[str, Field(min_length=1, max_length=4096)]


class VideoPart(BaseModel):
    """A video within a message; the message asks about it."""

    type: Literal["video_url"]
    video_url: VideoAddress


ContentPart = Annotated[
    TextPart | RefusalPart | PicturePart | VideoPart, Field(discriminator="type")
]


# Told apart by hand, so that a refusal speaks of what was sent, not of the other kind as well.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ContentPart], Tag("parts")],
    Discriminator(lambda content: "parts" if isinstance(content, list) else "text"),
]


class ChatMessage(BaseModel):
    """A message of a chat. A part that is no text, picture or video is refused, not ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None

    def text(self) -> str:
        """Return its text, parts joined."""
        if isinstance(self.content, list):
            return "\n".join(p.text for p in self.content if isinstance(p, TextPart)).strip()
        return (self.content or "").strip()

    def pictures(self) -> list[str]:
        """Return the addresses of its pictures."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.url for part in parts if isinstance(part, PicturePart)]

    def videos(self) -> list[str]:
        """Return the addresses of its videos."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.video_url.url for part in parts if isinstance(part, VideoPart)]


class StreamOptions(BaseModel):
    """What a streamed chat is to hold besides the answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request in OpenAI's form; keys that have no meaning here are ignored."""

    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, Field(ge=1, le=1)] = None
    session: Annotated[str | None, Field(description="id of the session that is asked")] = None
    memory: Annotated[str | None, Field(description="name of the memory that is asked")] = None
    evidence: Annotated[bool, Field(description="add a list of evidence to the text")] = False


def event_json(event: Event, path: str, more: Mapping[str, object] = NOTHING) -> dict[str, object]:
    """Turn an event into JSON in which keyframes are URLs instead of paths of the server.

    Args:
        event: of a session or memory.
        path: URL path of that session or memory.
        more: further keys, such as ``wall_start``.
    """
    found = to_json(event, more)
    for item in cast(list[dict[str, object]], found.get("evidence", [found])):
        if isinstance(source := item.get("source"), str):
            item["source"] = public_source(source)
        if isinstance(event, Answer | Moment):
            item["keyframe"] = f"{path}/keyframes/{item['segment']}"
    if isinstance(event, Segment):
        found["keyframe"] = f"{path}/keyframes/{event.id}"
    if isinstance(event, Alert):
        found["keyframe"] = None
    return found


def host_json(name: str, host: SessionHost, *, permanent: bool = False) -> dict[str, object]:
    """Describe a session; the keys are those of ``schemas.SessionInfo``."""
    inbox, watched = host.plan.inbox, host.watched
    return {
        "id": name,
        "title": host.title,
        "source": host.plan.source,
        "state": host.state,
        "live": watched.live,
        "time": watched.time,
        "duration": watched.duration,
        "events": host.events.count,
        "waiting": inbox.waiting if inbox else 0,
        "alerts": list(host.alerts),
        "plan": host.goal,
        "url": host.path,
        "video": f"{host.path}/video" if host.plan.file else None,
        "picture": f"{host.path}/picture" if watched.frame is not None else None,
        "permanent": permanent,
    }


def memory_json(name: str, url: str, found: MemorySummary | str) -> dict[str, object]:
    """Describe a memory; the keys are those of ``schemas.MemoryInfo``.

    Args:
        name: of the memory.
        url: its path.
        found: what is in it, or why that cannot be read.
    """
    summary = found if isinstance(found, MemorySummary) else None
    walls = (summary.wall_start, summary.wall_end) if summary else (None, None)
    first, last = (None if wall is None else wall_clock(wall) for wall in walls)
    return {
        "id": name,
        "url": url,
        "sources": [public_source(source) for source in summary.sources] if summary else [],
        "segments": summary.segments if summary else 0,
        "captions": summary.captions if summary else 0,
        "start": summary.start if summary else None,
        "end": summary.end if summary else None,
        "wall_start": first,
        "wall_end": last,
        "created": summary.created if summary else None,
        "bytes": summary.database_bytes + summary.keyframe_bytes if summary else 0,
        **({} if summary else {"error": found}),
    }


def sse(event: str, content: object, number: int | None = None) -> str:
    """Return one Server-Sent Event."""
    numbered = "" if number is None else f"id: {number}\n"
    return f"{numbered}event: {event}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


async def follow_events(
    host: SessionHost, position: int, patience_s: float
) -> AsyncIterator[tuple[int | None, dict[str, object]] | None]:
    """Yield a session's events with their numbers; None after ``patience_s`` without an event.

    If events were dropped before this client read them, the first item is a warning that counts
    them.

    Args:
        host: of the session.
        position: number of the first event to yield.
        patience_s: seconds.
    """
    while True:
        host.touch()
        taken = await host.events.take(position, patience_s)
        if taken.lost:
            host.lost(taken.lost)
            text = f"{taken.lost} events are gone: they were not taken in time"
            yield None, {"type": "warning", "message": text, "lost": taken.lost}
        first = taken.position - len(taken.events)
        pairs = zip(taken.events, taken.more, strict=True)
        for number, (event, more) in enumerate(pairs, start=first):
            yield number, event_json(event, host.path, more)
        position = taken.position
        if taken.over:
            return
        if not taken.events:
            yield None
