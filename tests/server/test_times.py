"""Events and clips over HTTP have the times that a player of the same file shows."""

import io

import av
import pytest

from tests.video.clips import with_early_sound

pytestmark = pytest.mark.anyio


async def test_scenes_and_clips_of_a_film_whose_picture_starts_late_agree(serving, video, tmp_path):
    late = with_early_sound(video, tmp_path / "late.mp4", lead_s=2.0)
    async with serving() as client:
        sent = (await client.post("/v1/uploads", content=late.read_bytes())).json()
        wanted = {"source": sent["source"]}
        path = (await client.post("/v1/sessions", json=wanted)).json()["url"]
        await client.get(f"{path}/events")  # to its end
        kept = (await client.get(f"{path}/segments")).json()["events"]
        moments = await client.post(f"{path}/find", json={"query": "blue", "count": 1})
        cut = await client.get(f"{path}/clip", params={"start": 5, "end": 9})
    spans = [(event["start"], event["end"]) for event in kept if event["type"] == "segment"]
    assert spans == [(2.0, 5.0), (5.0, 9.0), (9.0, 12.0)]
    (moment,) = moments.json()["moments"]
    assert (moment["start"], moment["end"]) in spans
    with av.open(io.BytesIO(cut.content)) as container:
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    assert len(pictures) == pytest.approx(32, abs=1)
    assert all(p[..., 2].mean() > p[..., 0].mean() for p in pictures[:32])
