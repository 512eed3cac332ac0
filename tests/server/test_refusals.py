"""Refusals: a 4xx with the reason in one line, and no other effect."""

import io
import json
import zipfile
from functools import partial
from pathlib import Path

import anyio
import av
import numpy as np
import pytest

from streammem.cli import main
from streammem.errors import ConfigError
from streammem.server.guard import Rates
from streammem.server.limits import Limits, ServerConfig
from streammem.server.refused import Refused
from streammem.server.uploads import Uploads, container_of
from tests.server.conftest import TOKEN

pytestmark = pytest.mark.anyio


def refused(response, status):
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert message and "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Token {TOKEN}", "Basic !", "Bearer ü"],
)
async def test_without_the_token_nothing_is_reached(serving, authorization):
    headers = {"authorization": authorization.encode()} if authorization else {}
    async with serving(token=TOKEN) as client:
        for path in ("/v1/sessions", "/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            assert "token" in refused(await client.get(path, headers=headers), 401)
        assert (await client.get("/healthz", headers=headers)).status_code == 200


@pytest.mark.parametrize("form", ["bearer", "password"])
async def test_the_token_opens_as_bearer_and_as_a_browsers_password(serving, form):
    auth = ("anyone", TOKEN) if form == "password" else None
    headers = {} if auth else {"authorization": f"Bearer {TOKEN}"}
    async with serving(token=TOKEN) as client:
        assert (await client.get("/v1/sessions", auth=auth, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}]
)
async def test_without_a_token_no_other_site_reaches_it_through_a_browser(serving, headers):
    async with serving() as client:
        refused(await client.get("/v1/sessions", headers=headers), 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1:1", "[::1]", "[::1]:80"])
async def test_this_computer_is_known_by_each_of_its_names(serving, host):
    async with serving() as client:
        assert (await client.get("/v1/sessions", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.com"])
def test_beyond_loopback_it_does_not_start_without_a_token(host):
    with pytest.raises(ConfigError, match="STREAMMEM_TOKEN"):
        ServerConfig(host=host)
    ServerConfig(host=host, token=TOKEN)


def test_a_short_token_is_no_token():
    with pytest.raises(ConfigError, match="16 characters"):
        ServerConfig(token="secret")


def test_the_command_refuses_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.delenv("STREAMMEM_TOKEN", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_source_that_cannot_be_opened_ends_the_command_in_one_line(run):
    code, out, err = run("serve", "--port", "0", "nowhere.mp4")
    assert (code, out) == (1, "")
    assert "nowhere.mp4" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("file:///etc/passwd", 403),
        ("/etc/passwd", 422),
        ("../x.mp4", 422),
        ("webcam:0", 422),
        ("screen:", 422),
        ("-", 422),
        ("concat:a|b", 422),
        ("ftp://example.com/a.mp4", 422),
        ("http://[bad", 422),
        ("http://a b/", 422),
        ("http://169.254.169.254/latest", 403),
        ("http://127.0.0.1:1/a.mp4", 403),
        ("http://[::1]/a.mp4", 403),
        ("http://[::ffff:127.0.0.1]/a.mp4", 403),
        ("http://localhost/a.mp4", 403),
        ("http://example.com/a.mp4", 403),
        ("rtsp://10.0.0.1/1", 403),
        ("upload:../../etc/passwd", 404),
        ("", 422),
    ],
)
async def test_a_source_that_is_not_allowed_is_refused(serving, source, status):
    async with serving() as client:
        refused(await client.post("/v1/sessions", json={"source": source}), status)
        assert (await client.get("/v1/sessions")).json() == {"sessions": []}


async def test_a_zip_called_mp4_is_no_video_and_leaves_nothing(serving, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.mp4", "w") as archive:
        archive.writestr("x", "y")
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n"
    mp4_in_name_only = b"\0\0\0\x18ftypmp42" + bytes(100)
    async with serving() as client:
        for body in ((tmp_path / "a.mp4").read_bytes(), playlist, mp4_in_name_only, b""):
            refused(await client.post("/v1/uploads", content=body), 415)
        assert client.sessions.uploads.used_bytes == 0
        assert list(client.sessions.uploads.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypmp42", "mov"),
        *((b"\0\0\0\x18" + box + b"....", "mov") for box in (b"moov", b"mdat", b"wide")),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"RIFF....AVI LIST", "avi"),
        (b"RIFF....WAVEfmt ", None),
        ((b"G" + bytes(187)) * 3, "mpegts"),
        ((b"G" + bytes(187)) * 2, None),
        (b"GIF89a", None),
        (b"#EXTM3U\n", None),
        (b"ffconcat version 1.0\n", None),
        (b"PK\x03\x04", None),
        (b"", None),
    ],
)
def test_a_container_is_known_by_what_is_in_it(head, kind):
    assert container_of(head) == kind


async def test_ten_gigabytes_are_refused_before_they_come(serving):
    headers = {"content-length": str(10**10)}
    async with serving() as client:
        for path in ("/v1/uploads", "/v1/sessions", "/v1/sessions/x/frames"):
            refused(await client.post(path, content=b"", headers=headers), 413)


@pytest.mark.parametrize("length", ["ten", "-1", "+5", "1e3", "", "²"])
async def test_a_length_that_is_no_number_is_refused(serving, length):
    async with serving() as client:
        headers = {"content-length": length.encode()}
        refused(await client.post("/v1/sessions", content=b"", headers=headers), 400)


async def test_a_body_without_a_length_is_counted_as_it_comes(serving):
    async def long():
        for _ in range(100):
            yield b"\0\0\0\x18ftypmp42" + bytes(1000)

    async with serving(limits=Limits(upload_bytes=5000, body_bytes=5000)) as client:
        for path in ("/v1/uploads", "/v1/sessions"):
            refused(await client.post(path, content=long()), 413)
        assert client.sessions.uploads.used_bytes == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("length", [1, 1 << 16, None])  # it shows when it is written, or at the end
async def test_a_full_disk_refuses_an_upload_and_leaves_nothing(
    serving, video, monkeypatch, length
):
    body = Path(video).read_bytes()
    async with serving() as client:
        uploads = client.sessions.uploads
        (uploads.folder / "streammem-full").symlink_to("/dev/full")
        with monkeypatch.context() as patched:
            patched.setattr("streammem.server.uploads.secrets.token_urlsafe", lambda _: "full")
            message = refused(await client.post("/v1/uploads", content=body[:length]), 507)
        assert "disk is full" in message and str(uploads.folder) not in message
        assert uploads.used_bytes == 0 and list(uploads.folder.iterdir()) == []
        assert (await client.post("/v1/uploads", content=body)).status_code == 201


async def test_uploads_have_a_quota(serving, video):
    body = Path(video).read_bytes()
    async with serving(limits=Limits(quota_bytes=int(1.5 * len(body)))) as client:
        assert (await client.post("/v1/uploads", content=body)).status_code == 201
        refused(await client.post("/v1/uploads", content=body), 413)


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2Ftrips", ".hidden", "a%00b", "nothing"])
async def test_a_memorys_name_is_no_path(serving, memories, name):
    inside = memories / "trips"
    async with serving(memories=inside) as client:
        path = f"/v1/memories/{name}/questions"
        response = await client.post(path, json={"question": "What?"})
        assert response.status_code in (404, 405, 422)
        opened = await client.post("/v1/sessions", json={"memory": f"../{name}"})
        refused(opened, 422)
        assert str(memories) not in response.text


async def test_sessions_questions_and_pictures_have_bounds(serving):
    limits = Limits(sessions=1, question_chars=20, frames_waiting=1)
    async with serving(limits=limits) as client:
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        message = refused(await client.post("/v1/sessions", json={}), 429)
        assert "close one" in message
        refused(await client.post(f"{path}/questions", json={"question": "x" * 21}), 422)
        refused(await client.post(f"{path}/find", json={"query": "x" * 21}), 422)
        for where in ("summary", "segments"):
            refused(await client.get(f"{path}/{where}", params={"start": 5, "end": 5}), 422)
        name = path.replace("/v1/sessions/", "session:")
        for said in ("x" * 21, " ", "red \ud800?"):
            chat = {"model": name, "messages": [{"role": "user", "content": said}]}
            body = {"content": json.dumps(chat), "headers": {"content-type": "application/json"}}
            refused(await client.post("/v1/chat/completions", **body), 422)
        refused(await client.post(f"{path}/questions", json={"question": "  "}), 422)
        refused(await client.post(f"{path}/find", json={"query": "a", "count": 0}), 422)
        refused(await client.post(f"{path}/questions", content=b"{"), 422)


async def test_questions_that_wait_have_a_bound(serving):
    async with serving(limits=Limits(questions_waiting=2)) as client:
        name = (await client.post("/v1/sessions", json={})).json()["id"]
        host = client.sessions.host(name)
        host._num_waiting = 2
        asked = await client.post(f"/v1/sessions/{name}/questions", json={"question": "What?"})
        refused(asked, 429)
        assert asked.headers["retry-after"]


@pytest.mark.parametrize(
    ("kind", "body", "params", "status"),
    [
        ("image/jpeg", b"not a picture", {}, 422),
        ("image/png", b"\x89PNG\r\n\x1a\n", {}, 422),
        ("image/gif", b"GIF89a", {}, 415),
        ("", b"x", {}, 415),
        ("application/octet-stream", b"123", {}, 422),
        ("application/octet-stream", b"123", {"width": 2, "height": 2}, 422),
        ("application/octet-stream", b"123", {"width": 0, "height": 1}, 422),
        ("application/octet-stream", b"123", {"width": 1, "height": 1, "time": -1}, 422),
        ("application/octet-stream", b"123", {"width": 1, "height": 1, "time": "nan"}, 422),
    ],
)
async def test_a_body_that_is_no_picture_is_refused(serving, kind, body, params, status):
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        headers = {"content-type": kind}
        sent = await client.post(f"{path}/frames", params=params, content=body, headers=headers)
        refused(sent, status)


async def test_time_never_runs_backward(serving):
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        headers = {"content-type": "application/octet-stream"}
        for time, status in ((5, 200), (4, 409), (6, 200)):
            params = {"width": 8, "height": 8, "time": time}
            sent = await client.post(
                f"{path}/frames", params=params, content=bytes(192), headers=headers
            )
            assert sent.status_code == status
        await client.post(f"{path}/end")
        params["time"] = 9
        sent = await client.post(
            f"{path}/frames", params=params, content=bytes(192), headers=headers
        )
        assert "ended" in refused(sent, 409)


async def test_pictures_are_not_pushed_into_a_session_with_a_source(serving, watched):
    async with serving() as client:
        path = await watched(client)
        refused(await client.post(f"{path}/end"), 409)


async def test_an_unknown_option_is_refused(serving):
    async with serving() as client:
        unsaid = await client.post("/v1/sessions", content=b'{"fps": 2}')
        assert "content-type: application/json" in refused(unsaid, 422)
        for wanted in (
            {"sauce": "x"},
            {"fps": 0},
            {"fps": 1e9},
            {"start": -1},
            {"alerts": ["a |"]},
        ):
            refused(await client.post("/v1/sessions", json=wanted), 422)


async def test_a_memory_of_another_model_is_refused_without_its_path(serving, memories):
    from tests.tiny import tiny_model

    async with serving(model=tiny_model(seed=5), memories=memories) as client:
        asked = await client.post("/v1/memories/trips/questions", json={"question": "What?"})
        assert str(memories) not in refused(asked, 409)


async def test_a_clip_needs_a_video_that_is_there_and_a_span_that_can_be(
    serving, watched, memories
):
    async with serving(memories=memories) as client:
        pushed = (await client.post("/v1/sessions", json={})).json()["url"]
        for path in (pushed, "/v1/memories/trips"):
            cut = await client.get(f"{path}/clip", params={"start": 0, "end": 1})
            assert "only captions and keyframes" in refused(cut, 404)
        path = await watched(client)
        for span in ({"start": 2, "end": 1}, {"start": 50, "end": 51}, {"start": 0, "end": 601}):
            message = refused(await client.get(f"{path}/clip", params=span), 422)
            assert str(client.sessions.uploads.folder) not in message
        for span in ({}, {"start": -1, "end": 1}, {"start": 0, "end": "nan"}, {"end": 1}):
            refused(await client.get(f"{path}/clip", params=span), 422)
        assert len(list(client.sessions.uploads.folder.iterdir())) == 1
        host = client.sessions.host(path.rpartition("/")[2])
        host.plan.file.unlink()
        refused(await client.get(f"{path}/clip", params={"start": 0, "end": 1}), 410)


async def test_clips_are_cut_one_at_a_time_within_the_quota_and_few_wait(
    serving, watched, monkeypatch
):
    import threading

    cutting, go = threading.Semaphore(0), threading.Semaphore(0)
    at_once = []

    def cut(file, start, end, out, name):
        at_once.append(1)
        cutting.release()
        assert go.acquire(timeout=120)
        assert at_once.pop() == 1 and not at_once

    monkeypatch.setattr("streammem.server.clips.cut", cut)
    limits = Limits(questions_waiting=1, upload_bytes=10**6, quota_bytes=10**6)
    async with serving(limits=limits) as client:
        path = await watched(client)
        asked = {"start": 0, "end": 1}
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(partial(client.get, f"{path}/clip", params=asked))
            statistics = client.sessions.clips._knife.statistics
            with anyio.fail_after(120):
                while not statistics().tasks_waiting:
                    await anyio.sleep(0.005)
            last = await client.get(f"{path}/clip", params=asked)
            assert refused(last, 429) and last.headers["retry-after"]
            go.release(2)
        upload = client.sessions.uploads
        upload.reserve(upload.free_bytes)
        refused(await client.get(f"{path}/clip", params=asked), 413)


async def test_too_many_requests_are_refused_with_the_time_to_retry(serving):
    async with serving(limits=Limits(burst=3, requests_per_s=1e-3)) as client:
        found = [await client.get("/healthz") for _ in range(4)]
    assert [response.status_code for response in found] == [200, 200, 200, 429]
    assert int(found[-1].headers["retry-after"]) > 1


def test_a_bucket_refills_and_is_one_clients_own():
    clock = [0.0]
    rates = Rates(Limits(burst=2, requests_per_s=2.0), lambda: clock[0])
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0.5]
    assert rates.take("b") == 0
    clock[0] = 0.5
    assert [rates.take("a") for _ in range(2)] == [0, 0.5]


async def test_one_video_has_a_bound_of_its_own_within_the_quota(tmp_path):
    async def blocks():
        yield bytes(4)
        yield bytes(4)

    uploads = Uploads(tmp_path, Limits(upload_bytes=6, quota_bytes=20))
    with pytest.raises(Refused, match="larger") as too_large:
        await uploads.receive(blocks())
    assert too_large.value.status == 413 and list(tmp_path.iterdir()) == []
    assert uploads.reserve(10**9).num_bytes == 6
    assert (uploads.used_bytes, uploads.free_bytes) == (6, 6)
    for left in (6, 6, 2):
        assert uploads.reserve(left).num_bytes == left
    with pytest.raises(Refused, match="no room"):
        uploads.reserve()


async def test_sound_alone_is_no_video(serving):
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    async with serving() as client:
        sent = await client.post("/v1/uploads", content=out.getvalue())
        assert "no video" in refused(sent, 415)
        assert client.sessions.uploads.used_bytes == 0
