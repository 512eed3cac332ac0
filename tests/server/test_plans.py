"""Plans over HTTP: of a memory, of a session, and as events while its source is watched."""

from datetime import datetime
from types import SimpleNamespace

import pytest

from streammem.engine.plans import FollowedPlan
from streammem.engine.session import Session
from streammem.qa.next_action import PastFollower
from streammem.types import Caption, Plan, Segment
from tests.memory.entries import make
from tests.server.test_routes import jpeg, sse
from tests.sessions import session_of
from tests.tiny import film

pytestmark = pytest.mark.anyio
STEPS = ["a red room", "a blue room"]


async def test_a_plan_is_told_of_memories_and_sessions_and_followed_as_events(serving, memories):
    async with serving(memories=memories) as client:
        asked = {"goal": "paint", "steps": STEPS}
        told = await client.post("/v1/memories/trips/plan", json=asked)
        assert told.status_code == 200 and told.json()["type"] == "plan"
        assert [step["name"] for step in told.json()["steps"]] == STEPS
        guessed = (await client.post("/v1/memories/trips/plan", json={"goal": "paint"})).json()
        assert (guessed["progress"], guessed["next_from"]) == (None, "past")
        refused = await client.post("/v1/memories/trips/plan", json={**asked, "follow": True})
        assert refused.status_code == 409
        # Of a session that is watched: the plan now, and an event each time that it changes.
        path = (await client.post("/v1/sessions", json={"captions": False, "fps": 2})).json()["url"]
        assert (await client.post(f"{path}/plan", json={"goal": "a"})).status_code == 200
        blind = await client.post(f"{path}/plan", json={"goal": "a", "follow": True})
        assert blind.status_code == 422 and "captions" in blind.text
        first = (await client.post(f"{path}/plan", json={**asked, "follow": True})).json()
        assert {step["state"] for step in first["steps"]} == {"open"}
        assert (await client.get(path)).json()["plan"] == "paint"
        for frame in film(("red", 8), ("blue", 8), ("green", 8)):
            headers = {"content-type": "image/jpeg"}
            sent = {"params": {"time": frame.time}, "headers": headers}
            await client.post(f"{path}/frames", content=jpeg(frame.pixels), **sent)
        await client.post(f"{path}/end")
        events = sse((await client.get(f"{path}/events")).text)
        plans = [content for _, kind, content in events if kind == "plan"]
        assert plans[0] == first
        now = (await client.post(f"{path}/plan", json=asked)).json()
        assert plans[-1]["steps"] == now["steps"]
        assert (await client.delete(f"{path}/plan")).status_code == 204
        assert (await client.get(path)).json()["plan"] is None


async def test_a_day_is_asked_for_by_its_date(serving, memories, model):
    wall = datetime(2026, 5, 3, 12).timestamp()
    with Session(model, memory=memories / "day", source="a.mp4", wall_zero=wall) as session:
        for frame in film(("red", 4), ("blue", 4)):
            session.push(frame)
        session.flush()
    async with serving(memories=memories) as client:
        path = "/v1/memories/day/summary"
        (activity,) = (await client.get(f"{path}?day=2026-05-03&chapters=1")).json()["chapters"]
        assert activity["wall_start"].startswith("2026-05-03T12:00:00")
        assert (await client.get(f"{path}?day=2026-05-04")).json() == {"chapters": []}
        for wrong in ("day=monday", "day=9999-12-31"):
            assert (await client.get(f"{path}?{wrong}")).status_code == 422


async def test_a_plan_that_cannot_be_meant_is_refused(serving):
    asked = (
        {"goal": ""}, {"goal": "a" * 501}, {"steps": ["a"]}, {"goal": "a", "steps": ["b", " B"]},
        {"goal": "a", "steps": ["b", ""]}, {"goal": "a", "steps": ["b"] * 101},
    )  # fmt: skip
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        for body in asked:
            reply = await client.post(f"{path}/plan", json=body)
            assert reply.status_code == 422 and reply.json()["error"]["message"]


def test_a_followed_plan_tells_changes_alone_and_goes_on_from_what_is_remembered(
    model, monkeypatch
):
    session = session_of(model)
    monkeypatch.setattr(
        "streammem.qa.plan.rate",
        lambda rows, query: [SimpleNamespace(score=0.9 if "red" in query.words else 0.01)],
    )
    found = []
    followed = FollowedPlan(session, "paint", STEPS)
    for frame in film(("red", 9), ("blue", 7), ("red", 8)):
        for event in session.push(frame):
            found.append(followed.after(event))
    found += [followed.after(event) for event in session.flush()]
    assert [len(events) for events in found] == [1, 0, 0]
    assert all(isinstance(event, Plan) for events in found for event in events)
    again = FollowedPlan(session, "paint", STEPS, from_memory=True)
    assert again.plan == followed.plan
    assert followed.after(Segment(99, 0.0, 1.0, None, None)) == []


@pytest.mark.parametrize("first", ["caption", "segment"])
def test_without_steps_a_scene_counts_once_it_has_a_caption_whatever_comes_first(first):
    rows = {}
    session = SimpleNamespace(
        follow=lambda goal, steps, likelihood: PastFollower(goal),
        memory=SimpleNamespace(get=rows.get),
    )
    followed = FollowedPlan(session, "cook")
    segment, caption = Segment(0, 0.0, 9.0, None, None), Caption(0, 0.0, 9.0, "A man takes a cup")
    if first == "segment":  # of a short scene: it has no caption yet
        rows[0] = make(0, end=9.0)
        assert followed.after(segment) == []
    else:  # of a long one, while it is open: it has no row yet
        assert followed.after(caption) == []
    rows[0] = make(0, caption="A man is taking a cup", end=9.0)
    (plan,) = followed.after(caption if first == "segment" else segment)
    assert [step.name for step in plan.steps] == ["taking cup"]
