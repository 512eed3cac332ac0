"""The page as it is reached: opened by `streammem ui`, and behind a proxy under a prefix."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import asynccontextmanager, suppress

import pytest

pytest.importorskip("gradio", reason="needs streammem[ui]")

from streammem.models.backbones.weights import is_pulled
from streammem.models.checkpoint import DEFAULT, PRESETS, backbones_of
from tests.command_line import record
from tests.ui.test_page import CHROMIUM, FLAGS, PATIENCE_MS

PREFIX = "/cameras"
MISSING = [name for name in backbones_of(PRESETS[DEFAULT]) if not is_pulled(name)]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@asynccontextmanager
async def proxy(target, *, removes):
    """Forward what is under the prefix, as nginx does; give the URL, and the paths that are not.

    ``removes`` is whether the prefix is removed from what is forwarded.
    """
    host, port = re.fullmatch(r"http://(.+):(\d+)", target).groups()
    astray, tasks = [], set()

    async def pipe(reader, writer):
        with suppress(ConnectionError):
            while block := await reader.read(1 << 16):
                writer.write(block)
                await writer.drain()
        writer.close()

    async def forward(reader, writer):
        tasks.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, rest = head.split(b" ", 2)
            if not path.startswith(f"{PREFIX}/".encode()):
                astray.append(path.decode())
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                writer.close()
                return
            path = path[len(PREFIX) :] if removes else path
            rest = re.sub(rb"(?i)\r\nconnection: (?!upgrade)[^\r]*", b"\r\nConnection: close", rest)
            there, back = await asyncio.open_connection(host, int(port))
            back.write(b" ".join((method, path, rest)))
            await asyncio.gather(pipe(reader, back), pipe(there, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PREFIX}/", astray
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.heavy
@pytest.mark.anyio
@pytest.mark.parametrize("removes", [False, True])
async def test_behind_a_proxy_under_a_prefix_a_visitor_does_the_same(
    model, video, memories, monkeypatch, removes
):
    driving = pytest.importorskip("playwright.async_api", reason="needs streammem[dev]")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; install it, or set CHROMIUM to its path")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    from streammem.ui.page import add_page
    from tests.serving import listening

    async with (
        listening(model, wrap=add_page, memories=memories, prefix=PREFIX) as (url, _),
        proxy(url, removes=removes) as (shown, astray),
        driving.async_playwright() as driver,
    ):
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        await page.goto(shown)
        frame = page.frame_locator("#watch")
        await frame.get_by_text("Nothing is watched.").wait_for()
        await page.set_input_files("#file input[type=file]", video)
        await frame.locator("#transcript .line").nth(2).wait_for()
        await frame.locator("#transcript .line").nth(1).click()
        inside = page.frames[-1]
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while not await inside.evaluate("document.querySelector('#player').currentTime >= 3"):
                await asyncio.sleep(0.05)
        await frame.locator("#question").fill("What is red?")
        await frame.locator("#ask").click()
        await frame.locator(".evidence img").first.wait_for()
        loaded = "document.querySelector('.evidence img').naturalWidth > 0"
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while not await inside.evaluate(loaded):
                await asyncio.sleep(0.05)
        async with page.expect_download() as waiting:
            await frame.get_by_role("link", name="SRT", exact=True).click()
        text = (await (await waiting.value).path()).read_text()
        assert text.startswith("1\n00:00:00,000 --> 00:00:03,000\n")
        await browser.close()
    assert [path for path in astray if path != "/favicon.ico"] == []


@pytest.mark.skipif(bool(MISSING), reason=f"not pulled: {' '.join(MISSING)}")
@pytest.mark.parametrize("has_browser", [True, pytest.param(False, marks=pytest.mark.heavy)])
def test_the_command_opens_the_page_that_answers_and_ctrl_c_ends_it(tmp_path, has_browser):
    record(tmp_path / "film.mp4")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/url')
    browser.chmod(0o755)
    env = {**os.environ, "BROWSER": str(browser)} if has_browser else {**os.environ, "PATH": ""}
    if not has_browser:
        env.pop("BROWSER", None)
    command = [sys.executable, "-m", "streammem", "ui", str(tmp_path / "film.mp4"), "--open"]
    with subprocess.Popen(
        [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=env
    ) as server:
        stop = threading.Timer(300, server.kill)  # a test must end
        stop.start()
        try:
            lines = iter(server.stderr.readline, "")
            said = [next(lines)]
            while "listening on" not in said[-1]:
                said.append(next(lines))
            url = said[-1].split()[-1]
            with urllib.request.urlopen(url, timeout=120) as reply:
                assert reply.status == 200 and b"<html" in reply.read()
            if has_browser:
                while not (tmp_path / "url").exists():
                    assert server.poll() is None
                    time.sleep(0.05)
                assert (tmp_path / "url").read_text().strip() == url
            else:
                assert f"no browser is found here; open {url}" in next(lines)
            server.send_signal(signal.SIGINT)
            rest = server.stderr.read()
            assert server.wait(60) == 130
            assert "Traceback" not in rest, rest
        finally:
            server.kill()
            stop.cancel()
