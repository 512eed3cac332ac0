"""What replies and events look like, for the OpenAPI description; nothing is validated with it.

    @router.get("/sessions", response_model=None, responses=replies(SessionList))

The keys of events are those of ``output.render.EVENT_KEYS``; tests hold the two together, and hold
real replies against these schemas.
"""

from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model

from streammem.output.render import EVENT_KEYS
from streammem.types import Stats

EVENTS_TEXT = (
    "Watches video and answers questions about it, with times in seconds.\n\n"
    "**Events** come as Server-Sent Events from `GET /v1/sessions/{name}/events`, each with its "
    "number as `id`, its type as `event` and one JSON object as `data` (schema `Event`); "
    "`Last-Event-ID` or `?position=` goes on from there.\n\n"
    "**WebSocket**: `ws://HOST/v1/sessions/{name}/events` sends the same objects, one a message, "
    "from the first that is kept, and closes with code 1000 after the last one. What clients send "
    "is ignored. For an unknown session it sends an `Error` and closes with code 4404."
)
WEBSOCKET = {
    "x-websocket": {
        "url": "/v1/sessions/{name}/events",
        "receives": {"oneOf": [{"$ref": f"#/components/schemas/{x}"} for x in ("Event", "Error")]},
        "sends": None,
        "closeCodes": {"1000": "the source has ended", "4404": "no such session"},
    }
}


class _Record(BaseModel):
    """A reply; keys may be added to it."""

    model_config = ConfigDict(extra="allow")


class ErrorDetails(_Record):
    """Why a request was refused."""

    message: Annotated[str, Field(examples=["no such session"])]
    type: Literal["invalid_request_error", "server_error"]
    code: Annotated[int, Field(examples=[404])]
    param: None = None


class Error(_Record):
    """The body of every refusal, in OpenAI's form."""

    error: ErrorDetails


Seconds = Annotated[float, Field(examples=[12.5])]
WallClock = Annotated[
    str | None,
    Field(description="wall clock at `start`", examples=["2026-05-03T16:40:00.000+02:00"]),
]
KeyframeUrl = Annotated[str, Field(examples=["/v1/memories/door/keyframes/7"])]
Confidence = Annotated[float | None, Field(ge=0, le=1, examples=[0.62])]


class SegmentEvent(_Record):
    """A scene has closed. A memory does not keep ``depth`` and ``reason``."""

    type: Literal["segment"]
    id: Annotated[int, Field(examples=[7])]
    start: Seconds
    end: Seconds
    depth: float | None
    reason: Literal["cut", "max", "end"] | None
    keyframe: KeyframeUrl
    wall_start: WallClock = None


class CaptionText(_Record):
    """What is said of a scene; ``reason`` is there where words are withheld."""

    segment: int
    start: Seconds
    end: Seconds
    text: Annotated[str, Field(examples=["A dog swims in a lake."])]
    confidence: Confidence = None
    reason: Literal["unsure"] | None = None
    likelihood: Annotated[
        float | None,
        Field(ge=0, le=1, description="by the model itself, fitted to nothing: no confidence"),
    ] = None


class CaptionEvent(CaptionText):
    """The caption of a scene."""

    type: Literal["caption"]
    wall_start: WallClock = None


class NoteEvent(_Record):
    """Speech or a subtitle, or a sound event."""

    type: Literal["note"]
    kind: Annotated[
        Literal["sound"] | None, Field(description="of a sound event; of speech there is none")
    ] = None
    start: Seconds
    end: Seconds
    text: str
    word_starts: Annotated[
        list[Seconds] | None, Field(description="of each word of the text, where it is known")
    ] = None
    wall_start: WallClock = None


class AlertEvent(_Record):
    """Something that was waited for has appeared."""

    type: Literal["alert"]
    query: Annotated[str, Field(examples=["a dog on the sofa"])]
    time: Seconds
    score: float
    segment: int
    keyframe: str | None
    matched: Annotated[
        Literal["picture", "caption"],
        Field(description="what the score rests on; a caption's comes after its scene has closed"),
    ] = "picture"
    confirmed: Annotated[bool | None, Field(description="the model sees it, too")] = None
    wall_start: WallClock = None


class UntilEvent(_Record):
    """The condition that a source was watched until holds now."""

    type: Literal["until"]
    condition: str
    time: Seconds
    segment: int
    wall_start: WallClock = None


