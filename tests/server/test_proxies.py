"""Laws of what browsers, players and proxies ask: HEAD, ranges, other origins, path prefixes."""

from pathlib import Path

import numpy as np
import pytest

from streammem.errors import ConfigError
from streammem.server.limits import ServerConfig
from tests.server.conftest import TOKEN
from tests.video.servers import write_stream

pytestmark = pytest.mark.anyio


async def test_head_says_what_get_says_without_the_body(serving, watched):
    async with serving() as client:
        path = await watched(client)
        for url in ("/healthz", path, f"{path}/keyframes/0", f"{path}/clip?start=1&end=3"):
            got, head = await client.get(url), await client.head(url)
            assert head.status_code == got.status_code == 200 and head.content == b""
            assert head.headers["content-type"] == got.headers["content-type"]
            assert head.headers["content-length"] == got.headers["content-length"]
        assert (await client.head(f"{path}/events")).status_code == 200
        assert (await client.head("/v1/sessions/none")).status_code == 404
        assert len(list(client.sessions.uploads.folder.iterdir())) == 1


async def test_head_of_what_goes_on_ends(listening):
    import httpx2 as httpx

    async with listening() as (url, _), httpx.AsyncClient(base_url=url, timeout=60) as client:
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        assert (await client.head(f"{path}/events")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_a_range_of_a_clip_is_that_part_of_the_whole(serving, watched):
    async with serving() as client:
        path = await watched(client)
        url = f"{path}/clip?start=1&end=3"
        whole = await client.get(url)
        assert whole.headers["accept-ranges"] == "bytes"
        parts = {"0-99": slice(100), "100-": slice(100, None), "-50": slice(-50, None)}
        for asked, part in parts.items():
            headers = {"range": f"bytes={asked}", "if-range": whole.headers["etag"]}
            sent = await client.get(url, headers=headers)
            assert sent.status_code == 206 and sent.content == whole.content[part]
        beyond = await client.get(url, headers={"range": "bytes=99999999-"})
        assert beyond.status_code == 416
        assert len(list(client.sessions.uploads.folder.iterdir())) == 1


async def test_a_page_of_another_site_may_ask_with_the_token_only(serving):
    asks = {
        "origin": "https://other.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    async with serving(token=TOKEN) as client:
        allowed = await client.options("/v1/sessions", headers=asks)
        assert allowed.status_code == 204
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        assert "POST" in allowed.headers["access-control-allow-methods"]
        for headers, status in (({}, 401), ({"authorization": f"Bearer {TOKEN}"}, 200)):
            sent = await client.get("/v1/sessions", headers={"origin": asks["origin"], **headers})
            assert sent.status_code == status
            assert sent.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in sent.headers
    async with serving() as client:
        refused = await client.options("/v1/sessions", headers=asks)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("removed", [False, True])
async def test_behind_a_prefix_every_address_leads_somewhere(serving, video, removed):
    before = "" if removed else "/cameras"
    async with serving(prefix="/cameras") as client:
        body = Path(video).read_bytes()
        source = (await client.post(f"{before}/v1/uploads", content=body)).json()["source"]
        opened = await client.post(f"{before}/v1/sessions", json={"source": source})
        url = opened.json()["url"]
        assert url.startswith("/cameras/v1/sessions/")
        own = url.removeprefix("/cameras" if removed else "")
        await client.get(f"{own}/events")
        found = await client.post(f"{own}/find", json={"query": "red"})
        keyframe = found.json()["moments"][0]["keyframe"]
        assert keyframe.startswith("/cameras/")
        shown = await client.get(keyframe.removeprefix("/cameras" if removed else ""))
        assert shown.headers["content-type"] == "image/jpeg"
        assert (await client.get(f"{before}/healthz")).status_code == 200


@pytest.mark.parametrize("prefix", ["cameras", "/a b", "//", "/a/../b?", "/"])
def test_a_prefix_is_a_path(prefix):
    with pytest.raises(ConfigError, match="--prefix"):
        ServerConfig(prefix=prefix)


async def test_a_form_is_refused_with_what_to_send_instead(serving, video):
    async with serving() as client:
        files = {"file": ("film.mp4", Path(video).read_bytes(), "video/mp4")}
        sent = await client.post("/v1/uploads", files=files)
    assert sent.status_code == 415 and "--data-binary @film.mp4" in sent.json()["error"]["message"]


@pytest.mark.parametrize("count", [1, 2, 25])
@pytest.mark.parametrize("form", ["ts", "m2ts", "cut"])
async def test_short_transport_streams_are_taken(serving, tmp_path, count, form):
    pictures = [np.full((48, 64, 3), 9 * k, np.uint8) for k in range(count)]
    options = {"mpegts_m2ts_mode": "1"} if form == "m2ts" else {}
    body = write_stream(tmp_path / "clip", pictures, **options).read_bytes()
    if form == "cut":  # a recording that begins within a packet
        body = body[88:] + body
    async with serving() as client:
        sent = await client.post("/v1/uploads", content=body)
        assert sent.status_code == 201, sent.text
