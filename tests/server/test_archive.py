"""All memories of a folder at once: one question, the grid of cameras, the common timeline."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from streammem.cli import build_parser
from streammem.commands.serving import _check_archive, server_config
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.fleet.asking import ask_all, find_all, open_all
from streammem.fleet.cameras import status_text
from streammem.memory.folder import KEYFRAMES
from streammem.memory.store import Store
from tests.server.test_refusals import refused
from tests.sessions import SHORT, told
from tests.tiny import film

pytestmark = pytest.mark.anyio
CONFIG = SessionConfig(answer=SHORT, caption=SHORT)
WALL = 1_777_800_000.0  # Unix seconds at 0 of the door's clock; the hall's begins 4 s later
FILMS = {
    "door": (WALL, (("red", 9), ("blue", 7))),
    "hall": (WALL + 4, (("green", 12), ("white", 6))),
    "talk": (None, (("blue", 5), ("black", 6), ("green", 4))),
}


def seen(model, path, wall_zero, scenes):
    with Session(model, CONFIG, memory=path, source=path.name, wall_zero=wall_zero) as session:
        told(session, film(*scenes))


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name, (wall_zero, scenes) in FILMS.items():
        seen(model, folder / name, wall_zero, scenes)
    return folder


@pytest.fixture
def archive(made, tmp_path):
    return shutil.copytree(made, tmp_path / "house")


async def cameras(client, **at):
    listed = (await client.get("/v1/archive", params=at)).json()["cameras"]
    return {camera["memory"]: camera for camera in listed}


async def test_what_is_found_and_answered_over_all_is_what_the_command_gives(
    serving, model, archive
):
    with open_all(archive, model, CONFIG) as memories:
        expected = find_all(memories, "blue", 5)
        answers = ask_all(memories, "When is blue shown?")
    async with serving(memories=archive, read_only=True) as client:
        found = (await client.post("/v1/archive/find", json={"query": "blue"})).json()
        body = {"question": "When is blue shown?"}
        asked = (await client.post("/v1/archive/questions", json=body)).json()
        for moment in found["moments"][:3]:
            picture = await client.get(moment["keyframe"])
            assert picture.content[:2] == b"\xff\xd8"
        # Sentences go to the same sessions again, and to the memory by itself.
        again = (await client.post("/v1/archive/find", json={"query": "blue"})).json()
        alone = await client.post("/v1/memories/door/find", json={"query": "blue"})
    assert found == again and found["asked"] == 3 and found["failed"] == []
    assert [(m["memory"], m["source"], m["segment"]) for m in found["moments"]] == [
        (name, moment.source, moment.segment) for name, moment in expected
    ]
    assert [m["score"] for m in found["moments"]] == pytest.approx(
        [moment.score for _, moment in expected], abs=1e-3
    )
    assert [(a["memory"], a["text"], a["seen"]) for a in asked["answers"]] == [
        (name, answer.text, answer.seen) for name, answer in answers
    ]
    assert asked["answers"][0]["evidence"][0]["keyframe"].startswith("/v1/archive/")
    assert alone.status_code == 200


async def test_the_grid_shows_what_was_seen_last_and_at_a_time_of_the_wall_clock(serving, archive):
    async with serving(memories=archive, read_only=True, prefix="/house") as client:
        newest = await cameras(client)
        early = await cameras(client, at=WALL + 2)
        later = await cameras(client, at=WALL + 5)
        gone = await cameras(client, at=WALL + 1e6)
        for camera in (*newest.values(), *early.values()):
            if camera["seen"]:
                assert (await client.get(camera["seen"]["keyframe"])).status_code == 200
        assert "wall" in {
            row["clock"] for row in (await client.get("/v1/archive/timeline")).json()["rows"]
        }
    assert {name: camera["seen"]["segment"] for name, camera in newest.items()} == {
        "door": 1, "hall": 1, "talk": 2,
    }  # fmt: skip
    assert all(c["state"] == "kept" and c["written"] and not c["reason"] for c in newest.values())
    assert early["door"]["seen"]["segment"] == 0 and early["hall"]["seen"] is None
    assert later["door"]["seen"]["segment"] == 1 and later["hall"]["seen"]["segment"] == 0
    assert later["door"]["seen"]["caption"] is not None
    assert gone["door"]["seen"] is None
    assert gone["talk"]["seen"]["segment"] == 2  # it has no clock: the newest


async def test_the_timeline_puts_cameras_at_their_places_on_one_clock(serving, archive):
    async with serving(memories=archive, read_only=True) as client:
        rows = (await client.get("/v1/archive/timeline")).json()["rows"]
        window = {"start": WALL + 3, "end": WALL + 5}
        cut = (await client.get("/v1/archive/timeline", params=window)).json()["rows"]
        refused(await client.get("/v1/archive/timeline", params={"start": 5, "end": 5}), 422)
    rows = {row["memory"]: row for row in rows}
    assert [row["clock"] for row in rows.values()] == ["wall", "wall", "stream"]
    assert rows["door"]["spans"] == [[pytest.approx(WALL), pytest.approx(WALL + 8), 2]]
    assert rows["hall"]["spans"] == [[pytest.approx(WALL + 4), pytest.approx(WALL + 13), 2]]
    assert rows["talk"]["spans"] == [[0.0, pytest.approx(7.5), 3]]
    assert [row["spans"][0][2] for row in cut[:2]] == [2, 1]  # scenes that reach into the window


async def test_memories_that_grow_and_new_ones_are_seen(serving, model, archive):
    async with serving(memories=archive, read_only=True) as client:
        before = (await client.post("/v1/archive/find", json={"query": "red", "count": 50})).json()
        with ThreadPoolExecutor(1) as other:  # a writer, while it is open here
            wall_zero, scenes = WALL + 60, (("white", 6), ("green", 5))
            other.submit(seen, model, archive / "door", wall_zero, scenes).result(60)
            other.submit(seen, model, archive / "new", None, scenes).result(60)
        after = (await client.post("/v1/archive/find", json={"query": "red", "count": 50})).json()
        assert len(after["moments"]) == len(before["moments"]) + 4 and after["asked"] == 4
        with open_all(archive, model, CONFIG) as memories:
            expected = [moment.score for _, moment in find_all(memories, "red", 50)]
        assert [m["score"] for m in after["moments"]] == pytest.approx(expected, abs=1e-3)
        grown = await cameras(client)
        assert grown["door"]["segments"] == 4 and grown["new"]["seen"]["segment"] == 1
        shutil.rmtree(archive / "talk")
        gone = (await client.post("/v1/archive/find", json={"query": "red", "count": 50})).json()
        assert gone["asked"] == 3 and "talk" not in await cameras(client)


async def test_half_written_and_damaged_memories_take_no_other_down(serving, archive):
    (archive / ".unfinished-x").mkdir()
    (archive / ".unfinished-x" / "memory.json").write_text("{}")
    (archive / "begun").mkdir()  # no header yet
    shutil.copytree(archive / "talk", archive / "torn")
    (archive / "torn" / "memory.json").write_text('{"format": ')
    shutil.copytree(archive / "talk", archive / "bare")
    for file in (archive / "bare").glob("memory.sqlite*"):
        file.unlink()
    (archive / "door" / "memory.sqlite").write_bytes(b"damaged" * 1000)
    async with serving(memories=archive, read_only=True) as client:
        listed = await cameras(client)
        found = (await client.post("/v1/archive/find", json={"query": "red"})).json()
        rows = (await client.get("/v1/archive/timeline")).json()["rows"]
        reply = await client.post("/v1/archive/questions", json={"question": "What is red?"})
        assert reply.status_code == 200 and str(archive) not in reply.text
        picture = await client.get("/v1/archive/door/keyframes/0")
        refused(picture, 404)
    assert list(listed) == ["bare", "door", "hall", "talk", "torn"]
    for name in ("bare", "door", "torn"):
        assert listed[name]["state"] == "unreadable" and listed[name]["seen"] is None
        assert str(archive) not in listed[name]["reason"]
    assert found["failed"] == ["bare", "door", "torn"] and found["asked"] == 2
    assert {m["memory"] for m in found["moments"]} <= {"hall", "talk"}
    assert [row["spans"] for row in rows if row["memory"] == "door"] == [[]]


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2Fhouse%2Fdoor", ".hidden", "a%00b", "no"])
async def test_a_name_is_one_of_the_list_and_no_path(serving, archive, name):
    shutil.copytree(archive / "door", archive.parent / "outside")
    shutil.copytree(archive / "door", archive / ".hidden")
    async with serving(memories=archive, read_only=True) as client:
        for path in (f"/v1/archive/{name}/keyframes/0", f"/v1/memories/{name}/keyframes/0"):
            reply = await client.get(path)
            assert reply.status_code in (404, 405, 422) and reply.content[:1] == b"{"


async def test_a_keyframes_name_does_not_lead_out_of_its_memory(serving, archive):
    secret = archive.parent / "secret.jpg"
    secret.write_bytes(b"\xff\xd8 secret")
    with Store.open(archive / "door", None, "rw") as store:
        for name in ("../../../secret.jpg", str(secret)):
            store.database.query("UPDATE segments SET keyframe = ? WHERE segment = 0", name)
            async with serving(memories=archive, read_only=True) as client:
                for kind in ("archive", "memories"):
                    reply = await client.get(f"/v1/{kind}/door/keyframes/0")
                    assert reply.status_code >= 400 and b"secret" not in reply.content
    (shown,) = (archive / "hall" / KEYFRAMES).glob("000000000-*")
    shown.unlink()
    shown.symlink_to(secret)
    async with serving(memories=archive, read_only=True) as client:
        refused(await client.get("/v1/archive/hall/keyframes/0"), 404)


async def test_an_archive_is_only_read(serving, archive):
    async def files():
        names = sorted(p for p in archive.rglob("*") if p.is_file() and "-shm" not in p.name)
        return [(p, p.read_bytes()) for p in names if p.stat().st_size]

    before = await files()
    async with serving(memories=archive, read_only=True) as client:
        refused(await client.delete("/v1/memories/door"), 403)
        refused(await client.patch("/v1/memories/door", json={"name": "porch"}), 403)
        refused(await client.post("/v1/sessions", json={"memory": "mine"}), 403)
        await client.post("/v1/archive/questions", json={"question": "When is blue shown?"})
        await client.post("/v1/memories/hall/questions", json={"question": "What is white?"})
        await cameras(client)
    assert await files() == before


async def test_states_are_those_that_the_writers_note(serving, archive):
    states = {"door": ("watched", ""), "porch": ("down", "rtsp://u:secret@10.0.0.7/1: no route")}
    status = archive / "cameras.json"
    status.write_text(status_text(states))
    row = {
        "path": "/films/talk.mp4",
        "memory": "talk",
        "state": "broken",
        "reason": "/films/talk.mp4 (a/b): torn",
    }
    (archive / "archive.jsonl").write_text(f"{json.dumps(row)}\nnot json\n[]\n" + '{"memory": "h')
    async with serving(memories=archive, read_only=True) as client:
        listed = await cameras(client)
        assert {name: camera["state"] for name, camera in listed.items()} == {
            "door": "watched", "hall": "kept", "porch": "down", "talk": "broken",
        }  # fmt: skip
        assert listed["porch"]["seen"] is None and listed["porch"]["segments"] == 0
        assert listed["talk"]["reason"] == "talk.mp4 (a/b): torn"
        assert "no route" in listed["porch"]["reason"] and "secret" not in listed["porch"]["reason"]
        old = json.loads(status.read_text()) | {"written": time.time() - 1000}
        for text in (json.dumps(old), "{", "[]", '{"written": "x"}', ""):
            status.write_text(text)
            listed = await cameras(client)
            assert listed["door"]["state"] == "kept" and "porch" not in listed


async def test_without_memories_there_is_nothing_to_ask(serving, tmp_path):
    (tmp_path / "empty").mkdir()
    for options in ({}, {"memories": tmp_path / "empty"}):
        async with serving(**options) as client:
            assert (await client.get("/v1/archive")).json() == {"cameras": []}
            assert (await client.get("/v1/archive/timeline")).json() == {"rows": []}
            reply = await client.post("/v1/archive/questions", json={"question": "What?"})
            refused(reply, 404)


async def test_idle_memories_are_closed_and_opened_again(serving, archive):
    async with serving(memories=archive, read_only=True) as client:
        first = (await client.post("/v1/archive/find", json={"query": "red"})).json()
        open_ones = client.sessions.archive
        await open_ones.close_idle(3600)
        assert open_ones._memories is not None
        await open_ones.close_idle(0)
        assert open_ones._memories is None
        assert (await client.post("/v1/archive/find", json={"query": "red"})).json() == first


@pytest.mark.parametrize("command", ["serve", "ui", "mcp"])
async def test_the_commands_take_an_archive_and_refuse_what_is_none(command, made, tmp_path):
    def config(*flags):
        arguments = build_parser().parse_args([command, *map(str, flags)])
        if command == "mcp":
            _check_archive(arguments)
            return None
        return server_config(arguments, by_default=command == "ui")

    found = config("--archive", made)
    if found:
        # A camera beside it is kept in RAM, even where `ui` would keep it on disk.
        with_camera = config("rtsp://camera/1", "--archive", made)
        assert found.memories == made and found.read_only and not with_camera.keep_in
    with pytest.raises(ConfigError, match="is one memory"):
        config("--archive", made / "door")
    with pytest.raises(ConfigError, match="give one of them"):
        config("--archive", made, "--memories", tmp_path)
