"""The page, driven in a headless browser: what a visitor does, and what they see."""

import asyncio
import json
import os
import re
import shutil
import time
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs streammem[serve]")

from streammem.audio.track import SpeechTrack
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.fleet.cameras import status_text
from streammem.memory.entry import Entry, unit_rows
from streammem.types import Note
from streammem.ui.watch import STATIC, add_watch
from tests.audio.subtitled import srt
from tests.sessions import SHORT, told
from tests.tiny import film

EVIL = "<img src=x onerror=document.title='hit'><script>document.title='hit'</script>\"'&"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
PATIENCE_MS = 240_000  # a browser beside other work on one core takes minutes
NOW = "document.querySelector('#player').currentTime"
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream"]
FLAGS += ["--use-fake-device-for-media-stream", "--autoplay-policy=no-user-gesture-required"]
LINES = "document.querySelectorAll('#transcript .line').length"
WALL = 1_777_800_000.0  # Unix seconds


@pytest.fixture
def anyio_backend():
    return "asyncio"


# -- without a browser --


def test_the_pages_files_load_nothing_from_elsewhere_and_make_no_markup_of_text():
    for file in STATIC.iterdir():
        text = file.read_text()
        assert not re.search(r"https?://(?!…)|\burl\(", text), file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert not re.search(
        r"<script(?![^>]*src=)|<style|\son\w+=", (STATIC / "index.html").read_text()
    )


@asynccontextmanager
async def served(model, video=None, **config):
    from streammem.server.app import make_app
    from streammem.server.limits import ServerConfig
    from streammem.server.sessions import Sessions

    httpx = pytest.importorskip("httpx2", reason="needs streammem[dev]")
    options = SessionConfig(answer=SHORT, caption=SHORT)
    sessions = Sessions(model, options, ServerConfig(**config))
    app = add_watch(make_app(sessions, [video] if video else []), sessions)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        client.sessions = sessions
        yield client


@pytest.mark.anyio
async def test_the_page_has_a_strict_policy_and_its_address_works_below_a_prefix(model):
    async with served(model, prefix="/cameras") as client:
        bare = await client.get("/cameras/watch")
        assert bare.headers["location"] == "/cameras/watch/"
        for name in ("", "app.js", "style.css"):
            reply = await client.get(f"/cameras/watch/{name}")
            assert reply.status_code == 200
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
        about = (await client.get("/cameras/watch/about")).json()
        assert about["words"] and about["alerts"] and about["memories"] is False


@pytest.mark.anyio
async def test_the_page_plays_the_operators_video_and_no_other(model, video, tmp_path):
    other = tmp_path / "other.mp4"
    other.write_bytes(Path(video).read_bytes())
    async with served(model, video) as client:
        (name,) = client.sessions.own()
        played = await client.get(f"/v1/sessions/{name}/video")
        assert played.content == Path(video).read_bytes()
        assert played.headers["content-type"] == "video/mp4"
        for wrong in ("file:///etc/passwd", str(other), "concat:/etc/passwd"):
            refused = await client.post("/watch/open", json={"source": wrong})
            assert 400 <= refused.status_code < 500


@pytest.mark.anyio
async def test_a_video_that_was_opened_outlives_the_file_that_gradio_removes(
    model, video, tmp_path
):
    pytest.importorskip("gradio", reason="needs streammem[ui]")
    from streammem.ui.page import _Page

    path = tmp_path / "film.mp4"
    shutil.copyfile(video, path)
    async with served(model) as client:
        shown, failure = await _Page(client.sessions)._open_file(str(path), "")
        assert (shown[:10], failure) == ("#/session/", "")
        path.unlink()
        host = client.sessions.host(shown.rpartition("/")[2])
        await client.get(f"{host.path}/events")  # to its end
        assert host.title == "film.mp4"
        clip = await client.get(f"{host.path}/clip", params={"start": 1, "end": 3})
        assert clip.status_code == 200 and clip.content
        text = tmp_path / "text.mp4"
        text.write_text("no video")
        shown, failure = await _Page(client.sessions)._open_file(str(text), "")
        assert shown == "" and "not a video" in failure


@pytest.mark.anyio
async def test_with_a_token_the_page_opens_what_is_allowed_alone(model):
    token = "a token of the tests"
    async with served(model, token=token) as client:
        asked = {"source": "http://films.example.com/a.mp4"}
        assert (await client.post("/watch/open", json=asked)).status_code == 401
        client.headers["authorization"] = f"Bearer {token}"
        refused = await client.post("/watch/open", json=asked)
        assert refused.status_code >= 400 and "allow" in refused.text


