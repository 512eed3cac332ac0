"""The page, driven in a headless browser: what a visitor does, and what they see."""

import asyncio
import os
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs streammem[ui]")

from streammem.server.session_host import Depth
from streammem.types import Alert, Answer, Caption, Evidence, Notice, Segment
from streammem.ui import markup

EVIL = "<script>alert(1)</script>\"'&"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
PATIENCE_MS = 240_000  # a browser beside other work on one core takes minutes
NOW = "document.querySelector('#player video').currentTime"
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream"]
FLAGS += ["--use-fake-device-for-media-stream"]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize(
    "shown",
    [
        markup.captions([Caption(0, 0.0, 1.0, EVIL), Notice(EVIL), Alert(EVIL, 1.0, 1.0, 0)]),
        markup.evidence(
            Answer("?", "a", True, "model", (Evidence("a", 0, 0, 1, 0.5, None, EVIL),)), "/v1/x"
        ),
        markup.failure(EVIL),
        markup.player(f"https://a/{EVIL}"),
    ],
)
def test_what_comes_from_outside_is_never_markup(shown):
    assert "<script" not in shown and "alert(1)" in shown


def test_whatever_has_a_time_is_a_button_that_leads_there():
    events = [Segment(3, 2.5, 4.0, 1.0, "cut"), Caption(3, 2.5, 4.0, "a dog")]
    curve = [Depth(2.5, 0.1), Depth(3.5, 0.9)]
    for shown in (markup.captions(events), markup.timeline(events, curve, "/v1/x")):
        assert re.findall(r'<button type="button" data-time="([\d.]+)">', shown) == ["2.500"]
    assert "/v1/x/keyframes/3" in shown and "<polyline" in shown


def test_the_page_holds_no_more_than_it_shows():
    events = [Caption(i, float(i), i + 1.0, f"scene {i}") for i in range(1000)]
    assert markup.captions(events).count("<button") == markup.MAX_LINES
    events = [Segment(i, float(i), i + 1.0, None, "cut") for i in range(1000)]
    assert markup.timeline(events, (), "/v1/x").count("<button") == markup.MAX_KEYFRAMES


@pytest.mark.anyio
async def test_the_page_begins_with_the_operators_video_and_plays_no_other(model, video, tmp_path):
    from streammem.engine.session_config import SessionConfig
    from streammem.server.app import make_app
    from streammem.server.limits import ServerConfig
    from streammem.server.sessions import Sessions
    from streammem.ui import add_page
    from streammem.ui.page import _Page

    httpx = pytest.importorskip("httpx2", reason="needs streammem[dev]")
    from tests.sessions import SHORT

    other = tmp_path / "other.mp4"
    other.write_bytes(Path(video).read_bytes())
    options = SessionConfig(answer=SHORT, caption=SHORT)
    sessions = Sessions(model, options, ServerConfig())
    app = add_page(make_app(sessions, [video]), sessions, [Path(video)])
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        _, chosen, played = _Page(sessions)._begin()
        assert chosen == f"session:{sessions.own()[0]}" and played == str(Path(video).resolve())
        assert (await client.get(f"/gradio_api/file={played}")).is_success
        assert (await client.get(f"/gradio_api/file={other}")).status_code == 403


@pytest.fixture
def browsing(model, memories, monkeypatch):
    """Serve the page and open it in a browser of a given width."""
    playwright = pytest.importorskip("playwright.async_api", reason="needs streammem[dev]")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; install it, or set CHROMIUM to its path")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")

    @asynccontextmanager
    async def browsing(width=1280):
        from streammem.ui import add_page
        from tests.serving import listening

        async with (
            listening(model, wrap=add_page, memories=memories) as (url, _),
            playwright.async_playwright() as driver,
        ):
            browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = await browser.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(PATIENCE_MS)
            await page.goto(url)
            await page.wait_for_selector("#captions")
            yield page
            await browser.close()

    return browsing


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_visitor_uploads_reads_asks_finds_jumps_and_downloads(browsing, video):
    async with browsing() as page:
        await page.set_input_files("#player input[type=file]", video)
        await page.wait_for_function("document.querySelectorAll('#captions button').length === 3")
        assert await page.locator("#timeline img").count() == 3
        now = "document.querySelector('#player video').currentTime"
        await page.locator("#captions button").nth(1).click()
        await page.wait_for_function(f"{now} >= 3")
        await page.fill("#question textarea", "What is red?")
        await page.click("#ask")
        await page.wait_for_selector("#evidence button")
        assert await page.input_value("#answer textarea")
        shown = page.locator("#evidence button").first
        at = float(await shown.get_attribute("data-time"))
        await page.evaluate("document.querySelector('#player video').pause()")
        await shown.focus()
        await page.keyboard.press("Enter")
        await page.wait_for_function(f"Math.abs({now} - {at}) < 0.5")
        await page.get_by_role("tab", name="Find").click()
        await page.fill("#query textarea", "blue")
        await page.click("#find")
        await page.wait_for_selector("#found button")
        await page.get_by_role("tab", name="Download").click()
        await page.click("#prepare")
        async with page.expect_download() as waiting:
            await page.get_by_role("link", name="SRT").click()
        text = (await (await waiting.value).path()).read_text()
        assert text.startswith("1\n00:00:00,000 --> 00:00:03,000\n")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_errors_are_shown_in_the_page_and_it_fits_a_phone(browsing):
    async with browsing(width=380) as page:
        await page.click("#ask")
        await page.wait_for_selector("#evidence [role=alert]")
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 380
        await page.get_by_role("tab", name="URL").click()
        await page.fill("#url textarea", "file:///etc/passwd")
        await page.click("#watch")
        await page.wait_for_selector("#failure [role=alert]")