class PlanStepItem(_Record):
    """A step of a plan; ``late``: it was seen only after a later one had begun."""

    name: str
    state: Literal["done", "doing", "missing", "open"]
    spans: list[tuple[Seconds, Seconds]]
    segments: list[int]
    late: bool


class NextStepItem(_Record):
    """A step that may come next."""

    name: str
    probability: Annotated[float, Field(gt=0, le=1)]


class PlanEvent(_Record):
    """How far a goal has come. Without given steps, ``steps`` are the last actions seen."""

    type: Literal["plan"]
    goal: Annotated[str, Field(examples=["make coffee"])]
    time: Seconds
    progress: Annotated[
        float | None, Field(ge=0, le=1, description="of the given steps; null without any")
    ]
    steps: list[PlanStepItem]
    next: list[NextStepItem]
    alerts: list[str]
    certainty: Annotated[float, Field(ge=0, le=1)]
    next_from: Annotated[
        Literal["steps", "past", "past and adapter"],
        Field(description="what `next` rests on: given steps, or past actions"),
    ]
    wall_start: WallClock = None


class WarningEvent(_Record):
    """Something that did not stop the work; ``lost`` counts events that came too fast."""

    type: Literal["warning"]
    message: Annotated[str, Field(examples=["rtsp://camera/1: the picture is back"])]
    lost: int | None = None


class EvidenceItem(_Record):
    """A scene that an answer rests on; from a score of 0.5 on it shows what was asked for."""

    source: Annotated[str, Field(examples=["holiday.mp4"])]
    segment: int
    start: Seconds
    end: Seconds
    score: Annotated[float, Field(ge=0, le=1)]
    keyframe: KeyframeUrl | None
    caption: str | None
    speech: str | None
    matched: Literal["picture", "name", "caption", "speech"]
    cosine: float | None
    wall_start: WallClock = None
    quote: str | None = None
    said_at: Seconds | None = None
    reason: Literal["unsure"] | None = None
    names: list[str] | None = None


class MomentEvent(EvidenceItem):
    """A moment that was found."""

    type: Literal["moment"]
    rank: Annotated[int, Field(ge=1)]


class StepItem(_Record):
    """A function of the memory that the model called while it looked for an answer."""

    call: str
    arguments: dict[str, Any]
    text: str
    segments: list[int]
    pictures: int
    failed: bool


class AnswerEvent(_Record):
    """The answer to a question; not ``seen``: the evidence is the nearest there is."""

    type: Literal["answer"]
    question: Annotated[str, Field(examples=["When does the dog swim?"])]
    text: str
    seen: bool
    method: Literal["model", "computed"]
    evidence: list[EvidenceItem]
    remark: str | None = None
    looked_at: str | None = None
    left_out: Annotated[int, Field(description="pictures that the model had no room for")] = 0
    steps: list[StepItem] = []
    decided_by: str | None = None


class QuoteText(_Record):
    """A sentence as it was said."""

    start: Seconds
    end: Seconds
    text: str


class ChapterEvent(_Record):
    """A stretch of scenes that are like each other."""

    type: Literal["chapter"]
    source: str
    start: Seconds
    end: Seconds
    segments: int
    captions: list[CaptionText]
    wall_start: WallClock = None
    quotes: Annotated[
        list[QuoteText] | None, Field(description="typical of what is said in it")
    ] = None


# What EVENT_KEYS does not name is there only where there is something to count.
_FIELDS: dict[str, Any] = {
    name: (kind, ... if name in EVENT_KEYS[Stats][1] else None)
    for name, kind in get_type_hints(Stats).items()
}
_FIELDS["type"] = (Literal["stats"], ...)
_FIRST_LINE = (Stats.__doc__ or "").partition("\n\n")[0]
StatsEvent: Any = create_model(
    "StatsEvent",
    __base__=_Record,
    __doc__=f"{_FIRST_LINE} docs/guide/cameras.md has what each counts.",
    **_FIELDS,
)
_ANY: Any = (
    SegmentEvent
    | CaptionEvent
    | NoteEvent
    | AlertEvent
    | UntilEvent
    | PlanEvent
    | WarningEvent
    | AnswerEvent
    | StatsEvent
)


class Event(RootModel[Annotated[_ANY, Field(discriminator="type")]]):
    """One event of a session."""