@pytest.mark.anyio
async def test_the_page_gets_what_was_said_from_sessions_and_memories(model, tmp_path):
    timed = Note(1.0, 2.0, "A dog barks.", (1.0, 1.25, 1.5))
    plain = Note(4.0, 5.0, "Where is it?")
    folder = tmp_path / "memories"
    folder.mkdir()
    with Session(model, memory=folder / "talk", source="a.mp4") as session:
        session.speech = SpeechTrack("a.srt", (timed, plain))
        for frame in film(("red", 5), ("blue", 5)):
            session.push(frame)
        session.flush()
    async with served(model, memories=folder) as client:
        events = (await client.get("/v1/memories/talk/segments")).json()["events"]
        said = [event for event in events if event["type"] == "note"]
        assert said == [
            {"type": "note", "start": 1.0, "end": 2.0, "text": "A dog barks.",
             "word_starts": [1.0, 1.25, 1.5], "source": "a.mp4"},
            {"type": "note", "start": 4.0, "end": 5.0, "text": "Where is it?", "source": "a.mp4"},
        ]  # fmt: skip
        chapters = (await client.get("/v1/memories/talk/summary?chapters=1")).json()["chapters"]
        assert [quote["text"] for quote in chapters[0]["quotes"]] == [timed.text]


@pytest.mark.anyio
async def test_a_server_of_an_archive_says_so_to_the_page(model, memories):
    async with served(model, memories=memories, read_only=True) as client:
        assert (await client.get("/watch/about")).json()["archive"] is True
        assert (await client.get("/watch/archive.js")).status_code == 200
        assert "archive.js" in (await client.get("/watch/app.js")).text
    async with served(model, memories=memories) as client:
        assert (await client.get("/watch/about")).json()["archive"] is False


# -- in a browser --


@pytest.fixture
def browsing(model, memories, monkeypatch):
    """Serve the page and open it in a browser of a given width."""
    playwright = pytest.importorskip("playwright.async_api", reason="needs streammem[dev]")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; install it, or set CHROMIUM to its path")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")

    @asynccontextmanager
    async def browsing(
        width=1280, path="/watch/", wrap=add_watch, own=(), limits=None, model=model, **config
    ):
        from tests.serving import listening

        async with (
            listening(model, wrap=wrap, memories=memories, limits=limits, **config) as (
                url,
                sessions,
            ),
            playwright.async_playwright() as driver,
        ):
            await sessions.open_own(own)
            browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            context = await browser.new_context(viewport={"width": width, "height": 900})
            page = await context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.faults, page.outside = [], []
            page.on("pageerror", lambda error: page.faults.append(str(error)))
            page.on("request", lambda sent: page.outside.append(sent.url))
            page.url_of, page.sessions = url, sessions
            path = path.replace("OWN", sessions.own()[0]) if own else path
            await page.goto(url + path)
            yield page
            assert page.faults == []
            elsewhere = [u for u in page.outside if not u.startswith((url, "data:", "blob:"))]
            assert elsewhere == [], elsewhere
            await browser.close()

    return browsing


async def until(page, expression):
    """Wait until an expression holds. (``wait_for_function`` evaluates text, which the page's
    policy forbids.)"""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.05)


async def reach(page, selector):
    """Press Tab until the focus is on what is wanted; return how often."""
    for pressed in range(1, 80):
        await page.keyboard.press("Tab")
        if await page.evaluate("s => document.activeElement.matches(s)", selector):
            return pressed
    pytest.fail(f"Tab does not reach {selector}")


async def fits(page, width):
    assert await page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_memory_has_an_address_that_a_reload_comes_back_to(browsing):
    async with browsing() as page:
        await page.get_by_role("link", name="trips").click()
        await until(page, f"{LINES} === 5")
        assert page.url.endswith("/watch/#/memory/trips")
        await page.reload()
        await until(page, f"{LINES} === 5")
        await page.locator("#transcript .line").nth(2).click()
        await until(page, "document.querySelector('#picture').naturalWidth > 0")
        second = await page.context.new_page()
        await second.goto(page.url)
        await until(second, f"{LINES} === 5")