@pytest.mark.heavy
@pytest.mark.anyio
async def test_a_memory_is_opened_and_a_webcam_is_watched(browsing):
    async with browsing() as page:
        await page.get_by_role("tab", name="Memory").click()
        await page.locator("#memory input").click()
        await page.get_by_role("option", name="trips").click()
        await page.wait_for_function("document.querySelectorAll('#captions button').length === 5")
        await page.get_by_role("tab", name="Webcam").click()
        await page.get_by_role("button", name="Start anew").click()
        await page.get_by_text("Click to Access Webcam").click()
        await page.locator("#webcam .capture-button").click()
        await page.wait_for_function(
            "document.querySelector('#state').textContent.includes('watching')"
        )


async def reach(page, selector):
    """Press Tab until the focus is on what is wanted."""
    for _ in range(80):
        await page.keyboard.press("Tab")
        if await page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    pytest.fail(f"Tab does not reach {selector}")


async def choose(page, name):
    """Go to a tab of the page by keyboard."""
    for _ in range(80):
        await page.keyboard.press("Tab")
        role, text = await page.evaluate(
            "[document.activeElement.role, document.activeElement.textContent.trim()]"
        )
        if (role, text) == ("tab", name):
            await page.keyboard.press("Enter")
            return
    pytest.fail(f"Tab does not reach the tab {name}")


async def fits(page, width):
    places = "#captions, #timeline, #evidence, #found, #chapters, #links"
    rights = "[...document.querySelectorAll(s)].map(e => e.getBoundingClientRect().right)"
    wide = await page.evaluate("document.documentElement.scrollWidth")
    assert max([wide, *await page.evaluate(f"s => {rights}", places)]) <= width


async def jump(page, selector, arrived):
    """Take the video to the time of a button."""
    await reach(page, selector)
    await page.evaluate("document.querySelector('#player video').pause()")
    await page.keyboard.press("Enter")
    await page.wait_for_function(f"(now => {arrived})({NOW})")


async def say(page, selector, text):
    """Type into a field and press Enter."""
    await reach(page, f"{selector} textarea")
    await page.keyboard.type(text)
    await page.keyboard.press("Enter")


async def press(page, selector, shown):
    """Press a button and wait for what it shows."""
    await reach(page, selector)
    await page.keyboard.press("Enter")
    await page.wait_for_selector(shown)


@pytest.mark.heavy
@pytest.mark.anyio
async def test_on_a_phone_and_by_keyboard_alone_a_visitor_does_all_of_it(browsing, video):
    async with browsing(width=380) as page:
        # Listened for from the start: the first dialog after that is not noticed yet.
        page.on("filechooser", lambda dialog: asyncio.ensure_future(dialog.set_files(video)))
        await reach(page, "#player button[aria-dropeffect]")
        await page.keyboard.press("Enter")
        await page.wait_for_function("document.querySelectorAll('#captions button').length === 3")
        await fits(page, 380)
        await jump(page, "#captions button:nth-of-type(2)", "now >= 3")
        await jump(page, "#timeline button", "now < 3")
        await say(page, "#question", "What is red?")
        await page.wait_for_selector("#evidence button")
        await fits(page, 380)
        at = await page.locator("#evidence button").first.get_attribute("data-time")
        await jump(page, "#evidence button", f"Math.abs(now - {at}) < 0.5")
        await choose(page, "Find")
        await say(page, "#query", "blue")
        await page.wait_for_selector("#found button")
        await fits(page, 380)
        await choose(page, "Summary")
        await press(page, "#summarize", "#chapters button")
        await choose(page, "Download")
        await press(page, "#prepare", "#links a")
        await fits(page, 380)
        await reach(page, "#links a")
        async with page.expect_download() as waiting:
            await page.keyboard.press("Enter")
        text = (await (await waiting.value).path()).read_text()
        assert text.startswith("1\n00:00:00,000 --> 00:00:03,000\n")
