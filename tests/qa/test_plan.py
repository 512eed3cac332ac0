"""Plans: scenes are aligned to steps, causally; skips, returns and repeats are told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.errors import ConfigError
from streammem.output.render import FORMATS, to_json
from streammem.qa.plan import MAX_SPANS, MAX_STEPS, PlanTracker, read_steps
from tests.qa.test_answerer import asked_of, reader  # noqa: F401, fixtures

NAMES = ("fill", "boil", "grind", "pour")
NONE = None


def scores(step, *, sure=0.9, other=0.005):
    return np.array([sure if number == step else other for number in range(len(NAMES))])


def follow(steps, tracker=None):
    tracker = tracker or PlanTracker("make coffee", NAMES)
    plans = [
        tracker.push(number, 2.0 * number, 2.0 * number + 2.0, scores(step))
        for number, step in enumerate(steps)
    ]
    return tracker, plans


def aligned(plan, count):
    of = {segment: n for n, step in enumerate(plan.steps) for segment in step.segments}
    return [of.get(segment) for segment in range(count)]


@pytest.mark.parametrize(
    "steps",
    [
        (0, 0, 1, 2, 3),
        (0, 1, NONE, NONE, 1, 2, 3),
        (0, 1, 3, 3),
        (0, 2, 1, 3),
        (0, 1, 2, 0, 0, 3),
        (NONE, NONE, 0, NONE, 1),
        (NONE, NONE),
    ],
)
def test_clear_scenes_are_aligned_to_their_steps_in_any_order(steps):
    tracker, _ = follow(steps)
    assert aligned(tracker.plan, len(steps)) == list(steps)


def test_states_spans_progress_and_what_comes_next():
    tracker, _ = follow((0, 0, NONE, 1))
    plan = tracker.plan
    assert [step.state for step in plan.steps] == ["done", "doing", "open", "open"]
    assert plan.steps[0].spans == ((0.0, 4.0),) and plan.steps[1].spans == ((6.0, 8.0),)
    assert (plan.progress, plan.time) == (0.5, 8.0)
    assert plan.next[0].name == "grind" and sum(each.probability for each in plan.next) <= 1 + 1e-9
    assert [each.probability for each in plan.next] == sorted(
        (each.probability for each in plan.next), reverse=True
    )


def test_what_is_left_out_is_told_once_and_only_once_later_steps_went_on():
    _, plans = follow((0, 2, 2, 3, 3))
    assert [plan.alerts for plan in plans] == [(), (), (), ("left out: boil",), ()]
    assert plans[-1].steps[1].state == "missing"


def test_a_step_that_comes_late_is_marked_and_told_once_where_it_is_sure():
    tracker, plans = follow((0, 2, 2, 2, 1, 1, 3))
    told = [plan.alerts for plan in plans if plan.alerts]
    assert told == [("left out: boil",), ("out of order: boil",)]
    assert plans[4].alerts + plans[5].alerts == told[1]
    assert tracker.plan.steps[1].late and not tracker.plan.steps[2].late
    # One scene of a later step may be a mistake: it is marked, and not told.
    tracker, plans = follow((0, 2, 1, 1, 3))
    assert not any(plan.alerts for plan in plans) and tracker.plan.steps[1].late


def test_a_repeated_step_is_no_alert_and_has_two_spans():
    tracker, plans = follow((0, 1, 0, 2, 3))
    assert not any(plan.alerts for plan in plans)
    assert tracker.plan.steps[0].spans == ((0.0, 2.0), (4.0, 6.0))
    assert not tracker.plan.steps[0].late


def test_order_decides_between_steps_that_look_alike():
    tracker, _ = follow((0, 1))
    both = np.array([0.2, 0.2, 0.7, 0.7])  # grind or pour: grind is next
    plan = tracker.push(2, 4.0, 6.0, both)
    assert plan.steps[2].state == "doing" and plan.steps[3].state == "open"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=2, max_size=20))
def test_what_was_told_is_never_revised_and_beliefs_stay_finite(rows):
    tracker, told = PlanTracker("goal", NAMES), []
    for number, row in enumerate(rows):
        plan = tracker.push(number, float(number), number + 1.0, np.array(row))
        now = aligned(plan, number + 1)
        assert now[:number] == told
        assert 0 <= plan.certainty <= 1 + 1e-9 and np.isfinite(plan.progress)
        told = now


def test_a_scene_that_goes_on_changes_its_end_alone():
    tracker, _ = follow((0, 1))
    before = tracker.plan
    plan = tracker.push(1, 2.0, 9.0, scores(3))
    assert plan.steps[1].spans == ((2.0, 9.0),)
    assert [s.state for s in plan.steps] == [s.state for s in before.steps]


def test_the_view_and_the_json():
    tracker, _ = follow((0, 2, 2, 2))
    text = FORMATS["text"]().write(tracker.plan)
    assert text.startswith("[00:08.0] make coffee [##########----------] 2 of 4\n")
    assert "  missing boil\n" in text and "  done    fill [00:00.0-00:02.0]\n" in text
    assert "  next: pour 0." in text and text.endswith("  ! left out: boil\n")
    found = to_json(tracker.plan)
    assert (found["type"], found["progress"]) == ("plan", 0.5)
    spans, segments = [[2.0, 8.0]], [1, 2, 3]
    assert found["steps"][2] == {
        "name": "grind", "state": "doing", "spans": spans, "segments": segments, "late": False,
    }  # fmt: skip
    assert found["next"][0]["name"] == "pour" and found["alerts"] == ["left out: boil"]


@pytest.mark.parametrize("names", [(), ("",), ("a", "A "), ("a",) * (MAX_STEPS + 1)])
def test_steps_that_cannot_be_meant_are_refused(names):
    with pytest.raises(ConfigError):
        PlanTracker("goal", names)


def test_steps_are_read_one_a_line():
    text = "# coffee\n1. fill the kettle\n\n- boil water\n3 eggs\n"
    assert read_steps(text) == ["fill the kettle", "boil water", "eggs"]


def test_a_session_tells_its_plan(asked_of):  # noqa: F811
    plan = asked_of().plan("paint", ["red", "blue", "black", "white"])
    assert [step.state for step in plan.steps] == ["done", "done", "missing", "doing"]
    assert [s.segments for s in plan.steps] == [(0, 3), (1,), (), (4,)]
    early = asked_of().plan("paint", ["red", "blue"], between=(0.0, 4.0))
    assert [step.state for step in early.steps] == ["doing", "open"]


def test_likelihoods_of_the_generator_are_weighed_with_the_keys(asked_of, monkeypatch):  # noqa: F811
    """What is equally likely everywhere changes nothing; what is likelier in one scene counts."""
    names, calls = ["red", "blue", "black", "white"], []

    def told(row):
        def log_probs(model, prompt, texts):
            calls.append(texts)  # the second call is of nothing, once for all rows
            number = len(calls) - 1 - (len(calls) > 1)
            return [[-3.0 + 80.0 * ((number, text) == (row, "black"))] * 2 for text in texts]

        calls.clear()
        monkeypatch.setattr(type(asked_of().model), "log_probs", log_probs)
        return asked_of().plan("paint", names, likelihood=True)

    plain, alike = asked_of().plan("paint", names), told(None)
    assert alike.steps == plain.steps
    assert len(calls) == len(asked_of().memory.entries()) + 1 and calls[0] == tuple(names)
    assert [step.state for step in told(2).steps] == ["done", "done", "done", "doing"]


def test_what_tells_no_likelihoods_cannot_be_asked_for_them(asked_of, monkeypatch):  # noqa: F811
    monkeypatch.setattr("streammem.engine.session.LikelihoodGenerator", int)  # no model is one
    with pytest.raises(ConfigError, match="tells no likelihoods"):
        asked_of().plan("paint", ["red"], likelihood=True)


def test_a_session_predicts_without_steps_from_its_captions(asked_of):  # noqa: F811
    session = asked_of()
    for entry, caption in zip(
        session.memory.entries(), ("is cutting", "is taking") * 3, strict=False
    ):
        session.memory.set_caption(entry.segment, f"A man {caption} a cup", None)
    plan = session.plan("cook")
    assert [step.name for step in plan.steps] == ["taking cup", "cutting cup"]
    assert [each.name for each in plan.next] == ["taking cup"] and plan.next_from == "past"


def test_what_was_done_is_not_next_and_nothing_is_once_all_was():
    tracker, plans = follow((0, 2, 1))
    assert {each.name for each in plans[1].next} == {"boil", "pour"}
    assert [each.name for each in plans[-1].next] == ["pour"]
    assert plans[-1].next[0].probability == pytest.approx(1)
    assert tracker.push(3, 6.0, 8.0, scores(3)).next == ()


@pytest.mark.parametrize("goal", ["", " ", "x" * 501])
def test_a_goal_that_says_nothing_is_refused(goal):
    with pytest.raises(ConfigError, match="goal"):
        PlanTracker(goal, NAMES)


def test_a_plan_that_is_followed_for_days_keeps_a_bounded_past():
    tracker = PlanTracker("tidy up", ["sweep the floor", "wipe the table"])
    for scene in range(400):  # each step again and again
        plan = tracker.push(scene, scene, scene + 1.0, np.array([0.99, 0.01][:: (-1) ** scene]))
    for step in plan.steps:
        assert len(step.spans) == len(step.segments) == MAX_SPANS
    first, second = plan.steps
    assert (first.segments[:2], first.segments[-1]) == ((0, 398 - 2 * (MAX_SPANS - 2)), 398)
    assert (second.spans[0].start, second.spans[-1].end) == (1.0, 400.0)
