"""The page's wiring: what is typed and clicked goes to the rooms of ``server``.

What they tell is shown; what it looks like stands in ``markup``.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI

from streammem.engine.watch_options import WatchOptions
from streammem.errors import StreammemError
from streammem.server.addresses import LIVE, PORTS
from streammem.server.queries import check_question, rows
from streammem.server.refused import Refused
from streammem.server.room import SessionHost
from streammem.server.sessions import Sessions
from streammem.server.uploads import check_video
from streammem.types import Answer, Segment
from streammem.ui import markup

EVERY_S = 1.0
KEPT_S = 3600  # uploads of the page that nobody needs are removed then
FPS = 2.0
MAX_ALERTS = 8
Shown = tuple[str, str, str, Any]


def add_page(app: FastAPI, sessions: Sessions) -> FastAPI:
    """Put the page at the root of a server's application."""
    return gr.mount_gradio_app(
        app,
        _Page(sessions).blocks(),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=sessions.config.limits.upload_bytes,
        head=markup.SCRIPT,
        css=markup.STYLE,
    )


class _Page:
    """One page; what a visitor looks at is held in the page itself, as ``session:ID``."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    # -- layout --

    def blocks(self) -> gr.Blocks:
        with gr.Blocks(
            title="streammem", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)
        ) as page:
            looked_at, seen = gr.State(""), gr.State(("", -1))
            gr.Markdown("## streammem")
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    said = gr.HTML(elem_id="failure")
                    choosing = self._sources(looked_at, said)
                with gr.Column(scale=2, min_width=320):
                    state = gr.HTML(elem_id="state")
                    lines = gr.HTML(markup.captions(()), elem_id="captions")
            strip = gr.HTML(elem_id="timeline")
            self._questions(looked_at)
            shown = [lines, strip, state, seen]
            gr.Timer(EVERY_S).tick(
                self._tick,
                [looked_at, seen],
                shown,
                show_progress="hidden",
                api_visibility="private",
            )
            page.load(self._memories, None, choosing, show_progress="hidden")
        return page

    def _sources(self, looked_at: gr.State, said: gr.HTML) -> gr.Dropdown:
        alerts = gr.Textbox(
            label="Tell me when it shows (one a line)", lines=1, max_lines=4, elem_id="alerts"
        )
        with gr.Tab("File"):
            video = gr.Video(sources=["upload"], label="Video", elem_id="player")
        with gr.Tab("Webcam"):
            camera = gr.Image(sources=["webcam"], streaming=True, type="numpy", elem_id="webcam")
            again = gr.Button("Start anew", size="sm")
        with gr.Tab("URL"):
            url = gr.Textbox(label="http(s) or rtsp", placeholder="https://...", elem_id="url")
            watch = gr.Button("Watch", elem_id="watch")
            remote = gr.HTML(elem_id="remote")
        with gr.Tab("Memory"):
            memory = gr.Dropdown(label="Kept earlier", elem_id="memory")
        out: list[Any] = [looked_at, said]
        video.upload(self._open_file, [video, alerts], out, api_visibility="private")
        for start in (watch.click, url.submit):
            start(self._open_url, [url, alerts], [*out, remote], api_visibility="private")
        memory.input(self._open_memory, memory, out, api_visibility="private")
        again.click(lambda: ("", ""), None, out, api_visibility="private")
        camera.stream(
            self._push, [camera, looked_at, alerts], out, stream_every=1 / FPS,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        return memory

    def _questions(self, looked_at: gr.State) -> None:
        with gr.Tab("Ask"):
            question = gr.Textbox(label="Question", elem_id="question")
            ask = gr.Button("Ask", variant="primary", elem_id="ask")
            answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
            evidence = gr.HTML(elem_id="evidence")
        with gr.Tab("Find"):
            query = gr.Textbox(label="Description", elem_id="query")
            find = gr.Button("Find", elem_id="find")
            found = gr.HTML(elem_id="found")
        with gr.Tab("Summary"):
            summary = gr.Button("Summarize", elem_id="summarize")
            chapters = gr.HTML(elem_id="chapters")
        with gr.Tab("Download"):
            offer = gr.Button("Prepare", elem_id="prepare")
            links = gr.HTML(elem_id="links")
        for start in (ask.click, question.submit):
            start(self._ask, [question, looked_at], [answer, evidence], api_visibility="private")
        for start in (find.click, query.submit):
            start(self._find, [query, looked_at], found, api_visibility="private")
        summary.click(self._summary, looked_at, chapters, api_visibility="private")
        offer.click(self._links, looked_at, links, api_visibility="private")

    # -- what is looked at --

    async def _host(self, looked_at: str) -> SessionHost:
        kind, _, name = looked_at.partition(":")
        if kind == "memory":
            return await self._sessions.memory(name)
        if not name:
            raise Refused(404, "choose a video first")
        return self._sessions.host(name)

    def _memories(self) -> Any:
        return gr.Dropdown(choices=self._sessions.memory_names(), value=None)

    async def _open_file(self, path: str | None, alerts: str) -> tuple[str, str]:
        if path is None:
            return "", ""
        try:
            check_video(Path(path))
            name = await self._sessions.open_trusted(path, _options(alerts), name="video")
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error))
        return f"session:{name}", ""

    async def _open_url(self, url: str, alerts: str) -> tuple[str, str, str]:
        url = url.strip()
        scheme = url.partition("://")[0]
        try:
            if (
                self._sessions.config.token is None and scheme in PORTS
            ):  # whoever looks is the operator
                name = await self._sessions.open_trusted(url, _options(alerts))
            else:
                name = await self._sessions.open(url, _options(alerts))
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error)), ""
        return f"session:{name}", "", "" if scheme in LIVE else markup.player(url)

    async def _open_memory(self, name: str | None) -> tuple[str, str]:
        try:
            await self._sessions.memory(name or "")
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error))
        return f"memory:{name}", ""

    async def _push(
        self, picture: np.ndarray | None, looked_at: str, alerts: str
    ) -> tuple[Any, Any]:
        if picture is None:
            return gr.skip(), gr.skip()
        try:
            name = looked_at.partition(":")[2]
            if not looked_at or (await self._host(looked_at)).plan.inbox is None:
                name = await self._sessions.open(None, _options(alerts))
            host = self._sessions.host(name)
            if (
                host.plan.inbox
                and host.plan.inbox.waiting < self._sessions.config.limits.frames_waiting
            ):
                host.plan.inbox.push(np.ascontiguousarray(picture[:, :, :3]), None)
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error))
        return f"session:{name}", ""

    # -- what is shown --

    async def _tick(self, looked_at: str, seen: tuple[str, int]) -> Shown:
        if not looked_at:
            return gr.skip()
        try:
            host = await self._host(looked_at)
        except (Refused, StreammemError) as error:
            return gr.skip(), gr.skip(), markup.failure(str(error)), gr.skip()
        host.touch()
        now = (f"{looked_at} {host.state}", host.events.count)
        if tuple(seen) == now:
            return gr.skip()
        events = host.events.kept()
        if looked_at.startswith("memory:"):
            events = tuple(await host.do(lambda session: rows(session, None)))
        scenes = sum(isinstance(event, Segment) for event in events)
        told = f"<p>{host.state}: {scenes} scenes in memory</p>"
        strip = markup.timeline(events, tuple(host.depths), host.path)
        return markup.captions(events), strip, told, now

    async def _ask(self, question: str, looked_at: str) -> AsyncIterator[tuple[str, Any]]:
        text = ""
        try:
            check_question(question, self._sessions.config.limits.question_chars)
            if not question.strip():
                raise Refused(422, "the question is empty")
            host = await self._host(looked_at)
            yield "…", ""
            async for said in host.ask(question):
                if isinstance(said, Answer):
                    whole = "\n".join([said.text, *([said.remark] if said.remark else [])])
                    yield whole, markup.evidence(said, host.path)
                else:
                    text += said
                    yield text, gr.skip()
        except (Refused, StreammemError) as error:
            yield "", markup.failure(str(error))

    async def _find(self, query: str, looked_at: str) -> str:
        try:
            check_question(query, self._sessions.config.limits.question_chars)
            if not query.strip():
                raise Refused(422, "the description is empty")
            host = await self._host(looked_at)
            found = await host.do(lambda session: session.find(query, 12))
        except (Refused, StreammemError) as error:
            return markup.failure(str(error))
        return markup.moments(found, host.path, "Best first")

    async def _summary(self, looked_at: str) -> str:
        try:
            host = await self._host(looked_at)
            return markup.chapters(await host.do(lambda session: session.chapters()))
        except (Refused, StreammemError) as error:
            return markup.failure(str(error))

    async def _links(self, looked_at: str) -> str:
        try:
            return markup.downloads((await self._host(looked_at)).path)
        except (Refused, StreammemError) as error:
            return markup.failure(str(error))


def _options(alerts: str) -> WatchOptions:
    wanted = [line.strip()[:200] for line in alerts.splitlines() if line.strip()]
    return WatchOptions(fps=FPS, reconnect=True, alerts=tuple(wanted[:MAX_ALERTS]))
