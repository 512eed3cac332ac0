"""`streammem plan`: of a video, of its memory, with alerts; files of steps that mean nothing."""

import pytest

from tests.command_line import events


@pytest.fixture
def steps(tmp_path):
    path = tmp_path / "steps.txt"
    path.write_text("1. a red room\n2. a blue room\n")
    return path


def test_a_plan_is_told_of_a_video_and_of_its_memory_alike(run, video, steps, tmp_path):
    words = ("--goal", "paint", "--steps", steps, "--format", "jsonl")
    code, out, err = run("plan", video, "--memory", tmp_path / "m", *words)
    told = [event for event in events(out) if event["type"] == "plan"]
    assert (code, err) == (0, "") and told
    last = told[-1]
    assert last["goal"] == "paint"
    assert [step["name"] for step in last["steps"]] == ["a red room", "a blue room"]
    code, out, err = run("plan", tmp_path / "m", *words)
    (again,) = events(out)
    assert (code, err) == (0, "") and again == last


def test_steps_that_come_wrong_are_alerts_where_that_is_asked_for(run, video, steps, monkeypatch):
    from streammem.qa.plan import PlanTracker

    monkeypatch.setattr(PlanTracker, "_alerts", lambda tracker: ("left out: a red room",))
    words = ("plan", video, "--goal", "paint", "--steps", steps, "--format", "jsonl")
    plain = {event["type"] for event in events(run(*words)[1])}
    alerts = [e for e in events(run(*words, "--alert-steps")[1]) if e["type"] == "alert"]
    assert plain == {"plan"} and {alert["query"] for alert in alerts} == {"left out: a red room"}


@pytest.mark.parametrize("content", [None, b"", b"a\nA\n", b"\xff\xfe\x00"])
def test_steps_that_cannot_be_meant_are_refused_before_anything_opens(
    run, video, tmp_path, content
):
    path = tmp_path / "steps.txt"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("plan", video, "--goal", "paint", "--steps", path)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