class SessionInfo(_Record):
    """A session. ``time`` is how far it has watched; a live source has no ``duration``."""

    id: str
    title: str
    source: Annotated[str, Field(examples=["rtsp://camera/1"])]
    state: Literal["opening", "watching", "over", "failed", "closed"]
    live: bool
    time: float | None
    duration: float | None
    events: int
    waiting: int
    alerts: list[str]
    plan: Annotated[str | None, Field(description="goal of the plan that it follows")]
    url: Annotated[str, Field(examples=["/v1/sessions/camera-1"])]
    video: Annotated[str | None, Field(description="URL of the video, where it is a file")]
    picture: Annotated[str | None, Field(description="URL of the newest picture, once there is")]
    permanent: Annotated[bool, Field(description="of the operator: never closed as idle")]


class SessionList(_Record):
    """Open sessions."""

    sessions: list[SessionInfo]


class MemoryInfo(_Record):
    """A memory; one that cannot be read has ``error`` and nothing else that is known of it."""

    id: Annotated[str, Field(examples=["door"])]
    url: Annotated[str, Field(examples=["/v1/memories/door"])]
    sources: list[str]
    segments: int
    captions: int
    start: float | None
    end: float | None
    wall_start: WallClock
    wall_end: str | None
    created: str | None
    bytes: Annotated[int, Field(description="on disk: database and keyframes")]
    error: str | None = None


class MemoryList(_Record):
    """The memories that can be asked."""

    memories: list[MemoryInfo]


class SeenScene(_Record):
    """A scene of a memory, as the grid of cameras shows it."""

    segment: int
    start: Seconds
    end: Seconds
    wall_start: WallClock
    caption: str | None
    keyframe: Annotated[str, Field(examples=["/v1/archive/door/keyframes/7"])]


class ArchivedCamera(_Record):
    """A memory of the server's folder: of a camera, or of a file."""

    memory: Annotated[str, Field(examples=["door"])]
    url: Annotated[str, Field(examples=["/v1/memories/door"])]
    state: Annotated[
        Literal[
            "opening", "watched", "down", "ended", "failed", "whole", "broken", "kept", "unreadable"
        ],
        Field(
            description="of a camera that `watch --sources` watches now; of a file of `index`; "
            "`kept`: nothing is known of who writes it"
        ),
    ]
    reason: str | None
    segments: int
    written: Annotated[str | None, Field(description="wall clock of the last write")]
    seen: SeenScene | None


class CameraList(_Record):
    """The memories of the server's folder, by name."""

    cameras: list[ArchivedCamera]


class TimelineRow(_Record):
    """When a memory saw something: start, end and number of scenes of each span without a gap."""

    memory: str
    clock: Annotated[
        Literal["wall", "stream"],
        Field(description="Unix seconds, or seconds of a stream whose clock is not known"),
    ]
    spans: list[tuple[float, float, int]]


class ArchiveTimeline(_Record):
    """The common timeline of all memories."""

    rows: list[TimelineRow]


class AskedMemories(_Record):
    """How many memories were asked, and the names of those that could not be opened."""

    asked: int
    failed: list[str]


class MemoryAnswer(AnswerEvent):
    """The answer of one memory of several."""

    memory: str


class Answers(AskedMemories):
    """An answer of each memory in which the thing was seen, best first."""

    answers: list[MemoryAnswer]


class MemoryMoment(MomentEvent):
    """A moment of one memory of several."""

    memory: str


class FoundInAll(AskedMemories):
    """The best moments of all memories."""

    moments: list[MemoryMoment]


class Moments(_Record):
    """Moments, best first."""

    moments: list[MomentEvent]


class Chapters(_Record):
    """Chapters, in time order."""

    chapters: list[ChapterEvent]


class Events(_Record):
    """What is kept, oldest first; each with its ``source``."""

    events: list[Event]


class Pushed(_Record):
    """Whether a picture will be perceived, and how many wait for that."""

    taken: bool
    waiting: int


class Uploaded(_Record):
    """A video that was uploaded, and how a session names it."""

    id: str
    source: Annotated[str, Field(examples=["upload:x7Jq"])]
    bytes: int


def replies(model: Any, status: int = 200, **other: Any) -> dict[int | str, dict[str, Any]]:
    """Return ``responses`` for a route: its reply as JSON, and ``other`` media types with it.

    Args:
        model: of the JSON.
        status: of success.
        other: further keys of the description, such as ``content``.
    """
    return {status: {"model": model, **other}}
