"""`streammem plan`: of a video, of its memory, with alerts; files of steps that mean nothing."""

import itertools
from dataclasses import replace

import pytest

from streammem.commands import opening
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
    (weighed,) = events(run("plan", tmp_path / "m", *words, "--likelihood")[1])
    assert [step["name"] for step in weighed["steps"]] == ["a red room", "a blue room"]


def test_steps_that_come_wrong_are_alerts_where_that_is_asked_for(run, video, steps, monkeypatch):
    from streammem.qa.plan import PlanTracker

    monkeypatch.setattr(PlanTracker, "_alerts", lambda tracker: ("left out: a red room",))
    words = ("plan", video, "--goal", "paint", "--steps", steps, "--format", "jsonl")
    plain = {event["type"] for event in events(run(*words)[1])}
    alerts = [e for e in events(run(*words, "--alert-steps")[1]) if e["type"] == "alert"]
    assert plain == {"plan"} and {alert["query"] for alert in alerts} == {"left out: a red room"}


def test_without_steps_a_plan_says_what_it_is_guessed_from(run, video, tmp_path, monkeypatch):
    from streammem.captioning.captioner import Captioner

    captions = itertools.cycle(("A man is cutting a cup", "He is washing a pan"))
    score = Captioner.score

    def scored(captioner, request, replies):
        return replace(score(captioner, request, replies), text=next(captions))

    monkeypatch.setattr(Captioner, "score", scored)
    words = ("--goal", "cook", "--format", "jsonl")
    code, out, err = run("plan", video, "--memory", tmp_path / "m", *words)
    last = events(out)[-1]
    assert (code, err, last["type"]) == (0, "", "plan")
    assert (last["progress"], last["next_from"]) == (None, "past")
    assert {step["name"] for step in last["steps"]} == {"cutting cup", "washing pan"}
    code, out, err = run("plan", tmp_path / "m", *words)
    assert (code, err) == (0, "") and events(out) == [last]


@pytest.mark.parametrize(
    "words",
    [
        ("--goal", ""),
        ("--goal", "paint", "--alert-steps"),
        ("--goal", "paint", "--likelihood"),
        ("--goal", "paint", "--planning", "no such file"),
        ("--goal", "paint", "--between", "1", "2"),
        ("--goal", "paint", "--planning", "kitchen", "--steps", "STEPS"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_opens(
    run, video, steps, monkeypatch, words
):
    monkeypatch.setattr(opening, "load_model", lambda arguments: pytest.fail("was opened"))
    given = [steps if word == "STEPS" else word for word in words]
    code, out, err = run("plan", video, *given)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    code, out, err = run("plan", f"{video}.none", "--goal", "paint", "--steps", steps)
    assert (code, out) == (1, "") and "check the path" in err


@pytest.mark.parametrize("content", [None, b"", b"a\nA\n", b"\xff\xfe\x00"])
def test_steps_that_cannot_be_meant_are_refused_before_anything_opens(
    run, video, tmp_path, content
):
    path = tmp_path / "steps.txt"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("plan", video, "--goal", "paint", "--steps", path)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