@pytest.mark.heavy
@pytest.mark.anyio
@pytest.mark.parametrize("width", [1280, 390])
async def test_a_visitor_reads_searches_asks_jumps_and_downloads(browsing, video, width):
    async with browsing(width, "/watch/#/session/OWN", own=[video]) as page:
        await until(page, f"{LINES} === 3")
        await fits(page, width)
        # The transcript moves the video, which marks its line.
        await page.locator("#transcript .line").nth(1).click()
        await until(page, f"{NOW} >= 3")
        await until(page, "document.querySelector('#transcript .current')?.dataset.start === '3'")
        # The timeline does, too, and can be zoomed.
        await page.evaluate("document.querySelector('#player').pause()")
        box = await page.locator("#timeline").bounding_box()
        await page.locator("#timeline").click(position={"x": box["width"] * 0.85, "y": 20})
        await until(page, f"{NOW} >= 8")
        await page.click("#zoom-in")
        await until(
            page,
            "(([a, b]) => b - a < 6)(document.querySelector('#timeline').dataset.range.split(' '))",
        )
        await page.click("#zoom-all")
        # An answer stays over a reload, with evidence that plays.
        assert await page.locator("#words").text_content()
        await page.locator("#examples button").first.click()
        await page.wait_for_selector(".evidence .clip")
        await page.reload()
        await page.wait_for_selector(".evidence .clip")
        await page.locator(".evidence .clip").first.click()
        await until(page, "document.querySelector('.evidence video')?.readyState > 1")
        start = float(await page.locator(".evidence .place").nth(1).get_attribute("data-start"))
        await page.locator(".evidence .place").nth(1).click()
        await until(page, f"{NOW} >= {start} && {NOW} < {start} + 4")
        await fits(page, width)
        await page.fill("#question", "blue")
        await page.click("#find")
        await until(page, "document.querySelectorAll('.turn').length === 2")
        # Words are found in the transcript.
        words = await page.locator("#transcript .words").first.text_content()
        await page.fill("#search", words)
        await until(page, "document.querySelector('#count').textContent.includes('of 3')")
        async with page.expect_download() as waiting:
            await page.get_by_role("link", name="SRT", exact=True).click()
        download = await waiting.value
        assert download.suggested_filename == "three scenes.srt"
        text = (await download.path()).read_text()
        assert text.startswith("1\n00:00:00,000 --> 00:00:03,000\n")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_by_keyboard_alone_on_a_phone(browsing, video):
    async with browsing(390, "/watch/#/session/OWN", own=[video]) as page:
        await until(page, f"{LINES} === 3")
        assert await reach(page, "#skip") == 1
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "question"
        await page.keyboard.type("What is red?")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".evidence .place")
        await reach(page, "#transcript")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        await until(page, f"{NOW} >= 3")
        await page.evaluate("document.activeElement.blur()")
        await reach(page, "#timeline")
        await page.keyboard.press("End")
        await until(page, f"{NOW} >= 7")
        await page.keyboard.press("ArrowLeft")
        await until(page, f"{NOW} < 7")
        assert "3" in await page.get_attribute("#timeline", "aria-valuenow")
        await fits(page, 390)


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_session_is_renamed_and_closed_and_the_list_has_its_picture(browsing, video):
    async with browsing(390, own=[video]) as page:
        await until(page, "document.querySelector('#sessions img')?.naturalWidth > 1")
        answers = iter(["The door", None])
        page.on("dialog", lambda d: asyncio.ensure_future(d.accept(next(answers) or "")))
        await page.locator("#sessions").get_by_role("button", name="Rename").click()
        await page.get_by_role("link", name="The door").wait_for()
        await fits(page, 390)
        other = await page.context.new_page()
        await other.goto(f"{page.url_of}/watch/#/session/{page.sessions.own()[0]}")
        await until(other, f"{LINES} === 3")
        await page.locator("#sessions").get_by_role("button", name="Close").click()
        await page.get_by_text("Nothing is watched.").wait_for()
        await other.wait_for_selector("#gone")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_the_last_place_taken_is_no_dead_end(browsing, video):
    from streammem.server.limits import Limits

    async with browsing(limits=Limits(sessions=1), own=[video]) as page:
        await page.set_input_files("#file", video)
        await until(page, "document.querySelector('#banner').textContent.includes('close one')")
        page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.locator("#sessions").get_by_role("button", name="Close").click()
        await page.get_by_text("Nothing is watched.").wait_for()
        await page.set_input_files("#file", [])
        await page.set_input_files("#file", video)
        await until(page, f"{LINES} === 3")
        assert await page.text_content("#title") == "three scenes.mp4"


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_webcam_is_watched_with_alerts_set_meanwhile_and_stopped(browsing):
    async with browsing(390) as page:
        await page.context.grant_permissions(["camera", "notifications"], origin=page.url_of)
        await page.click("#webcam")
        await until(page, "document.querySelector('#picture')?.naturalWidth > 1")
        (name,) = page.sessions.hosts()
        await page.click("#alert-box summary")
        await page.fill("#alert", "a dog")
        await page.click("#add-alert")
        await until(page, "document.querySelectorAll('#alerts-wanted li').length === 1")
        assert page.sessions.host(name).alerts == ("a dog",)
        await fits(page, 390)
        await page.click("#stop-webcam")
        await until(page, "document.querySelector('#state').textContent.includes('over')")
        await until(page, f"{LINES} >= 1")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_camera_is_shown_live_its_past_on_demand_and_alerts_are_listed(browsing):
    from benchmarks.rtsp_server import RtspCamera, encode
    from streammem.types import Alert
    from tests.tiny import moving_square

    pictures = [moving_square("red" if k < 50 else "blue", k, 96, 64) for k in range(100)]
    with RtspCamera(encode(pictures), speed=1.0, loop=True) as camera:
        async with browsing(390, "/watch/#/session/OWN", own=[camera.url]) as page:
            await until(page, "document.querySelector('#picture')?.naturalWidth > 1")
            await until(page, "document.querySelector('.now').textContent === 'live'")
            first = await page.get_attribute("#picture", "src")
            await until(page, f"document.querySelector('#picture').src !== {first!r}")
            await until(page, f"{LINES} >= 1")
            await page.locator("#transcript .line").first.click()
            await page.wait_for_selector("#live")
            assert "keyframes" in await page.get_attribute("#picture", "src")
            await page.click("#live")
            await until(page, "document.querySelector('.now').textContent === 'live'")
            (host,) = page.sessions.hosts().values()
            host._publish(Alert("a dog", 1.0, 0.8, 0), {"wall_start": "2026-05-03T16:40:00+02:00"})
            await until(page, "document.querySelectorAll('#alerts li').length === 1")
            assert "2026-05-03 16:40:00 a dog" in await page.text_content("#alerts")
            await until(page, "document.querySelectorAll('#transcript .alert').length === 1")
            await fits(page, 390)


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_plan_is_shown_with_its_progress_and_a_day_with_its_activities(
    browsing, model, memories, monkeypatch
):
    def scored(rows, query):  # red and blue rooms are told apart by their words
        score = 0.9 if {0: "red", 1: "blu"}.get(rows[0].segment, "-") in str(query.words) else 0.01
        return [SimpleNamespace(score=score)]

    monkeypatch.setattr("streammem.qa.plan.rate", scored)
    with Session(model, memory=memories / "day", source="a.mp4", wall_zero=WALL) as session:
        told(session, film(("red", 8), ("blue", 8), ("green", 8)))
        (wall_date,) = session.days()
    async with browsing(390, "/watch/#/memory/day") as page:
        await until(page, f"{LINES} === 3")
        await page.click("#plan-box summary")
        await page.click("#plan-send")
        await until(page, "document.querySelector('#plan-error').textContent.includes('goal')")
        await page.fill("#plan-goal", EVIL)
        await page.fill("#plan-steps", "a red room\n\na blue room\na black room\n")
        await page.click("#plan-send")
        await until(page, "document.querySelectorAll('#plan .step').length === 3")
        assert await page.text_content("#plan strong") == EVIL and await page.title() != "hit"
        states = "[...document.querySelectorAll('#plan .step')].map((s) => s.dataset.state)"
        assert await page.evaluate(states) == ["done", "doing", "open"]
        value = await page.evaluate("document.querySelector('#plan-progress').value")
        assert value == pytest.approx(2 / 3)
        assert "2 of 3" in await page.text_content("#plan")
        assert "Next: a black room 100 %" in await page.text_content("#plan-next")
        await page.locator("#plan .place").nth(1).click()
        await until(page, "document.querySelector('#transcript .current')?.dataset.start === '4'")
        await page.fill("#plan-steps", "")
        await page.click("#plan-send")
        await until(page, "document.querySelector('#plan').textContent.includes('no steps given')")
        assert await page.locator("#plan-progress").count() == 0
        # The day that was seen last is offered; its activities are found by the wall clock.
        await page.click("#day-box summary")
        await until(page, "document.querySelectorAll('#day-list li').length > 0")
        assert await page.input_value("#day") == str(wall_date)
        blocks = await page.locator("#day-line .activity").count()
        assert blocks == await page.locator("#day-list li").count()
        await page.locator("#day-line .activity").last.press("Enter")
        await page.fill("#day", "2020-01-01")
        await until(page, "document.querySelector('#day-error').textContent.includes('Nothing')")
        assert await page.locator("#day-line .activity").count() == 0
        await fits(page, 390)


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_plan_is_followed_while_a_camera_is_watched_until_it_is_stopped(browsing):
    from benchmarks.rtsp_server import RtspCamera, encode
    from streammem.types import Plan, PlanStep
    from tests.tiny import moving_square

    pictures = [moving_square("red" if k < 50 else "blue", k, 96, 64) for k in range(100)]
    with RtspCamera(encode(pictures), speed=1.0, loop=True) as camera:
        async with browsing(390, "/watch/#/session/OWN", own=[camera.url]) as page:
            (host,) = page.sessions.hosts().values()
            await page.click("#plan-box summary")
            await page.fill("#plan-goal", "paint")
            await page.fill("#plan-steps", "a\nb")
            await page.click("#plan-send")
            await until(page, "document.querySelectorAll('#plan .step').length === 2")
            assert host.goal == "paint"
            steps = tuple(PlanStep(name, "done", ((0.0, 1.0),), (0,)) for name in "ab")
            host._publish(Plan("paint", 9.0, 1.0, steps, alerts=("left out: c",)))
            await until(page, "document.querySelector('#plan-progress').value === 1")
            assert "! left out: c" in await page.text_content("#plan")
            await page.reload()
            await until(page, "document.querySelectorAll('#plan .step').length === 2")
            await page.click("#plan-end")
            await until(page, "document.querySelector('#plan-end').classList.contains('hidden')")
            assert host.goal is None


