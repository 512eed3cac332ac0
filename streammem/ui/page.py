"""The page: connects its controls with the sessions of ``server``; ``markup`` makes the HTML.

app = add_page(make_app(sessions), sessions)
uvicorn.run(app)
"""

from collections.abc import AsyncIterator, Sequence
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
from streammem.server.session_host import SessionHost
from streammem.server.sessions import Sessions
from streammem.server.uploads import check_video
from streammem.types import Answer, Segment
from streammem.ui import markup
from streammem.video import SourceOptions

TICK_S = 1.0
KEPT_S = 3600  # idle uploads of the page are removed after this time
FPS = 2.0
MAX_ALERTS = 8
SOURCE = SourceOptions(fps=FPS, reconnect=True)
Shown = tuple[str, str, str, Any]


def add_page(app: FastAPI, sessions: Sessions, files: Sequence[Path] = ()) -> FastAPI:
    """Put the page at the root of a server's application.

    Args:
        app: from ``make_app``.
        sessions: of the server; the page begins with the first of the operator's sources.
        files: of the operator, which the page may play.
    """
    return gr.mount_gradio_app(
        app,
        _Page(sessions).blocks(),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(path.resolve()) for path in files],
        max_file_size=sessions.config.limits.upload_bytes,
        head=markup.SCRIPT,
        css=markup.STYLE,
    )


