"""The tools, through the official client."""

import base64
import io
import shutil
from pathlib import Path

import anyio
import av
import pytest

mcp = pytest.importorskip("mcp", reason="needs streammem[mcp]")

from streammem.engine.session_config import SessionConfig  # noqa: E402
from streammem.integrations.mcp import make_server  # noqa: E402
from streammem.qa.lookups import LOOKUPS, TOOLS  # noqa: E402
from streammem.server.limits import ServerConfig  # noqa: E402
from streammem.server.sessions import Sessions  # noqa: E402
from tests.sessions import SHORT  # noqa: E402

pytestmark = pytest.mark.anyio


@pytest.fixture
def tools(model, memories, video):
    options = SessionConfig(answer=SHORT, caption=SHORT)
    return make_server(Sessions(model, options, ServerConfig(memories=memories)), [video])


def text(result):
    assert not result.is_error, result.content
    return "\n".join(part.text for part in result.content if part.type == "text")


async def test_an_agent_lists_asks_finds_and_is_shown(tools):
    async with mcp.Client(tools) as client:
        assert {t.name for t in (await client.list_tools()).tools} == {
            "list",
            "ask",
            "find",
            "ask_all",
            "find_all",
            "clip",
            "plan",
            *(lookup.name for lookup in LOOKUPS),
        }
        listed = text(await client.call_tool("list", {}))
        assert "memory:trips" in listed and "three scenes.mp4" in listed and "/" not in listed
        trips = {"name": "memory:trips"}
        assert "Nearest" in text(await client.call_tool("ask", trips | {"question": "A dog?"}))
        found = text(await client.call_tool("find", trips | {"query": "red", "count": 2}))
        assert '"rank": 2' in found or '"rank":2' in found
        plan = {"goal": "paint", "steps": ["a red room", "a blue room"]}
        assert "paint [" in text(await client.call_tool("plan", trips | plan))
        assert "no steps given" in text(await client.call_tool("plan", trips | {"goal": "paint"}))
        shown = await client.call_tool("clip", trips | {"start": 0, "end": 9})
        assert [part.type for part in shown.content].count("image") == 3
        assert "scene 0" in text(shown)


async def test_an_agent_asks_all_memories_at_once_and_writes_nothing(model, memories, video):
    shutil.copytree(memories / "trips", memories / "more")
    (memories / "torn").mkdir()
    (memories / "torn" / "memory.json").write_text("{")
    config = ServerConfig(memories=memories, read_only=True)
    options = SessionConfig(answer=SHORT, caption=SHORT)
    async with mcp.Client(make_server(Sessions(model, options, config), [video])) as client:
        found = await client.call_tool("find_all", {"query": "red", "count": 4})
        names = [moment["name"] for moment in found.structured_content["result"]]
        assert set(names) == {"memory:trips", "memory:more"} and len(names) == 4
        answered = text(await client.call_tool("ask_all", {"question": "When is red shown?"}))
        assert answered.startswith("memory:") and "2 memories were asked" in answered
        assert "Not opened: torn" in answered and str(memories) not in answered
        span = {"name": await watched(client), "start": 3.5, "end": 5, "video": "file"}
        refused = await client.call_tool("clip", span)
        assert refused.is_error and "no folder" in refused.content[0].text
    assert sorted(path.name for path in memories.iterdir()) == ["more", "torn", "trips"]


async def watched(client):
    """The name of the session on the video, once that is over."""
    while True:
        listed = (await client.call_tool("list", {})).structured_content["result"]
        found = next(one for one in listed if one["name"].startswith("session:"))
        if found["state"] == "over":
            return found["name"]
        await anyio.sleep(0.05)  # asking without a pause would hold up the watching


def shape(content):
    with av.open(io.BytesIO(content)) as container:
        pictures = list(container.decode(video=0))
    return len(pictures), float(pictures[0].pts * pictures[0].time_base)


async def test_a_clip_is_given_inline_or_as_a_file_that_is_no_memory(tools, memories):
    async with mcp.Client(tools) as client:
        span = {"name": await watched(client), "start": 3.5, "end": 5}
        shown = await client.call_tool("clip", {**span, "video": "inline"})
        (found,) = [part.resource for part in shown.content if part.type == "resource"]
        assert found.mime_type == "video/mp4"
        assert shape(base64.b64decode(found.blob)) == (12, 0.0)  # 8 pictures a second
        for _ in range(2):
            path = text(await client.call_tool("clip", {**span, "video": "file"})).splitlines()[-1]
        assert shape(Path(path).read_bytes()) == (12, 0.0)
        assert [Path(path)] == list((memories / "clips").iterdir())
        assert "memory:clips" not in text(await client.call_tool("list", {}))


