"""A video that a chat message names is watched once, and only where the operator allows it."""

import asyncio
import os
import shutil
from pathlib import Path

import anyio
import pytest

from streammem.server.addresses import Allowed, check_allowed_file
from streammem.server.limits import Limits
from streammem.server.refused import Refused
from tests.command_line import record
from tests.server.test_addresses import answer, site

pytestmark = pytest.mark.anyio
PATIENCE_S = 120


@pytest.fixture
def films(tmp_path, video):
    """A folder of an operator: a film, the same film by another name, and what is no film."""
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("a.mp4", "100% same #2?.mp4"):
        shutil.copy(video, folder / name)
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n")
    (folder / "text.mp4").write_text("no film")
    shutil.copy(video, tmp_path / "outside.mp4")
    (tmp_path / "filmsx").mkdir()  # begins with the same letters
    shutil.copy(video, tmp_path / "filmsx" / "a.mp4")
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "inside.mp4").symlink_to(folder / "a.mp4")
    return folder


def about(url, text="What is red?", **more):
    """A chat as lmms-eval's `openai` model sends it with `pass_video_url=True`."""
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}]
    return {
        "model": "streammem", "messages": [{"role": "user", "content": content}],
        "max_tokens": 16, "temperature": 0, "top_p": 1.0,
        "media_io_kwargs": {"video": {"num_frames": 10}}, **more,
    }  # fmt: skip


async def asked(client, url, *text, **more):
    return await client.post("/v1/chat/completions", json=about(url, *text, **more))


async def answered(client, url, *text, **more):
    reply = await asked(client, url, *text, **more)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.fixture
def pushed(monkeypatch):
    """Count the videos that are watched."""
    from streammem.server import sessions

    opened, open_with = [], sessions.open_with

    def counted(path, options):
        opened.append(path)
        return open_with(path, options)

    monkeypatch.setattr(sessions, "open_with", counted)
    return opened


# -- the client of others' harnesses --


@pytest.mark.heavy
async def test_the_openai_client_asks_about_a_video_without_a_session(listening, films, pushed):
    openai = pytest.importorskip("openai", reason="needs streammem[dev]")
    async with (
        listening(files=(films,)) as (url, sessions),
        openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        ) as client,
    ):
        sent = about(f"file://{films}/a.mp4")
        extra = {"media_io_kwargs": sent.pop("media_io_kwargs"), "evidence": True}
        whole = await client.chat.completions.create(**sent, extra_body=extra)
        assert whole.choices[0].message.content and whole.usage.total_tokens
        assert whole.evidence and whole.evidence[0]["source"] == "a.mp4"
        # It was watched to its end before it was asked.
        (host,) = sessions.hosts().values()
        assert host.state == "over" and host.watched.time > 8
        stream = await client.chat.completions.create(**sent, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks).strip()
        assert chunks[-1].evidence and len(pushed) == 1
        sent["messages"] = about(f"file://{films.parent}/outside.mp4")["messages"]
        with pytest.raises(openai.PermissionDeniedError, match="no such file below the folders"):
            await client.chat.completions.create(**sent)


async def test_a_video_is_watched_once_under_whatever_name_it_comes(serving, films, pushed):
    body = (films / "a.mp4").read_bytes()
    with site(answer(200, body)) as (port, gets):
        async with serving(files=(films,), allowed=Allowed.of(["127.0.0.1"])) as client:
            same = [
                f"file://{films}/{name}"
                for name in (
                    "a.mp4",
                    "100% same #2?.mp4",
                    "100%25%20same%20%232%3F.mp4",
                    "inside.mp4",
                )
            ]
            same += ["file://localhost" + str(films / "a.mp4")]
            web = f"http://127.0.0.1:{port}/film.mp4"
            upload = (await client.post("/v1/uploads", content=body)).json()["source"]
            replies = await asyncio.gather(
                *(answered(client, url) for url in (*same, web, upload, web, same[0]))
            )
            assert len({reply["evidence"][0]["keyframe"] for reply in replies}) == 1
            assert len(client.sessions.hosts()) == len(pushed) == 1
            await answered(client, web)
            assert len(gets) == 1, "an address is downloaded once"
            # The file of the web is gone once it was watched; the client's own upload stays.
            assert client.sessions.uploads.used_bytes == len(body)
            # Another video under the same name is another one.
            record(films / "a.mp4", scenes=(("green", 4),))
            other = await answered(client, same[0])
            assert other["evidence"][0]["keyframe"] != replies[0]["evidence"][0]["keyframe"]
            assert len(pushed) == 2


