"""The tools, through the official client."""

import pytest

mcp = pytest.importorskip("mcp", reason="needs streammem[mcp]")

from streammem.mcp import make_server  # noqa: E402
from streammem.server.limits import ServerConfig  # noqa: E402
from streammem.server.rooms import Rooms  # noqa: E402
from streammem.session_config import SessionConfig  # noqa: E402
from tests.sessions import SHORT  # noqa: E402

pytestmark = pytest.mark.anyio


@pytest.fixture
def tools(model, memories, video):
    options = SessionConfig(answer=SHORT, caption=SHORT)
    return make_server(Rooms(model, options, ServerConfig(memories=memories)), [video])


def text(result):
    assert not result.is_error, result.content
    return "\n".join(part.text for part in result.content if part.type == "text")


async def test_an_agent_lists_asks_finds_and_is_shown(tools):
    async with mcp.Client(tools) as client:
        assert {t.name for t in (await client.list_tools()).tools} == {
            "list",
            "ask",
            "find",
            "clip",
        }
        listed = text(await client.call_tool("list", {}))
        assert "memory:trips" in listed and "three scenes.mp4" in listed and "/" not in listed
        trips = {"name": "memory:trips"}
        assert "Nearest" in text(await client.call_tool("ask", trips | {"question": "A dog?"}))
        found = text(await client.call_tool("find", trips | {"query": "red", "count": 2}))
        assert '"rank": 2' in found or '"rank":2' in found
        shown = await client.call_tool("clip", trips | {"start": 0, "end": 9})
        assert [part.type for part in shown.content].count("image") == 3
        assert "scene 0" in text(shown)


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