async def test_a_memory_has_pictures_and_reports_that_it_has_no_video(tools):
    async with mcp.Client(tools) as client:
        span = {"name": "memory:trips", "start": 0, "end": 9, "video": "inline"}
        shown = await client.call_tool("clip", span)
    assert "no video is at hand" in text(shown)
    assert [part.type for part in shown.content].count("image") == 3


@pytest.mark.parametrize("span", [(5, 3), (50, 60), (0, 700)])
async def test_a_clip_that_cannot_be_is_refused_in_one_line(tools, span):
    async with mcp.Client(tools) as client:
        wanted = {"name": await watched(client), "video": "inline"}
        result = await client.call_tool("clip", {**wanted, "start": span[0], "end": span[1]})
    assert result.is_error and "\n" not in result.content[0].text.strip()


async def test_inline_clips_and_kept_files_are_bounded(tools, memories, monkeypatch):
    monkeypatch.setattr("streammem.integrations.mcp.MAX_INLINE_BYTES", 100)
    monkeypatch.setattr("streammem.integrations.mcp.MAX_CLIPS", 2)
    async with mcp.Client(tools) as client:
        name = await watched(client)
        for end in (4, 5, 6):
            span = {"name": name, "start": 3, "end": end}
            assert (await client.call_tool("clip", {**span, "video": "inline"})).is_error
            text(await client.call_tool("clip", {**span, "video": "file"}))
    assert len(list((memories / "clips").iterdir())) == 2


async def test_an_agent_asks_what_is_being_watched(tools):
    async with mcp.Client(tools) as client:
        listed = (await client.call_tool("list", {})).structured_content["result"]
        name = next(one["name"] for one in listed if one["name"].startswith("session:"))
        assert text(await client.call_tool("ask", {"name": name, "question": "What is red?"}))


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "memory:../x", "question": "What?"},
        {"name": "memory:nothing", "question": "What?"},
        {"name": "session:nothing", "question": "What?"},
        {"name": "trips", "question": "What?"},
        {"name": "memory:trips", "question": "x" * 3000},
    ],
)
async def test_what_cannot_be_asked_is_refused_in_one_line(tools, arguments):
    async with mcp.Client(tools) as client:
        result = await client.call_tool("ask", arguments)
    assert result.is_error
    assert "Traceback" not in result.content[0].text


async def test_an_agent_has_the_functions_that_a_model_has(tools):
    async with mcp.Client(tools) as client:
        offered = {tool.name: tool for tool in (await client.list_tools()).tools}
    for tool in TOOLS:
        schema = offered[tool.name].input_schema
        assert offered[tool.name].description == tool.help
        assert set(schema["required"]) == {"name", *tool.parameters["required"]}
        assert set(schema["properties"]) == {"name", *tool.parameters["properties"]}
        for name, argument in tool.parameters["properties"].items():
            assert argument.items() <= schema["properties"][name].items()


async def test_an_agent_goes_from_scene_to_scene(tools):
    trips = {"name": "memory:trips"}
    async with mcp.Client(tools) as client:
        assert "scene 2" in text(await client.call_tool("at", trips | {"time": "0:10"}))
        after = text(await client.call_tool("after", trips | {"segment": 2}))
        assert "scene 3" in after and "scene 4" in after and "scene 2" not in after
        assert "scene" in text(await client.call_tool("search", trips | {"text": "red"}))
        assert "times" in text(await client.call_tool("count", trips | {"text": "red"}))
        shown = await client.call_tool("look", trips | {"segment": 1})
        assert [part.type for part in shown.content] == ["text", "text", "image"]
        film = {"name": await watched(client)}
        shown = await client.call_tool("look", film | {"segment": 1, "frames": 4})
        assert [part.type for part in shown.content].count("image") == 4


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("look", {"segment": 99}),
        ("look", {"segment": 1, "frames": 99}),
        ("look", {"segment": -1}),
        ("search", {"text": "x" * 400}),
        ("search", {"text": " "}),
        ("at", {"time": "never"}),
    ],
)
async def test_a_call_that_cannot_be_meant_is_an_error_in_few_words(tools, name, arguments):
    async with mcp.Client(tools) as client:
        result = await client.call_tool(name, {"name": "memory:trips"} | arguments)
    assert result.is_error and "Traceback" not in result.content[0].text
