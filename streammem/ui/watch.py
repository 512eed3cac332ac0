"""The watch page: static files below ``/watch/``, which use the server's own HTTP interface.

    app = add_watch(make_app(sessions), sessions)   # http://localhost:8080/watch/

Every session and memory has an address: ``/watch/#/session/ID``, ``/watch/#/memory/NAME``; all
memories together have ``/watch/#/archive``, where a server of an archive begins. The files load
nothing from elsewhere, and their policy forbids it.
"""

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from pydantic import Field
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from streammem.engine.watch_options import WatchOptions
from streammem.models.checkpoint import DEFAULT
from streammem.server.addresses import PORTS
from streammem.server.sessions import Sessions
from streammem.server.wire import AlertTexts, Str, Strict
from streammem.video import SourceOptions

STATIC = Path(__file__).parent / "static"
PATH = "/watch"
FPS = 2.0
SOURCE = SourceOptions(fps=FPS, reconnect=True)
STATS_S = 10.0
# Measured: docs/research/captions.md and docs/research/cameras.md.
WORDS_TINY = "Words are often wrong: of 10 nouns in captions, about 4. Look before you rely on one."
ALERTS_TINY = (
    "An alert is a hint to look at, not an alarm. Measured: of ones such as “a dog” about 3 of "
    "10 were false, and about 1 of 2 that came was reported, mostly when its scene had ended; of "
    "whole sentences about 5 of 10 were false, and 1 of 3 that came was reported."
)
UNMEASURED = "How often this model is wrong was not measured here. Look before you rely on it."
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; frame-ancestors 'self'; base-uri 'none'; "
    "form-action 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class UrlRequest(Strict):
    """A URL that the page's visitor wants to be watched."""

    source: Annotated[Str, Field(max_length=2000)]
    alerts: AlertTexts = Field(default=[])


class _Files(StaticFiles):
    """Static files with the page's policy."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_watch(app: FastAPI, sessions: Sessions) -> FastAPI:
    """Put the watch page below ``/watch/`` of a server's application.

    Args:
        app: from ``make_app``.
        sessions: of the server.
    """
    prefix = sessions.config.prefix

    @app.get(PATH, include_in_schema=False)
    async def with_slash() -> RedirectResponse:
        return RedirectResponse(f"{prefix}{PATH}/")

    @app.get(f"{PATH}/about", include_in_schema=False)
    async def about() -> dict[str, object]:
        """Return what the page says of its model, and what it may open."""
        known = sessions.model.name == DEFAULT
        return {
            "model": sessions.model.name,
            "words": WORDS_TINY if known else UNMEASURED,
            "alerts": ALERTS_TINY if known else UNMEASURED,
            "memories": sessions.config.memories is not None,
            "archive": sessions.config.read_only,
        }

    @app.post(f"{PATH}/open", include_in_schema=False, status_code=201)
    async def open_page_url(wanted: UrlRequest) -> dict[str, str]:
        """Open a URL; without a token any, with one as ``POST /v1/sessions`` does."""
        return {"id": await open_url(sessions, wanted.source, tuple(wanted.alerts))}

    app.mount(PATH, _Files(directory=STATIC, html=True))
    return app


async def open_url(sessions: Sessions, url: str, alerts: tuple[str, ...] = ()) -> str:
    """Open a session on a URL that a visitor of the page names; return its id.

    Raises:
        Refused, StreammemError: it may not be opened, or cannot be.
    """
    options = WatchOptions(stats_s=STATS_S, alerts=alerts)
    # Without a token only this computer is admitted, so the visitor is the operator.
    if sessions.config.token is None and url.partition("://")[0] in PORTS:
        return await sessions.open_trusted(url, options, source_options=SOURCE)
    return await sessions.open(url, options, source_options=SOURCE)