NOTIFICATION = """
window.made = [];
window.Notification = class {
  static permission = "default";
  static async requestPermission() { return (this.permission = "granted"); }
  constructor(title, options) { window.made.push([title, options.body, options.tag]); }
};
"""


@pytest.mark.heavy
@pytest.mark.anyio
async def test_the_browser_is_notified_of_new_alerts_once_it_may_be(browsing):
    from benchmarks.rtsp_server import RtspCamera, encode
    from streammem.types import Alert, Segment, wall_clock
    from tests.tiny import moving_square

    pictures = [moving_square("red" if k < 50 else "blue", k, 96, 64) for k in range(100)]
    with RtspCamera(encode(pictures), speed=1.0, loop=True) as camera:
        async with browsing(own=[camera.url]) as page:
            ((name, host),) = page.sessions.hosts().items()
            told = "document.querySelectorAll('#alerts li').length"

            def publish(query, ago_s, **more):
                at = {"wall_start": wall_clock(WALL - ago_s)}
                host._publish(Alert(query, 1.0, 0.8, 0, **more), at)

            await page.evaluate(f"{NOTIFICATION} Date.now = () => {1000 * WALL}; 0")
            await page.evaluate("name => { location.hash = `#/session/${name}` }", name)
            await until(page, f"{LINES} >= 1")
            publish("a cat", 0)
            await until(page, f"{told} === 1")
            assert await page.evaluate("made") == []  # it was not allowed
            await page.click("#notify")
            await until(page, "Notification.permission === 'granted'")
            assert not await page.is_visible("#notify")
            publish("a bird", 60)  # as of a page that is opened again
            publish("a dog", 0)
            await until(page, f"{told} === 3")
            title = await page.text_content("#title")
            ((query, body, tag),) = await page.evaluate("made")
            assert query == "a dog" and tag.endswith(f"{name} a dog")
            assert re.fullmatch(re.escape(title) + r", \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", body)
            # A caption's comes late, after the end of its scene.
            segments = [event for event in host.events.kept() if isinstance(event, Segment)]
            length_s = segments[0].end - segments[0].start
            publish("a horse", 29 + length_s, matched="caption")
            publish("a cow", 31 + length_s, matched="caption")
            await until(page, f"{told} === 5")
            assert [made[0] for made in await page.evaluate("made")] == ["a dog", "a horse"]
            assert "a horse (by its caption)" in await page.text_content("#alerts")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_what_comes_from_outside_is_never_markup(browsing, model, memories):
    options = SessionConfig(answer=SHORT, caption=SHORT)
    with Session(model, options, memories / "evil", source=EVIL, wall_zero=WALL) as session:
        told(session, film(("red", 9), ("blue", 7)))
        session.memory.set_caption(0, EVIL, None)
    async with browsing() as page:
        await page.get_by_role("link", name="evil").wait_for()
        await page.goto(f"{page.url_of}/watch/#/memory/evil")
        await page.get_by_text("onerror").first.wait_for()
        await page.fill("#question", EVIL)
        await page.click("#ask")
        await page.wait_for_selector(".evidence .place")
        assert "hit" not in await page.title()
        assert "2026-" in await page.text_content("#state")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_server_that_was_started_anew_is_come_back_to(model, video, memories):
    playwright = pytest.importorskip("playwright.async_api", reason="needs streammem[dev]")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; install it, or set CHROMIUM to its path")
    import socket

    import uvicorn

    from streammem.server.app import make_app
    from streammem.server.limits import ServerConfig
    from streammem.server.sessions import Sessions

    @asynccontextmanager
    async def running(port):
        options = SessionConfig(answer=SHORT, caption=SHORT)
        sessions = Sessions(model, options, ServerConfig(memories=memories))
        app = add_watch(make_app(sessions, [video]), sessions)
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", port))
            options = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
            server = uvicorn.Server(options)
            serving = asyncio.ensure_future(server.serve(sockets=[listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            yield listening.getsockname()[1], sessions
            server.should_exit = True
            await serving

    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        async with running(0) as (port, sessions):
            await page.goto(f"http://127.0.0.1:{port}/watch/#/session/{sessions.own()[0]}")
            await until(page, f"{LINES} === 3")
        await until(page, "document.querySelector('#banner').textContent !== ''")
        async with running(port):
            await until(page, "document.querySelector('#banner').textContent === ''")
            await until(page, f"{LINES} === 3")
        await browser.close()


@pytest.fixture(scope="module")
def days(model, tmp_path_factory):
    """A memory of 10,000 scenes of a camera, 10 s each."""
    path = tmp_path_factory.mktemp("memories") / "days"
    options, rng = SessionConfig(max_segments=10_001), np.random.default_rng(0)
    with Session(model, options, path, source="rtsp://camera/1") as session:
        session.memory._store.database.query("PRAGMA synchronous=OFF")
        key_dim, shape = session.memory.config.key_dim, session.memory.config.token_shape
        for number in range(10_000):
            keys = unit_rows(rng.standard_normal((1, key_dim)).astype("float32"))
            session.memory.append(
                Entry(
                    segment=number,
                    start=10.0 * number,
                    end=10.0 * number + 10,
                    frames=20,
                    visual_keys=keys,
                    caption_keys=keys[:0],
                    note_keys=keys[:0],
                    tokens=np.zeros(shape, "float16"),
                    caption=f"A person walks past door {number}.",
                    source="rtsp://camera/1",
                    wall_start=WALL + 10 * number,
                ),
                session.recurrent,
            )
    return path


@pytest.mark.heavy
@pytest.mark.anyio
@pytest.mark.parametrize("width", [1280, 390])
async def test_forty_cameras_are_a_grid_with_one_timeline_and_one_question(
    browsing, model, memories, width
):
    options = SessionConfig(answer=SHORT, caption=SHORT)

    def see(name, wall_zero, *scenes):
        path = memories / name
        with Session(model, options, path, source=name, wall_zero=wall_zero) as session:
            told(session, film(*scenes))

    see("door", WALL, ("red", 9), ("blue", 7))
    for number in range(1, 40):
        shutil.copytree(memories / "door", memories / f"door{number:02}")
    see("hall", WALL + 4, ("green", 12), ("white", 6))
    see("evil", None, ("blue", 5))
    with Session(model, options, memories / "evil", source=EVIL) as session:
        session.memory.set_caption(0, EVIL, None)
    states = {"door": ("down", f"no route {EVIL}"), "porch": ("opening", "")}
    (memories / "cameras.json").write_text(status_text(states))
    card = "document.querySelector('[data-memory={}]')"
    async with browsing(width, read_only=True) as page:
        # It begins with all of them: 40 doors, hall, evil, trips, and a porch without a memory.
        await until(page, "document.querySelectorAll('#cameras .card').length === 44")
        await fits(page, width)
        pictures = "[...document.querySelectorAll('#cameras img')].filter(i => i.naturalWidth > 1)"
        await until(page, f"{pictures}.length === 43")
        assert "44 memories, 1 not well" in await page.text_content("#counted")
        shown = await page.evaluate(f"{card.format('door')}.textContent")
        assert "down: no route" in shown and "2026-05-0" in shown
        assert "opening" in await page.evaluate(f"{card.format('porch')}.textContent")
        # Rows begin where their cameras' clocks say; those without a clock come last.
        rows = json.loads(await page.get_attribute("#common", "data-rows"))
        places = {name: (left, right) for name, left, right in rows}
        assert [name for name, *_ in rows][-2:] == ["evil", "trips"]
        assert places["door"][0] == places["door07"][0] < places["hall"][0]
        assert places["door"][1] < places["hall"][1]
        # A click on the timeline shows all cameras at that time.
        begin, end = map(float, (await page.get_attribute("#common", "data-range")).split())
        at = (places["hall"][0] + places["door"][0]) / 2
        await page.locator("#common").click(position={"x": at, "y": 8})
        gone = "nothing at that time"
        await until(page, f"{card.format('hall')}.textContent.includes('{gone}')")
        assert gone not in await page.evaluate(f"{card.format('door')}.textContent")
        assert begin < float(await page.get_attribute("#common", "aria-valuenow")) < end
        await page.keyboard.press("End")
        await until(page, f"!{card.format('hall')}.textContent.includes('{gone}')")
        await page.click("#newest")
        await page.click("#zoom-in")
        range_now = "document.querySelector('#common').dataset.range"
        await until(page, f"(([a, b]) => b - a < {0.6 * (end - begin)})({range_now}.split(' '))")
        # What is written meanwhile is seen, and what cannot be read is named.
        see("later", WALL + 60, ("white", 6))
        (memories / "door01" / "memory.sqlite").write_bytes(b"damaged" * 1000)
        await until(page, f"!!{card.format('later')}?.querySelector('img').naturalWidth")
        await until(page, f"{card.format('door01')}.textContent.includes('unreadable')")
        # One question to all; evidence names its memory and leads to the scene there.
        await page.fill("#question", "blue")
        await page.click("#find")
        await page.wait_for_selector(".evidence .place")
        await page.fill("#question", "When is blue shown?")
        await page.click("#ask")
        await page.get_by_text("memories were asked; not opened: door01").first.wait_for()
        await fits(page, width)
        await page.locator(".evidence .place").last.click()
        await until(page, "/#[/]memory[/]\\w+[/]\\d+$/.test(location.href)")
        await until(page, "document.querySelector('#picture')?.naturalWidth > 0")
        assert await page.text_content("#back") == "← All cameras"
        await page.click("#back")
        await until(page, "document.querySelectorAll('#cameras .card').length === 45")
        await page.goto(f"{page.url_of}/watch/#/")
        await page.locator("#memories .card").first.wait_for()
        assert await page.locator("#memories").get_by_role("button", name="Delete").count() == 0
        assert "hit" not in await page.title()


@pytest.mark.heavy
@pytest.mark.anyio
@pytest.mark.parametrize("width", [1280, 390])
async def test_ten_thousand_scenes_are_listed_scrolled_searched_and_on_the_timeline(
    browsing, days, memories, width, record_testsuite_property
):
    shutil.copytree(days, memories / "days")
    async with browsing(width) as page:
        page.sessions._session = SessionConfig(max_segments=10_001, answer=SHORT, caption=SHORT)
        await page.get_by_role("link", name="days").wait_for()
        began = time.monotonic()
        await page.goto(f"{page.url_of}/watch/#/memory/days")
        await until(page, f"{LINES} > 3")
        first_s = time.monotonic() - began
        await until(page, "document.querySelector('#count').textContent === '10000 lines'")
        all_s = time.monotonic() - began
        # It begins with the newest, and keeps its place while older ones come.
        assert await page.locator("#transcript .line").get_by_text("door 9999.").count() == 1
        # However many there are, only what is visible exists.
        assert await page.evaluate(LINES) < 40
        assert await page.get_attribute("#timeline", "data-mode") == "density"
        frames = await page.evaluate(
            """async () => {
              const box = document.querySelector("#transcript"), times = [];
              let last = performance.now();
              for (let i = 0; i < 60; i += 1) {
                box.scrollTop = box.scrollHeight * i / 60;
                await new Promise(requestAnimationFrame);
                times.push(performance.now() - last);
                last = performance.now();
              }
              return times.sort((a, b) => a - b);
            }"""
        )
        record_testsuite_property("first_and_all_s", [round(first_s, 2), round(all_s, 2)])
        record_testsuite_property("scroll_ms", [round(frames[30]), round(frames[57])])
        assert frames[30] < 200
        await page.fill("#search", "door 9876.")
        await until(page, f"{LINES} === 1")
        await page.locator("#transcript .line").click()
        for _ in range(9):
            await page.click("#zoom-in")
        await page.wait_for_selector("#timeline[data-mode=scenes]")
        a, b = map(float, (await page.get_attribute("#timeline", "data-range")).split())
        assert a <= 98760 <= b and b - a < 400
        assert "2026-05-0" in await page.text_content("#range")  # the wall clock


@pytest.mark.heavy
@pytest.mark.anyio
@pytest.mark.parametrize("width", [1280, 390])
async def test_the_door_opens_a_file_and_shows_it_below(browsing, video, width):
    pytest.importorskip("gradio", reason="needs streammem[ui]")
    from streammem.ui.page import add_page

    async with browsing(width, "/", add_page) as page:
        frame = page.frame_locator("#watch")
        await frame.get_by_text("Nothing is watched.").wait_for()
        await page.set_input_files("#file input[type=file]", video)
        await frame.locator("#transcript .line").nth(2).wait_for()
        assert await frame.locator("#title").text_content() == "three scenes.mp4"
        await until(page, "location.hash.startsWith('#/session/')")
        await fits(page, width)
        await page.reload()
        await frame.locator("#transcript .line").nth(2).wait_for()
        await page.get_by_role("tab", name="URL").click()
        await page.fill("#url textarea", "file:///etc/passwd")
        await page.click("#watch-url")
        await until(page, "document.querySelector('#failure').textContent.includes('⚠')")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_the_door_begins_with_the_operators_source(browsing, video):
    pytest.importorskip("gradio", reason="needs streammem[ui]")
    from streammem.ui.page import add_page

    async with browsing(path="/", wrap=add_page, own=[video]) as page:
        await page.frame_locator("#watch").locator("#transcript .line").nth(2).wait_for()


@pytest.mark.heavy
@pytest.mark.anyio
async def test_the_description_of_the_server_works_without_a_network(browsing):
    async with browsing(path="/docs") as page:
        await page.wait_for_selector(".opblock")
        assert await page.locator(".opblock").count() > 20


@pytest.mark.heavy
@pytest.mark.anyio
async def test_what_is_said_stands_beside_captions_in_another_colour_and_is_searched(
    browsing, video, tmp_path
):
    spoken = tmp_path / "spoken.mp4"
    spoken.write_bytes(Path(video).read_bytes())
    spoken.with_suffix(".srt").write_text(
        srt([(0.5, 2.0, "We sail at dawn."), (4.0, 5.0, EVIL.replace("\n", " "))])
    )
    async with browsing(1280, "/watch/#/session/OWN", own=[str(spoken)]) as page:
        await until(page, f"{LINES} === 5")
        colour = "getComputedStyle(document.querySelector('#transcript .line.{} .words')).color"
        assert await page.evaluate(f"{colour.format('note')} !== {colour.format('scene')}")
        # Not by the colour alone.
        note = page.locator("#transcript .line.note").first
        assert await note.locator(".sure").text_content() == "said"
        assert await page.evaluate("document.querySelector('#timeline').dataset.said") == "2"
        await page.select_option("#show", "note")
        await until(page, f"{LINES} === 2")
        assert (await page.locator("#count").text_content()).startswith("2 of 5")
        await page.fill("#search", "dawn")
        await until(page, f"{LINES} === 1")
        await page.select_option("#show", "scene")
        await until(page, f"{LINES} === 0")
        await page.select_option("#show", "")
        await note.click()
        await until(page, f"{NOW} >= 0.5")
        await page.evaluate("document.querySelector('#player').pause()")
        await page.evaluate("document.querySelector('#player').currentTime = 1")
        await until(page, "document.querySelector('#heard').textContent === '“We sail at dawn.”'")
        assert "hit" not in await page.title()
