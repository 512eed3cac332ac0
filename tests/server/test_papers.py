"""The server's papers: what replies, events and errors look like is what the description says."""

import asyncio
import json
import re

import pytest

pytest.importorskip("fastapi", reason="needs streammem[serve]")

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.memory.entry import Sureness
from streammem.memory.folder import WriterLock
from streammem.output.render import EVENT_KEYS
from streammem.server.queries import public_source
from streammem.types import Answer
from tests.sessions import SHORT, told
from tests.tiny import film

pytestmark = pytest.mark.anyio
WALL = 1_777_800_000.0  # Unix seconds


@pytest.fixture
def door(model, tmp_path):
    """A folder with a memory of a camera, ``door``, seen at a path and at a known wall clock."""
    folder = tmp_path / "cameras"
    folder.mkdir()
    options = SessionConfig(answer=SHORT, caption=SHORT)
    source = str(tmp_path / "private" / "door.mp4")
    with Session(model, options, folder / "door", source=source, wall_zero=WALL) as session:
        told(session, film(("red", 9), ("blue", 7)))
        session.memory.set_caption(0, "A red wall.", None, Sureness(0.01, unsure=True))
    return folder


async def test_replies_and_events_are_as_described(serving, watched, door):
    jsonschema = pytest.importorskip("jsonschema", reason="needs streammem[dev]")
    async with serving(memories=door, alerts=("red",)) as client:
        described = (await client.get("/openapi.json")).json()
        path = await watched(client, alerts=["red"])
        asked = {"question": "What is red?"}
        got = {
            ("/v1/sessions", "get"): await client.get("/v1/sessions"),
            ("/v1/sessions/{name}", "get"): await client.get(path),
            ("/v1/sessions/{name}/questions", "post"): await client.post(
                f"{path}/questions", json=asked
            ),
            ("/v1/sessions/{name}/find", "post"): await client.post(
                f"{path}/find", json={"query": "blue"}
            ),
            ("/v1/sessions/{name}/summary", "get"): await client.get(f"{path}/summary"),
            ("/v1/sessions/{name}/plan", "post"): await client.post(
                f"{path}/plan", json={"goal": "paint", "steps": ["a red room"], "follow": True}
            ),
            ("/v1/memories/{name}/plan", "post"): await client.post(
                "/v1/memories/door/plan", json={"goal": "paint"}
            ),
            ("/v1/memories", "get"): await client.get("/v1/memories"),
            ("/v1/memories/{name}", "get"): await client.get("/v1/memories/door"),
            ("/v1/archive", "get"): await client.get("/v1/archive"),
            ("/v1/archive/timeline", "get"): await client.get("/v1/archive/timeline"),
            ("/v1/archive/questions", "post"): await client.post(
                "/v1/archive/questions", json=asked
            ),
            ("/v1/archive/find", "post"): await client.post(
                "/v1/archive/find", json={"query": "blue"}
            ),
            ("/v1/memories/{name}/segments", "get"): await client.get("/v1/memories/door/segments"),
        }
        refused = await client.get("/v1/sessions/unknown")
        stream = (await client.get(f"{path}/events")).text

    def check(content, schema):
        jsonschema.validate(content, {**schema, "components": described["components"]})

    for (route, method), reply in got.items():
        assert reply.status_code == 200, reply.text
        shown = described["paths"][route][method]["responses"]["200"]
        check(reply.json(), shown["content"]["application/json"]["schema"])
        check(refused.json(), described["paths"][route][method]["responses"]["4XX"]["content"][
            "application/json"]["schema"])  # fmt: skip
    events = [json.loads(line) for line in re.findall(r"^data: (.*)$", stream, re.MULTILINE)]
    for event in events:
        check(event, {"$ref": "#/components/schemas/Event"})
    assert {"segment", "caption", "answer", "plan", "stats"} <= {event["type"] for event in events}
    by_socket = described["paths"]["/v1/sessions/{name}/events"]["get"]["x-websocket"]
    assert "4404" in by_socket["closeCodes"]


async def test_every_key_of_an_event_is_described(serving):
    async with serving() as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for kind, keys in EVENT_KEYS.values():
        known = schemas[f"{kind.title()}Event"]
        assert {"type", *keys} <= set(known["properties"]), kind
        assert "description" in known


async def test_the_page_of_the_description_names_no_other_server(serving):
    async with serving(prefix="/cameras") as client:
        page = await client.get("/cameras/docs")
        named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert named and not [url for url in named if "//" in url]
        files = [url for url in named if url.startswith("/cameras/docs/files/")]
        assert len(files) == 2
        for url in files:
            assert len((await client.get(url)).content) > 100_000
        assert "default-src 'self'" in page.headers["content-security-policy"]


async def test_a_websocket_to_no_session_is_told_so(listening):
    websockets = pytest.importorskip("websockets", reason="needs streammem[serve]")
    async with (
        listening() as (url, _),
        websockets.connect(f"ws{url[4:]}/v1/sessions/unknown/events") as socket,
        asyncio.timeout(60),
    ):
        assert json.loads(await socket.recv())["error"]["message"] == "no such session"
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4404, "no such session")