async def test_each_question_about_a_video_stands_alone(serving, films, monkeypatch):
    from streammem.qa.answerer import Answerer

    earlier, ask = [], Answerer.ask

    def noted(self, *rest, **more):
        earlier.append(len(self.turns))
        return ask(self, *rest, **more)

    monkeypatch.setattr(Answerer, "ask", noted)
    async with serving(files=(films,)) as client:
        for _ in range(2):
            await answered(client, f"file://{films}/a.mp4")
        (name,) = client.sessions.hosts()
        chat = {"model": f"session:{name}", "messages": [{"role": "user", "content": "What?"}]}
        await client.post("/v1/chat/completions", json=chat)
    assert earlier == [0, 0, 1], "a session that is named goes on, as ever"


# -- what may be opened --


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "{films}/../outside.mp4", "{films}/link.mp4", "{films}", "{films}x/a.mp4"),
        *("{films}/missing.mp4", "films/a.mp4", "host{films}/a.mp4", "", "/", "{films}/a.mp4\x00"),
        *("{films}/%2e%2e/outside.mp4", "{films}/..%2foutside.mp4", "//{films}/../outside.mp4"),
    ],
)
def test_only_files_below_a_folder_of_the_operator_are_opened(films, name):
    with pytest.raises(Refused, match="no such file below") as refused:
        check_allowed_file("file://" + name.format(films=films), (films,))
    assert refused.value.status == 403
    with pytest.raises(Refused, match="may allow"):
        check_allowed_file(f"file://{films}/a.mp4", ())
    assert check_allowed_file(f"file://{films}/a.mp4", (films,)) == films / "a.mp4"


def test_what_is_no_regular_file_is_not_opened(films):
    os.mkfifo(films / "pipe.mp4")
    with pytest.raises(Refused):
        check_allowed_file(f"file://{films}/pipe.mp4", (films,))


async def test_what_may_not_be_opened_is_refused_with_the_reason(serving, films):
    async with serving(files=(films,)) as client:
        for url, status, why in (
            ("http://10.0.0.1/a.mp4", 403, "not an allowed source"),
            ("http://localhost/a.mp4", 403, "not an allowed source"),
            ("rtsp://camera/1", 403, "not an allowed source"),
            ("file:///etc/passwd", 403, "no such file"),
            (f"file://{films}/list.m3u8", 415, "not a video"),
            (f"file://{films}/text.mp4", 415, "not a video"),
            ("upload:none", 404, "no such upload"),
            ("ftp://host/a.mp4", 422, "must be an upload or a URL"),
            (str(films / "a.mp4"), 422, "paths are not opened"),
            ("data:video/mp4;base64,AAAA", 422, "must be an upload or a URL"),
            ("", 422, "video_url"),
        ):
            reply = await asked(client, url)
            assert reply.status_code == status, (url, reply.text)
            assert why in reply.json()["error"]["message"], reply.text
        assert client.sessions.hosts() == {} and client.sessions.uploads.used_bytes == 0
        two = about(f"file://{films}/a.mp4")
        two["messages"] += about(f"file://{films}/b.mp4")["messages"]
        for wanted, why in (
            (two, "2 videos"),
            (about(f"file://{films}/a.mp4", model="session:x"), "not both"),
            (about(f"file://{films}/a.mp4", memory="x"), "not both"),
        ):
            reply = await client.post("/v1/chat/completions", json=wanted)
            assert reply.status_code == 422 and why in reply.json()["error"]["message"]


async def test_a_session_opens_a_file_by_the_same_rule(serving, films):
    async with serving(files=(films,)) as client:
        for name, status in (("a.mp4", 201), ("link.mp4", 403), ("list.m3u8", 415)):
            reply = await client.post("/v1/sessions", json={"source": f"file://{films}/{name}"})
            assert reply.status_code == status, reply.text


