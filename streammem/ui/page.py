"""The door: a page made with Gradio that opens videos, and shows the watch page below.

app = add_page(make_app(sessions), sessions)
uvicorn.run(app)

What is watched, its transcript, timeline and questions are the watch page's business (`watch.py`).
"""

from pathlib import Path

import anyio.to_thread
import gradio as gr
from fastapi import FastAPI

from streammem.engine.watch_options import WatchOptions
from streammem.errors import StreammemError
from streammem.server.chat_videos import UPLOAD
from streammem.server.refused import Refused
from streammem.server.sessions import Sessions
from streammem.ui.watch import PATH, SOURCE, STATS_S, add_watch, open_url

KEPT_S = 3600  # what Gradio keeps of a file is removed after this time
MAX_ALERTS = 8
FRAME = f'<iframe id="watch" title="What is watched" allow="camera" data-path="{PATH}/"></iframe>'
STYLE = """
#watch { width: 100%; border: 0; min-height: 40rem; display: block; }
.gradio-container { padding: .5rem !important; }
"""
# The address of the page carries what its frame shows, so that a reload or a link comes back to it.
SCRIPT = """
<script>
(() => {
  const frame = () => document.querySelector("#watch");
  function fitted() {
    const page = frame()?.contentDocument?.body;
    if (page) frame().style.height = `${page.scrollHeight + 4}px`;
  }
  function started() {
    const inside = frame().contentWindow;
    if (inside.location.href === "about:blank") return;
    const noted = () => history.replaceState(null, "", inside.location.hash || "#/");
    inside.addEventListener("hashchange", noted);
    noted();
    new ResizeObserver(fitted).observe(inside.document.body);
  }
  window.streammemBegin = (first) => {
    if (!frame()) return void requestAnimationFrame(() => window.streammemBegin(first));
    const wanted = location.hash.startsWith("#/") ? location.hash : first;
    frame().addEventListener("load", started);
    const base = location.pathname.replace(/[/]*$/, "");
    frame().src = base + frame().dataset.path + wanted;
  };
  window.streammemShow = (address) => {
    if (address) frame().contentWindow.location.hash = address;
  };
})();
</script>
"""
SHOW = "(address) => window.streammemShow(address)"


def add_page(app: FastAPI, sessions: Sessions) -> FastAPI:
    """Put the page at the root of a server's application, and the watch page below ``/watch/``.

    Args:
        app: from ``make_app``.
        sessions: of the server; the page begins with the first of the operator's sources.
    """
    return gr.mount_gradio_app(
        add_watch(app, sessions),
        _Page(sessions).blocks(),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=sessions.config.limits.upload_bytes,
        head=SCRIPT,
        css=STYLE,
    )


class _Page:
    """The layout and its handlers, which return addresses of the watch page."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def blocks(self) -> gr.Blocks:
        with gr.Blocks(
            title="streammem", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)
        ) as page:
            shown = gr.Textbox(visible=False)
            with gr.Accordion("Open a video", open=True, elem_id="opening") as opening:
                with gr.Tab("File"):
                    file = gr.File(label="Video", file_types=["video"], elem_id="file", height=120)
                with gr.Tab("URL"):
                    url = gr.Textbox(
                        label="http(s) or rtsp", placeholder="https://...", elem_id="url"
                    )
                    watch = gr.Button("Watch", elem_id="watch-url")
                alerts = gr.Textbox(
                    label="Tell me when it shows (one a line)",
                    lines=1,
                    max_lines=4,
                    elem_id="alerts",
                )
                failure = gr.Markdown(elem_id="failure")
            gr.HTML(FRAME)
            out = [shown, failure]
            opened = [file.upload(self._open_file, [file, alerts], out, api_visibility="private")]
            for start in (watch.click, url.submit):
                opened.append(start(self._open_url, [url, alerts], out, api_visibility="private"))
            for each in opened:
                each.then(None, shown, None, js=SHOW)
            begun = page.load(self._begin, None, [shown, opening], show_progress="hidden")
            begun.then(None, shown, None, js="(address) => window.streammemBegin(address)")
        return page

    def _begin(self) -> tuple[str, gr.Accordion]:
        """Return the address of the operator's first source, of the archive, or of the list."""
        otherwise = "#/archive" if self._sessions.config.read_only else "#/"
        first = next((address_of(name) for name in self._sessions.own()), otherwise)
        # Beside a source it is folded: the keyboard reaches the question sooner.
        return first, gr.Accordion(open=first == "#/")

    async def _open_file(self, path: str | None, alerts: str) -> tuple[str, str]:
        if path is None:
            return "", ""
        options = WatchOptions(stats_s=STATS_S, alerts=_alerts(alerts))
        uploads, upload = self._sessions.uploads, None
        try:
            # Gradio removes its own file by age, also while it is watched.
            upload = await anyio.to_thread.run_sync(uploads.adopt, Path(path))
            name = await self._sessions.open(UPLOAD + upload.id, options, source_options=SOURCE)
        except (Refused, StreammemError) as error:
            if upload:
                uploads.remove(upload.id)
            return "", _failure(error)
        return address_of(name), ""

    async def _open_url(self, url: str, alerts: str) -> tuple[str, str]:
        try:
            name = await open_url(self._sessions, url.strip(), _alerts(alerts))
        except (Refused, StreammemError) as error:
            return "", _failure(error)
        return address_of(name), ""


def address_of(session: str) -> str:
    """Return the part of the address that shows a session."""
    return f"#/session/{session}"


def _failure(error: Exception) -> str:
    """Return an error as Markdown that shows its text as it is."""
    text = str(error).replace("`", "'").replace("\n", " ")
    more = (
        ": close one in the list below"
        if isinstance(error, Refused) and error.status == 429
        else ""
    )
    return f"⚠ `{text}`{more}"


def _alerts(text: str) -> tuple[str, ...]:
    wanted = [line.strip()[:200] for line in text.splitlines() if line.strip()]
    return tuple(wanted[:MAX_ALERTS])