async def test_what_is_kept_has_wall_clock_sureness_picture_and_no_folders(serving, door):
    async with serving(memories=door) as client:
        kept = (await client.get("/v1/memories/door/segments")).json()["events"]
        asked = await client.post("/v1/memories/door/find", json={"query": "red"})
        chapters = await client.get("/v1/memories/door/summary")
        listed = (await client.get("/v1/memories")).json()["memories"][0]
        exported = (await client.get("/v1/memories/door/export")).text
    caption = next(event for event in kept if event["type"] == "caption")
    assert (caption["confidence"], caption["reason"]) == (0.01, "unsure")
    assert all("wall_start" in event and event["source"] == "door.mp4" for event in kept)
    assert kept[0]["keyframe"] == "/v1/memories/door/keyframes/0"
    assert listed["sources"] == ["door.mp4"] and listed["wall_start"] == kept[0]["wall_start"]
    for text in (asked.text, chapters.text, exported):
        assert "private" not in text and "door.mp4" in text


async def test_an_answer_in_words_names_no_folders_whole_or_piece_by_piece(
    serving, door, monkeypatch
):
    def ask(session, question, on_text, pictures=()):
        text = f"1 time: {session.memory.entries()[0].source} 00:00.0-00:04.5"
        on_text(text)
        return Answer(question, text, True, "computed")

    monkeypatch.setattr(Session, "ask", ask)
    async with serving(memories=door) as client:
        for stream in (False, True):
            asked = {"question": "How often?", "stream": stream}
            reply = await client.post("/v1/memories/door/questions", json=asked)
            assert "private" not in reply.text and "1 time: door.mp4 00:00.0" in reply.text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/me/a.mp4", "a.mp4"),
        ("trips/a.mp4", "a.mp4"),
        ("rtsp://camera/door/1", "rtsp://camera/door/1"),
        ("growing:/home/me/a.ts", "growing:a.ts"),
        ("concat:/home/me/a.mp4|/home/you/b.mp4", "concat:a.mp4|b.mp4"),
        ("webcam:0", "webcam:0"),
        ("C:\\films\\a.mp4", "C:a.mp4"),
    ],
)
def test_of_a_path_clients_read_its_last_part(name, shown):
    assert public_source(name) == shown


async def test_older_segments_are_reached_page_by_page(serving, memories):
    async with serving(memories=memories) as client:
        path = "/v1/memories/trips/segments"
        everything = (await client.get(path)).json()["events"]
        found, before = [], None
        while True:
            only = {"count": 2} | ({} if before is None else {"before": before})
            page = (await client.get(path, params=only)).json()["events"]
            if not page:
                break
            found, before = [*page, *found], page[0]["id"]
    assert found == everything


async def test_subtitles_carry_the_wall_clock_where_it_is_known(serving, door):
    async with serving(memories=door) as client:
        path = "/v1/memories/door/export"
        plain = (await client.get(path, params={"format": "srt"})).text
        with_clock = (await client.get(path, params={"format": "srt", "wall_clock": "true"})).text
    assert not re.search(r"^\d{4}-", plain, re.MULTILINE)
    stamps = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d$", with_clock, re.MULTILINE)
    assert len(stamps) == plain.count("-->")


async def test_a_memory_is_renamed_and_removed_but_not_while_it_is_written(serving, memories):
    (memories / "trips" / "notes.txt").write_text("mine")
    async with serving(memories=memories) as client:
        assert (await client.get("/v1/memories/trips/segments")).is_success  # it is open
        with WriterLock(memories / "trips"):
            for ask in (
                client.patch("/v1/memories/trips", json={"name": "other"}),
                client.delete("/v1/memories/trips"),
            ):
                refused = await ask
                assert refused.status_code == 409 and "being written" in refused.text
                assert str(memories) not in refused.text
        bad = await client.patch("/v1/memories/trips", json={"name": "../other"})
        assert bad.status_code == 422
        renamed = await client.patch("/v1/memories/trips", json={"name": "other"})
        assert renamed.json()["id"] == "other"
        assert (await client.get("/v1/memories/other/segments")).json()["events"]
        assert (await client.delete("/v1/memories/other")).status_code == 204
        assert (await client.get("/v1/memories")).json() == {"memories": []}
        assert (await client.delete("/v1/memories/other")).status_code == 404
    assert [file.name for file in (memories / "other").iterdir()] == ["notes.txt"]


async def test_a_session_is_renamed_waits_for_more_and_shows_its_newest_picture(serving, watched):
    async with serving() as client:
        path = await watched(client)
        changed = await client.patch(path, json={"title": "The door", "alerts": ["a dog"]})
        assert (changed.json()["title"], changed.json()["alerts"]) == ("The door", ["a dog"])
        for wrong in (
            {"title": "\x1b[31m"},
            {"alerts": [""]},
            {"alerts": ["a | "]},
            {"colour": "red"},
        ):
            assert (await client.patch(path, json=wrong)).status_code == 422
        known = (await client.get(path)).json()
        assert (known["time"], known["duration"], known["live"]) == (9.5, 10.0, False)
        picture = await client.get(known["picture"])
        assert picture.headers["content-type"] == "image/jpeg" and len(picture.content) > 300
        whole = await client.get(known["video"], headers={"range": "bytes=0-99"})
        assert (whole.status_code, len(whole.content)) == (206, 100)
        named = await client.get(f"{path}/export", params={"format": "srt"})
        assert "The%20door.srt" in named.headers["content-disposition"]


async def test_the_operators_sessions_keep_their_addresses_over_a_restart(serving, video):
    found = []
    for _ in range(2):
        async with serving() as client:
            await client.sessions.open_own([video, video])
            found.append(client.sessions.own())
    assert found[0] == found[1] and len(set(found[0])) == 2
    assert found[0][0].startswith("three-scenes-")
