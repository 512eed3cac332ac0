"""Tools for agents (Model Context Protocol): the sessions and memories of ``server`` by name.

    server = make_server(Sessions(model, SessionConfig(), ServerConfig()), ["film.mp4"])
    await server.run_stdio_async()

The tools read; they write only clips, if an agent asks for a file.
"""

import base64
import io
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import BlobResourceContents, EmbeddedResource
from PIL import Image as PillowImage
from pydantic import Field

from streammem import __version__
from streammem.errors import StreammemError
from streammem.fleet.asking import Memories
from streammem.fleet.asking import find_all as find_in
from streammem.perception.frames import JPEG_QUALITY
from streammem.qa.lookups import LOOKUPS, Lookup
from streammem.qa.plan import MAX_STEPS
from streammem.server.queries import check_question, evidence_text, rows
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost
from streammem.server.sessions import Sessions
from streammem.server.wire import event_json, memory_json
from streammem.types import Segment, clock

MAX_PICTURES = 8
MAX_INLINE_BYTES = 8 << 20
CLIPS, MAX_CLIPS = "clips", 100  # files below the memories' folder; the oldest are removed
ABOUT = (
    "Video that was watched, or is being watched now. `list` lists it; `ask` answers a "
    "question about it, `find` finds moments, `clip` shows a span in pictures, `plan` tells how "
    "far a goal has come; `ask_all` and `find_all` look into all memories at once. `search`, "
    "`at`, `before`, `after`, `count` and `look` go from scene to scene. Times are seconds from "
    "the start of each video."
)
Name = Annotated[str, Field(description="session:ID or memory:NAME, as `list` gives them")]
Steps = Annotated[
    Sequence[str],
    Field(max_length=MAX_STEPS, description="what each step shows, in their order"),
]
ToolSeconds = Annotated[float, Field(ge=0, le=1e8, description="seconds")]
Video = Annotated[
    Literal["no", "inline", "file"],
    Field(description="the video too: inline as MP4, or as a file whose path is returned"),
]


def make_server(sessions: Sessions, sources: Sequence[str] = ()) -> MCPServer:
    """Make the server of tools.

    Args:
        sessions: of the server; closed when it ends.
        sources: of the operator, watched from the start.
    """

    @asynccontextmanager
    async def lifespan(server: MCPServer) -> AsyncIterator[None]:
        try:
            await sessions.open_own(sources)
            yield
        finally:
            await sessions.close()

    server: MCPServer = MCPServer(
        "streammem", version=__version__, instructions=ABOUT, lifespan=lifespan
    )
    _add_tools(server, sessions)
    return server


async def _host_of(sessions: Sessions, name: str) -> SessionHost:
    kind, _, rest = name.partition(":")
    if kind == "session":
        return sessions.host(rest)
    if kind == "memory":
        return await sessions.memory(rest)
    raise Refused(404, f"{name}: give session:ID or memory:NAME; `list` names them")


def _add_tools(server: MCPServer, sessions: Sessions) -> None:
    longest = sessions.config.limits.question_chars

    @server.tool(name="list")
    async def listed() -> list[dict[str, Any]]:
        """List the sessions and memories that can be asked: span, sources, dates, size."""
        found: list[dict[str, Any]] = [
            {
                "name": f"session:{name}",
                "source": host.plan.source,
                "state": host.state,
                "time": host.watched.time,
            }
            for name, host in sessions.hosts().items()
        ]
        for name, summary in (await sessions.memory_summaries()).items():
            known = memory_json(name, "", summary)
            del known["id"], known["url"]  # of no use to an agent
            found.append({"name": f"memory:{name}", **known})
        return found

    @server.tool()
    async def ask(name: Name, question: str) -> str:
        """Answer a question from what was seen, with the times of its evidence."""
        with _refusals():
            check_question(question, longest)
            answer = await (await _host_of(sessions, name)).answer(question)
        return answer.text + evidence_text(answer)

    @server.tool()
    async def find(
        name: Name, query: str, count: Annotated[int, Field(ge=1, le=50)] = 5
    ) -> list[dict[str, Any]]:
        """Find the moments that fit a description best, best first."""
        with _refusals():
            check_question(query, longest)
            host = await _host_of(sessions, name)
            moments = await host.do(lambda session: session.find(query, count))
        return [{**event_json(moment, ""), "keyframe": None} for moment in moments]

    @server.tool()
    async def ask_all(question: str) -> str:
        """Answer a question from each memory in which the thing was seen, the surest first."""
        with _refusals():
            check_question(question, longest)
            answers, memories = await sessions.archive.ask(question)
        texts = [f"memory:{name}: {answer.text}{evidence_text(answer)}" for name, answer in answers]
        return "\n\n".join([*texts, _asked(memories)])

    @server.tool()
    async def find_all(
        query: str, count: Annotated[int, Field(ge=1, le=50)] = 5
    ) -> list[dict[str, Any]]:
        """Find the moments of all memories that fit a description best, best first."""
        with _refusals():
            check_question(query, longest)
            moments = await sessions.archive.do(lambda memories: find_in(memories, query, count))
        return [
            {"name": f"memory:{name}", **event_json(moment, ""), "keyframe": None}
            for name, moment in moments
        ]

    @server.tool()
    async def plan(name: Name, goal: str, steps: Steps = ()) -> str:
        """Tell how far a goal has come: steps done with their times, missing, likely next.

        Without steps the last actions that were seen, and guesses from them alone.
        """
        with _refusals():
            for text in (goal, *steps):
                check_question(text, longest)
            host = await _host_of(sessions, name)
            return str(await host.do(lambda session: session.plan(goal, steps)))

    @server.tool(structured_output=False)
    async def clip(
        name: Name, start: ToolSeconds, end: ToolSeconds, video: Video = "no"
    ) -> list[Any]:
        """Show a span: its captions, a picture of each scene (at most 8), on request the video."""
        with _refusals():
            if not start < end:
                raise Refused(422, "start must be before end")
            host = await _host_of(sessions, name)
            shown = await _shown(host, (start, end))
            if video != "no":
                shown.append(await _video(sessions, name, host, (start, end), video))
            return shown

    for lookup in LOOKUPS:
        server.add_tool(
            _called(sessions, lookup), lookup.name, description=lookup.help, structured_output=False
        )


