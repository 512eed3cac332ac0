"""The HTTP contract: sessions, events, questions, search, closing."""

import io
import json
from pathlib import Path

import anyio
import av
import pytest
from PIL import Image

from streammem.engine.session import Session
from streammem.server.limits import Limits
from streammem.server.queries import rows
from tests.sessions import FILM
from tests.tiny import film

pytestmark = pytest.mark.anyio


def sse(text):
    """The events of a stream: (id, kind, content) each."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def jpeg(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


async def test_an_uploaded_video_gives_events_in_order_and_the_stream_ends_with_it(
    serving, watched
):
    async with serving() as client:
        path = await watched(client)
        events = sse((await client.get(f"{path}/events")).text)
    assert [int(number) for number, _, _ in events] == list(range(len(events)))
    segments = [content for _, kind, content in events if kind == "segment"]
    captions = [content for _, kind, content in events if kind == "caption"]
    assert [(s["start"], s["end"]) for s in segments] == [(0.0, 3.0), (3.0, 7.0), (7.0, 10.0)]
    assert [c["segment"] for c in captions] == [0, 1, 2]


async def test_a_client_that_comes_back_goes_on_after_its_last_event(serving, watched):
    async with serving() as client:
        path = await watched(client)
        everything = sse((await client.get(f"{path}/events")).text)
        rest = await client.get(f"{path}/events", headers={"last-event-id": "2"})
        over = {"last-event-id": str(len(everything) - 1)}
        assert sse(rest.text) == everything[3:]
        assert (await client.get(f"{path}/events", headers=over)).status_code == 204


async def test_a_question_is_answered_whole_and_piece_by_piece(serving, watched):
    async with serving() as client:
        path = await watched(client)
        whole = (await client.post(f"{path}/questions", json={"question": "What is red?"})).json()
        asked = {"question": "What is red?", "stream": True}
        pieces = sse((await client.post(f"{path}/questions", json=asked)).text)
    assert whole["type"] == "answer"
    assert whole["evidence"][0]["keyframe"].startswith(f"{path}/keyframes/")
    *texts, (_, kind, answer) = pieces
    assert kind == "answer"
    assert "".join(content["text"] for _, _, content in texts).strip() == answer["text"]


async def test_an_answer_that_breaks_off_ends_the_stream_with_an_error(
    serving, watched, monkeypatch
):
    def ask(session, question, on_text, pictures=()):
        on_text("one")
        raise ZeroDivisionError("/home/me/secret")

    async with serving() as client:
        path = await watched(client)
        monkeypatch.setattr(Session, "ask", ask)
        asked = {"question": "What?", "stream": True}
        (_, _, text), (_, kind, said) = sse(
            (await client.post(f"{path}/questions", json=asked)).text
        )
    assert (text, kind) == ({"text": "one"}, "error")
    assert said == {"error": {"message": "internal error: ZeroDivisionError"}}


async def test_of_too_many_rows_the_newest_are_listed(serving, watched):
    async with serving() as client:
        host = client.sessions.host((await watched(client)).rpartition("/")[2])
        found = await host.do(lambda session: rows(session, None, 1))
    assert (found[0].event.start, found[0].event.end) == (7.0, 10.0)


async def test_an_answer_is_an_event_for_all(serving, watched):
    async with serving() as client:
        path = await watched(client)
        await client.post(f"{path}/questions", json={"question": "What?"})
        *_, (_, kind, content) = sse((await client.get(f"{path}/events")).text)
    assert (kind, content["question"]) == ("answer", "What?")


async def test_the_last_message_of_a_chats_user_is_the_question(serving, watched):
    said = [("user", "First?"), ("assistant", "Red."), ("user", "Second?"), ("assistant", "Blue.")]
    async with serving() as client:
        path = await watched(client)
        chat = {
            "model": path.replace("/v1/sessions/", "session:"),
            "messages": [{"role": role, "content": text} for role, text in said],
        }
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
        *_, (_, _, content) = sse((await client.get(f"{path}/events")).text)
    assert content["question"] == "Second?"


async def test_moments_chapters_segments_and_their_pictures_are_found(serving, watched):
    async with serving() as client:
        path = await watched(client)
        wanted = {"query": "blue", "count": 2}
        moments = (await client.post(f"{path}/find", json=wanted)).json()["moments"]
        assert [moment["rank"] for moment in moments] == [1, 2]
        picture = await client.get(moments[0]["keyframe"])
        assert Image.open(io.BytesIO(picture.content)).size == (64, 48)
        chapters = (await client.get(f"{path}/summary")).json()["chapters"]
        assert chapters[0]["start"] == 0.0 and chapters[-1]["end"] == 10.0
        span = {"start": 3.5, "end": 6}
        (chapter,) = (await client.get(f"{path}/summary", params=span)).json()["chapters"]
        assert (chapter["start"], chapter["end"]) == (3.0, 7.0)
        kept = (await client.get(f"{path}/segments", params=span)).json()
        assert [event["type"] for event in kept["events"]] == ["segment", "caption"]
        assert (await client.get(f"{path}/keyframes/99")).status_code == 404


async def test_a_clip_of_an_upload_is_an_mp4_of_that_span_and_nothing_of_it_is_left(
    serving, watched
):
    async with serving() as client:
        path = await watched(client)
        before = client.sessions.uploads.used_bytes
        cut = await client.get(f"{path}/clip", params={"start": 3.5, "end": 5})
        assert cut.headers["content-type"] == "video/mp4"
        assert int(cut.headers["content-length"]) == len(cut.content)
        assert client.sessions.uploads.used_bytes == before
        assert len(list(client.sessions.uploads.folder.iterdir())) == 1
    with av.open(io.BytesIO(cut.content)) as container:
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    assert len(pictures) == 12  # 8 a second
    assert [int(p[..., 2].mean()) > int(p[..., 0].mean()) for p in pictures] == [True] * 12


async def test_pushed_pictures_are_watched_with_their_times(serving):
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={"fps": 2})).json()["url"]
        for frame in film(*FILM):
            sent = await client.post(
                f"{path}/frames",
                params={"time": frame.time, "width": 32, "height": 24},
                content=frame.pixels.tobytes(),
                headers={"content-type": "application/octet-stream"},
            )
            assert sent.status_code == 200, sent.text
            while client.sessions.host(path.rpartition("/")[2]).plan.inbox.waiting > 8:
                await anyio.sleep(0.005)  # a request would count against the rate
        await client.post(f"{path}/end")
        events = sse((await client.get(f"{path}/events")).text)
    segments = [content for _, kind, content in events if kind == "segment"]
    assert [s["reason"] for s in segments] == ["cut"] * 4 + ["end"]
    assert segments[-1]["end"] == 21.0


async def test_jpeg_and_png_are_pushed_as_they_are(serving):
    pixels = film(("red", 1))[0].pixels
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        for kind, body, time in (("jpeg", jpeg(pixels), 0), ("png", out.getvalue(), 1)):
            headers = {"content-type": f"image/{kind}"}
            sent = await client.post(
                f"{path}/frames", params={"time": time}, content=body, headers=headers
            )
            assert sent.json()["taken"] is True


async def test_pictures_beyond_the_rate_are_left_out(serving):
    body, headers = jpeg(film(("red", 1))[0].pixels), {"content-type": "image/jpeg"}
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={"fps": 1})).json()["url"]
        taken = [
            (await client.post(
                f"{path}/frames", params={"time": t}, content=body, headers=headers
            )).json()["taken"]
            for t in (0, 0.3, 0.9, 1.1)
        ]  # fmt: skip
    assert taken == [True, False, False, True]


async def test_a_memory_is_listed_asked_and_never_written(serving, memories):
    before = (memories / "trips" / "memory.sqlite").read_bytes()
    async with serving(memories=memories) as client:
        (listed,) = (await client.get("/v1/memories")).json()["memories"]
        assert (listed["id"], listed["sources"], listed["segments"]) == ("trips", ["a.mp4"], 5)
        assert listed["bytes"] > 0 and (listed["start"], listed["end"]) == (0.0, 21.0)
        answer = await client.post("/v1/memories/trips/questions", json={"question": "What?"})
        shown = answer.json()["evidence"][0]["keyframe"]
        assert (await client.get(shown)).headers["content-type"] == "image/jpeg"
        assert str(memories) not in answer.text
    assert (memories / "trips" / "memory.sqlite").read_bytes() == before


async def test_a_server_without_memories_lists_none_and_names_the_option(serving):
    async with serving() as client:
        assert (await client.get("/v1/memories")).json() == {"memories": []}
        assert (await client.get("/v1/models")).json()["data"] == []
        asked = await client.post("/v1/memories/trips/questions", json={"question": "What?"})
        kept = await client.post("/v1/sessions", json={"memory": "trips"})
    for refused in (asked, kept):
        assert refused.status_code == 404 and "--memories" in refused.text


async def test_a_session_is_kept_in_a_memory_that_can_be_asked_afterwards(
    serving, watched, memories
):
    async with serving(memories=memories) as client:
        path = await watched(client, memory="new")
        await client.delete(path)
        kept = (await client.get("/v1/memories/new/segments")).json()["events"]
    assert sum(event["type"] == "caption" for event in kept) == 3


async def test_a_memory_that_grows_is_read_anew(serving, watched, memories):
    async with serving(memories=memories) as client:
        before = (await client.get("/v1/memories/trips/segments")).json()["events"]
        await client.delete(await watched(client, memory="trips"))
        after = (await client.get("/v1/memories/trips/segments")).json()["events"]
    assert len(after) > len(before)


async def test_evidence_names_an_upload_as_its_owner_does(serving, video):
    with open(video, "rb") as file:
        body = file.read()
    async with serving() as client:
        kept = await client.post("/v1/uploads", params={"name": "Ferien 1.mp4"}, content=body)
        opened = await client.post("/v1/sessions", json={"source": kept.json()["source"]})
        path = opened.json()["url"]
        await client.get(f"{path}/events")
        moments = (await client.post(f"{path}/find", json={"query": "blue"})).json()["moments"]
        assert {moment["source"] for moment in moments} == {"Ferien 1.mp4"}
        for name in ("\x1b[31mred", "x" * 201):
            refused = await client.post("/v1/uploads", params={"name": name}, content=body)
            assert refused.status_code == 422


async def test_a_closed_session_is_gone_and_its_upload_can_be_removed(serving, watched):
    async with serving() as client:
        path = await watched(client)
        source = (await client.get(path)).json()["source"]
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(path)).status_code == 404
        assert (await client.delete(f"/v1/uploads/{source.partition(':')[2]}")).status_code == 204
        assert client.sessions.uploads.used_bytes == 0
        assert list(client.sessions.uploads.folder.iterdir()) == []


async def test_what_the_operator_watches_is_passed_on_to_its_end_and_no_clients_session(
    serving, watched, video
):
    opened = {}

    class Outlet:
        def __init__(self, source):
            self.events, self.more, self.closed = [], [], False
            opened[source] = self

        def send(self, event, more):
            self.events.append(event)
            self.more.append(more)

        def close(self):
            self.closed = True

    async with serving(alerts=("red",)) as client:
        client.sessions.outlet = Outlet
        await client.sessions.open_own([video])
        ((name, host),) = client.sessions.hosts().items()
        await client.get(f"/v1/sessions/{name}/events")
        await client.sessions._sessions[name].forwarding
        assert host.plan.options.alerts == ("red",)
        await watched(client)
    assert list(opened) == [video]
    outlet = opened[video]
    assert outlet.closed and tuple(outlet.events) == host.events.kept()


async def test_idle_sessions_are_closed(serving, video):
    async with serving(limits=Limits(idle_s=0.3)) as client:
        name = (await client.post("/v1/sessions", json={})).json()["id"]
        host = client.sessions.host(name)
        assert (await client.post("/v1/uploads", content=Path(video).read_bytes())).is_success
        await host.ended.wait()
        assert (await client.get(f"/v1/sessions/{name}")).status_code == 404
        with anyio.fail_after(120):
            while client.sessions.uploads.used_bytes:
                await anyio.sleep(0.005)  # a request alone may let nothing else run


async def test_metrics_count_what_was_done(serving, watched):
    async with serving() as client:
        path = await watched(client)
        await client.post(f"{path}/questions", json={"question": "What?"})
        await client.get("/nowhere")
        counted = (await client.get("/metrics")).text
    found = ("segments_total 3", "captions_total 3", "answers_total 1", "sessions 1")
    for line in (*found, "alerts_total 0", "batched_captions_total 3"):
        assert f"streammem_{line}\n" in counted
    assert 'streammem_requests_total{status="4xx"} 1\n' in counted


async def test_two_sessions_of_one_model_tell_what_each_would_alone(serving, watched):
    async with serving() as client:
        paths = [await watched(client) for _ in range(2)]
        told = [sse((await client.get(f"{path}/events")).text) for path in paths]
    one, other = ([c for _, k, c in events if k == "caption"] for events in told)
    assert one == other


async def test_all_that_is_kept_is_a_file_in_each_form(serving, memories):
    async with serving(memories=memories) as client:
        path = "/v1/memories/trips/export"
        found = {form: await client.get(path, params={"format": form}) for form in ("srt", "vtt")}
        lines = (await client.get(path)).text.splitlines()
    assert found["srt"].text.startswith("1\n00:00:00,000 --> 00:00:04,500\n")
    assert found["vtt"].text.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert [json.loads(line)["type"] for line in lines] == ["segment", "caption"] * 5