class _Page:
    """The page's layout and handlers; the browser holds what its visitor has chosen.

    ``chosen`` is ``session:ID``, ``memory:NAME`` or empty.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    # -- layout --

    def blocks(self) -> gr.Blocks:
        with gr.Blocks(
            title="streammem", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)
        ) as page:
            chosen, seen = gr.State(""), gr.State(("", -1))
            gr.Markdown("## streammem")
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    failure = gr.HTML(elem_id="failure")
                    choosing, player = self._sources(chosen, failure)
                with gr.Column(scale=2, min_width=320):
                    state = gr.HTML(elem_id="state")
                    lines = gr.HTML(markup.captions(()), elem_id="captions")
            strip = gr.HTML(elem_id="timeline")
            self._questions(chosen)
            shown = [lines, strip, state, seen]
            gr.Timer(TICK_S).tick(
                self._tick,
                [chosen, seen],
                shown,
                show_progress="hidden",
                api_visibility="private",
            )
            page.load(self._begin, None, [choosing, chosen, player], show_progress="hidden")
        return page

    def _sources(self, chosen: gr.State, failure: gr.HTML) -> tuple[gr.Dropdown, gr.Video]:
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
        out: list[Any] = [chosen, failure]
        video.upload(self._open_file, [video, alerts], out, api_visibility="private")
        for start in (watch.click, url.submit):
            start(self._open_url, [url, alerts], [*out, remote], api_visibility="private")
        memory.input(self._open_memory, memory, out, api_visibility="private")
        again.click(lambda: ("", ""), None, out, api_visibility="private")
        camera.stream(
            self._push, [camera, chosen, alerts], out, stream_every=1 / FPS,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        return memory, video

    def _questions(self, chosen: gr.State) -> None:
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
            start(self._ask, [question, chosen], [answer, evidence], api_visibility="private")
        for start in (find.click, query.submit):
            start(self._find, [query, chosen], found, api_visibility="private")
        summary.click(self._summary, chosen, chapters, api_visibility="private")
        offer.click(self._links, chosen, links, api_visibility="private")

    # -- opening sources --

    async def _host(self, chosen: str) -> SessionHost:
        kind, _, name = chosen.partition(":")
        if kind == "memory":
            return await self._sessions.memory(name)
        if not name:
            raise Refused(404, "choose a video first")
        return self._sessions.host(name)

    def _begin(self) -> tuple[Any, str, Any]:
        """Return the memories, and the operator's first source with its video, if it is a file."""
        memories = gr.Dropdown(choices=self._sessions.memory_names(), value=None)
        for name in self._sessions.own():
            file = self._sessions.host(name).plan.file
            return memories, f"session:{name}", str(file.resolve()) if file else None
        return memories, "", None

    async def _open_file(self, path: str | None, alerts: str) -> tuple[str, str]:
        if path is None:
            return "", ""
        try:
            check_video(Path(path))
            name = await self._sessions.open_trusted(
                path, _options(alerts), source_options=SOURCE, name="video"
            )
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error))
        return f"session:{name}", ""

    async def _open_url(self, url: str, alerts: str) -> tuple[str, str, str]:
        url = url.strip()
        scheme = url.partition("://")[0]
        try:
            # Without a token only this computer is admitted, so the visitor is the operator.
            if self._sessions.config.token is None and scheme in PORTS:
                name = await self._sessions.open_trusted(
                    url, _options(alerts), source_options=SOURCE
                )
            else:
                name = await self._sessions.open(url, _options(alerts), source_options=SOURCE)
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error)), ""
        return f"session:{name}", "", "" if scheme in LIVE else markup.player(url)

    async def _open_memory(self, name: str | None) -> tuple[str, str]:
        try:
            await self._sessions.memory(name or "")
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error))
        return f"memory:{name}", ""

    async def _push(self, picture: np.ndarray | None, chosen: str, alerts: str) -> tuple[Any, Any]:
        if picture is None:
            return gr.skip(), gr.skip()
        try:
            name = chosen.partition(":")[2]
            if not chosen or (await self._host(chosen)).plan.inbox is None:
                name = await self._sessions.open(None, _options(alerts), source_options=SOURCE)
            host = self._sessions.host(name)
            if (
                host.plan.inbox
                and host.plan.inbox.waiting < self._sessions.config.limits.frames_waiting
            ):
                host.plan.inbox.push(np.ascontiguousarray(picture[:, :, :3]), None)
        except (Refused, StreammemError) as error:
            return "", markup.failure(str(error))
        return f"session:{name}", ""

    # -- showing events and answers --

    async def _tick(self, chosen: str, seen: tuple[str, int]) -> Shown:
        if not chosen:
            return gr.skip()
        try:
            host = await self._host(chosen)
        except (Refused, StreammemError) as error:
            return gr.skip(), gr.skip(), markup.failure(str(error)), gr.skip()
        host.touch()
        now = (f"{chosen} {host.state}", host.events.count)
        if tuple(seen) == now:
            return gr.skip()
        events = host.events.kept()
        if chosen.startswith("memory:"):
            kept = await host.do(lambda session: rows(session, None))
            events = tuple(row.event for row in kept)
        scenes = sum(isinstance(event, Segment) for event in events)
        state = f"<p>{host.state}: {scenes} scenes in memory</p>"
        strip = markup.timeline(events, tuple(host.depths), host.path)
        return markup.captions(events), strip, state, now

    async def _ask(self, question: str, chosen: str) -> AsyncIterator[tuple[str, Any]]:
        text = ""
        try:
            check_question(question, self._sessions.config.limits.question_chars)
            if not question.strip():
                raise Refused(422, "the question is empty")
            host = await self._host(chosen)
            yield "…", ""
            async for piece in host.ask(question):
                if isinstance(piece, Answer):
                    whole = "\n".join([piece.text, *([piece.remark] if piece.remark else [])])
                    yield whole, markup.evidence(piece, host.path)
                else:
                    text += piece
                    yield text, gr.skip()
        except (Refused, StreammemError) as error:
            yield "", markup.failure(str(error))

    async def _find(self, query: str, chosen: str) -> str:
        try:
            check_question(query, self._sessions.config.limits.question_chars)
            if not query.strip():
                raise Refused(422, "the description is empty")
            host = await self._host(chosen)
            found = await host.do(lambda session: session.find(query, 12))
        except (Refused, StreammemError) as error:
            return markup.failure(str(error))
        return markup.moments(found, host.path, "Best first")

    async def _summary(self, chosen: str) -> str:
        try:
            host = await self._host(chosen)
            return markup.chapters(await host.do(lambda session: session.chapters()))
        except (Refused, StreammemError) as error:
            return markup.failure(str(error))

    async def _links(self, chosen: str) -> str:
        try:
            return markup.downloads((await self._host(chosen)).path)
        except (Refused, StreammemError) as error:
            return markup.failure(str(error))


def _options(alerts: str) -> WatchOptions:
    wanted = [line.strip()[:200] for line in alerts.splitlines() if line.strip()]
    return WatchOptions(alerts=tuple(wanted[:MAX_ALERTS]))