async def test_a_live_source_and_a_video_that_is_too_long_are_refused(serving, films):
    allowed = Allowed.of(["127.0.0.1"])
    async with serving(files=(films,), allowed=allowed, limits=Limits(video_s=5)) as client:
        reply = await asked(client, "rtsp://127.0.0.1/1")
        assert reply.status_code == 422 and "has no end" in reply.text
        reply = await asked(client, f"file://{films}/a.mp4")
        assert reply.status_code == 413 and "may have 5 s" in reply.text
        assert client.sessions.hosts() == {}


# -- bounds --


def three(folder):
    for number, colour in enumerate(("red", "green", "blue")):
        record(folder / f"{number}.mp4", scenes=((colour, 3),))
    return [f"file://{folder}/{number}.mp4" for number in range(3)]


async def test_the_video_that_was_asked_longest_ago_makes_place_and_others_wait_for_one(
    serving, films, pushed
):
    urls = three(films)
    async with serving(files=(films,), limits=Limits(videos=2)) as client:
        await asyncio.gather(*(answered(client, url) for url in urls))
        assert len(client.sessions.hosts()) == 2 and len(pushed) == 3
        first, second = client.sessions.hosts()
        client.sessions.host(first)  # it was touched last
        kept = client.sessions.hosts()[first].plan.source
        await answered(
            client,
            next(
                u
                for u in urls
                if u[-5:] not in {h.plan.source for h in client.sessions.hosts().values()}
            ),
        )
        assert kept in {host.plan.source for host in client.sessions.hosts().values()}
        assert second not in client.sessions.hosts() and len(pushed) == 4


@pytest.mark.heavy
async def test_sessions_of_other_clients_are_never_closed_for_a_video(serving, films):
    urls = three(films)
    async with serving(files=(films,), limits=Limits(sessions=2)) as client:
        own = (await client.post("/v1/sessions", json={})).json()["id"]
        await answered(client, urls[0])
        await answered(client, urls[1])
        assert own in client.sessions.hosts() and len(client.sessions.hosts()) == 2
        await client.delete(f"/v1/sessions/{next(n for n in client.sessions.hosts() if n != own)}")
        other = (await client.post("/v1/sessions", json={})).json()["id"]
        reply = await asked(client, urls[2])
        assert reply.status_code == 429 and "sessions are open" in reply.text
        assert set(client.sessions.hosts()) == {own, other}


async def test_messages_that_wait_have_a_bound(serving, films, monkeypatch):
    # A model that gives no answer: every message waits.
    gate = anyio.Event()

    async def waits(self, url):
        await gate.wait()
        raise Refused(404, "gone")

    from streammem.server.chat_videos import ChatVideos

    monkeypatch.setattr(ChatVideos, "_open", waits)
    async with serving(files=(films,), limits=Limits(videos_waiting=2)) as client:
        waiting = [asyncio.ensure_future(asked(client, f"file://{films}/a.mp4")) for _ in range(2)]
        while sum(wanted.users for wanted in client.sessions.videos._wanted.values()) < 2:
            await asyncio.sleep(0)
        reply = await asked(client, f"file://{films}/a.mp4")
        assert reply.status_code == 429 and reply.headers["retry-after"] == "30"
        gate.set()
        assert [reply.status_code for reply in await asyncio.gather(*waiting)] == [404, 404]
        assert client.sessions.videos._wanted == {}


@pytest.mark.heavy
async def test_many_questions_about_one_video_are_all_answered(serving, films, pushed):
    async with serving(files=(films,), limits=Limits(questions_waiting=2)) as client:
        url = f"file://{films}/a.mp4"
        replies = await asyncio.gather(*(asked(client, url, f"What {n}?") for n in range(12)))
    assert [reply.status_code for reply in replies] == [200] * 12 and len(pushed) == 1


async def test_a_server_that_ends_leaves_no_download_behind(serving, tmp_path):
    began = anyio.Event()
    loop = asyncio.get_running_loop()

    def slow(handler):
        loop.call_soon_threadsafe(began.set)
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(bytes(1 << 12))
            handler.wfile.flush()
            if client.sessions.videos._closed:
                return

    with site(slow) as (port, _):
        async with serving(allowed=Allowed.of(["127.0.0.1"]), uploads=tmp_path) as client:
            url = f"http://127.0.0.1:{port}/a.mp4"
            waiting = asyncio.ensure_future(asked(client, url))
            await began.wait()
            await client.sessions.close()
            reply = await waiting
            assert reply.status_code >= 400 and "given up" in reply.text
    assert list(Path(tmp_path).iterdir()) == []