def _asked(memories: Memories) -> str:
    """Return a line that tells how many memories were asked, and which could not be."""
    text = f"{len(memories.sessions)} memories were asked."
    failed = ", ".join(memories.failed)
    return f"{text} Not opened: {failed}." if failed else text


def _called(sessions: Sessions, lookup: Lookup) -> Callable[..., Any]:
    """Make the tool of a lookup: its arguments behind the name of a session or memory."""

    async def call(name: str, **arguments: Any) -> list[Any]:
        with _refusals():
            host = await _host_of(sessions, name)
            looked = await host.do(lambda session: session.lookups().call(lookup.name, arguments))
        if looked.failed:
            raise ToolError(looked.text)
        shown: list[Any] = [looked.text]
        for picture in looked.pictures:
            shown += [
                f"picture of {clock(picture.time)}",
                Image(data=_jpeg(picture.pixels), format="jpeg"),
            ]
        return shown

    # The SDK reads a tool's arguments from the signature of its function.
    kinds: dict[str, Any] = {"string": str, "integer": int}
    limits = {
        "minimum": "ge",
        "maximum": "le",
        "minLength": "min_length",
        "maxLength": "max_length",
    }
    parameters = [Parameter("name", Parameter.KEYWORD_ONLY, annotation=Name)]
    for name, schema in lookup.arguments.items():
        bounds = {limits[key]: value for key, value in schema.items() if key in limits}
        about = Field(description=schema["description"], **bounds)
        kind: Any = Annotated[kinds[schema["type"]], about]
        default = schema.get("default", Parameter.empty)
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default))
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return call


def _jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    PillowImage.fromarray(pixels).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


async def _shown(host: SessionHost, span: tuple[float, float]) -> list[Any]:
    """Return a span's events as text, and keyframes with their times."""
    kept = [row.event for row in await host.do(lambda session: rows(session, span))]
    scenes = [event for event in kept if isinstance(event, Segment)]
    step = -(-len(scenes) // MAX_PICTURES) or 1
    shown: list[Any] = ["\n".join(map(str, kept)) or "nothing is kept of this span"]
    for scene in scenes[::step]:
        jpeg = await host.do(lambda session, at=scene.id: session.memory.keyframe(at))  # type: ignore[misc]
        if jpeg:
            shown += [f"picture of {clock(scene.start)}", Image(data=jpeg, format="jpeg")]
    return shown


async def _video(
    sessions: Sessions, name: str, host: SessionHost, span: tuple[float, float], form: str
) -> Any:
    """Return a span's video, the path of its file, or a line that explains why there is none."""
    folder = None if sessions.config.read_only else sessions.config.memories
    if host.plan.file is None:
        return "no video is at hand here: these are all the pictures that are kept"
    if form == "file" and folder is None:
        raise Refused(422, "there is no folder for files: start with --memories, or ask inline")
    clip = await sessions.clips.cut(host, *span)
    try:
        if form == "file" and folder is not None:
            title = f"{name.partition(':')[2]}-{span[0]:g}-{span[1]:g}.mp4"
            return str(_keep(clip.path, folder / CLIPS, title))
        if clip.num_bytes > MAX_INLINE_BYTES:
            text = f"{clip.num_bytes} bytes are too many inline; ask for a file or a shorter span"
            raise Refused(413, text)
        blob = base64.b64encode(clip.path.read_bytes()).decode()
    finally:
        sessions.clips.remove(clip)
    uri = f"clip://{name.replace(':', '/')}/{span[0]:g}-{span[1]:g}.mp4"
    found = BlobResourceContents(uri=uri, mime_type="video/mp4", blob=blob)
    return EmbeddedResource(resource=found)


def _keep(clip: Path, folder: Path, title: str) -> Path:
    """Move a clip into a folder and remove all but the newest ``MAX_CLIPS`` there."""
    folder.mkdir(exist_ok=True)
    kept = Path(shutil.move(clip, folder / title))
    for old in sorted(folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)[:-MAX_CLIPS]:
        old.unlink()
    return kept


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn a refusal or an error of ours into one line for the agent."""
    try:
        yield
    except (Refused, StreammemError) as error:
        raise ToolError(str(error)) from error
