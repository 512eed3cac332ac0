"""A served model looks into a memory by the tools of its server's own form."""

import pytest

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError, ServedModelError
from streammem.models.registry import open_generator
from streammem.qa.lookups import LOOKUPS
from tests.looking import model_of
from tests.model_server import ModelServer, parts_of
from tests.tiny import film

FAST = "?tries=2&backoff_s=0.01"
KINDS = ("openai", "ollama")
FILM = film(("red", 6), ("blue", 6), ("green", 6))


def session_of(server, kind, **options):
    generator = open_generator(getattr(server, kind) + FAST)
    session = Session(model_of(generator), SessionConfig(passages=1, now_frames=0, **options))
    for frame in FILM:
        session.push(frame)
    session.flush()
    return session


@pytest.mark.parametrize("kind", KINDS)
def test_a_served_model_calls_looks_and_answers(kind):
    with ModelServer(context=20_000) as server:
        server.calls = [
            ("at", {"time": "0:04"}),
            ("look", {"segment": 1, "frames": 1}),
            ("look", {"segment": 99}),
        ]
        answer = session_of(server, kind, steps=6).ask("Which colour was it?")
        sent = server.prompts[-1]
    assert [step.call for step in answer.steps] == ["at", "look", "look"]
    assert [step.failed for step in answer.steps] == [False, False, True]
    assert "blue" in answer.text
    roles = [message["role"] for message in sent["messages"]]
    assert roles.count("assistant") == roles.count("tool") == 3 and roles[0] == "user"
    offered = [tool["function"]["name"] for tool in sent["tools"]]
    assert offered == [lookup.name for lookup in LOOKUPS]
    parts = parts_of(sent)
    for before, part in zip(["", *parts], parts, strict=False):
        assert isinstance(part, str) or str(before).startswith("[")  # its time


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_time_no_tool_is_offered(kind):
    with ModelServer(context=20_000) as server:
        server.calls = [("count", {"text": str(i)}) for i in range(9)]
        answer = session_of(server, kind, steps=3).ask("Which colour was it?")
        asked = [bool(sent.get("tools")) for sent in server.prompts]
    assert asked[-3:] == [True, True, False] and len(answer.steps) == 2
    assert answer.text.startswith("I see")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_a_server_loses_on_the_way_are_an_error(kind):
    with ModelServer("keeps the first", context=20_000) as server:
        server.calls = [("look", {"segment": 0}), ("look", {"segment": 1})]
        with pytest.raises(ServedModelError, match="lost pictures"):
            session_of(server, kind, steps=4).ask("Which colour was it?")


def test_arguments_that_are_no_json_go_back_to_the_model_as_an_error(monkeypatch):
    with ModelServer(context=20_000) as server:
        server.calls = [("look", "segment: 1")]
        answer = session_of(server, "openai", steps=3).ask("Which colour was it?")
    assert answer.steps[0].failed and answer.text


def test_a_model_without_tools_says_so():
    with ModelServer(context=20_000) as server:
        server.has_tools = False
        with pytest.raises(ConfigError, match="cannot call tools"):
            session_of(server, "ollama", steps=3)  # which says what its models can do
        with pytest.raises(ServedModelError, match=r"calls no tools there .*--jinja"):
            session_of(server, "openai", steps=3).ask("Which colour was it?")
