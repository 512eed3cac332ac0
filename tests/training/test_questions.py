"""Questions asked three ways, from captions of a few pictures."""

import numpy as np
import pytest

from streammem.errors import DatasetError
from streammem.training.questions import NOT_SEEN, TrialMaker, words_about

CAPTIONS = [
    ("A brown dog runs.", "A dog on grass."),
    ("A black dog sleeps.",),
    ("Two men wear red shirts.", "Two men talk."),
    ("Three men in a boat.",),
    ("A bird on a wire.",),
    (),
    ("A horse.",),
]


def trials(captions=CAPTIONS, count=300):
    trial_maker, rng = TrialMaker(captions), np.random.default_rng(0)
    return [trial_maker.draw(rng) for _ in range(count)]


def test_every_kind_of_question_comes_as_often():
    kinds = [trial.kind for trial in trials()]
    assert {kind: kinds.count(kind) > 70 for kind in set(kinds)} == dict.fromkeys(
        ("color", "number", "presence"), True
    )


def test_swapped_evidence_changes_the_answer_and_one_picture_only():
    for trial in trials():
        assert trial.true.answer != trial.swapped.answer
        pairs = list(zip(trial.true.pictures, trial.swapped.pictures, strict=True))
        assert sum(one != other for one, other in pairs) == 1
        assert all(len(set(w.pictures)) == len(w.pictures) for w in trial.variants.values())


def test_answers_are_what_the_captions_of_the_shown_state():
    found = {(t.question, w.answer, w.pictures) for t in trials() for w in (t.true, t.swapped)}
    dogs = {(answer, 0 in shown) for q, answer, shown in found if q == "What color is the dog?"}
    assert dogs == {("Brown.", True), ("Black.", False)}
    men = {(answer, 3 in shown) for q, answer, shown in found if q == "How many men are there?"}
    assert men == {("Three.", True), ("Two.", False)}


def test_what_is_shown_beside_lacks_what_is_asked_about():
    about = {"What color is the dog?": {0, 1}, "How many men are there?": {2, 3}}
    shown = {question: set() for question in about}
    for trial in trials():
        if trial.question in about:
            assert not set(trial.missing.pictures) & about[trial.question]
            assert len(set(trial.true.pictures) & about[trial.question]) == 1
            shown[trial.question] |= set(trial.missing.pictures)
    assert shown["What color is the dog?"] == {2, 3, 4, 6}  # never the one without captions
    assert shown["How many men are there?"] == {0, 1, 4, 6}


def test_without_evidence_nothing_is_seen_and_sometimes_nothing_is_shown():
    drawn = trials()
    assert {trial.missing.answer for trial in drawn} == {NOT_SEEN}
    shown = [len(t.missing.pictures) for t in drawn if t.kind != "presence"]
    assert 0.15 < np.mean([count == 0 for count in shown]) < 0.35
    assert max(shown) == 3
    # Other pictures do answer whether a thing is there: it is not.
    assert all(not t.missing.pictures for t in drawn if t.kind == "presence")


def test_a_person_may_be_a_man_so_absence_is_not_asked():
    trial_maker = TrialMaker([("A man.",), ("A person.",), ("A bird.",)])
    assert trial_maker._known["presence"]["Is there a man?"] == {"Yes.": [0], "No.": [2]}


@pytest.mark.parametrize(
    "unclear",
    ["A brown and black dog.", "A brown dog. A black dog.", "A brown dog. Two dogs.", "A dog."],
)
def test_a_fact_that_is_not_clear_is_not_asked_for(unclear):
    clear = [("A white dog.",), ("A gray dog.",), ("A grey dog.",)]
    answers = TrialMaker([*clear, (unclear,)])._known["color"]["What color is the dog?"]
    assert answers == {"White.": [0], "Gray.": [1, 2]}


def test_what_people_leave_out_is_never_missing():
    assert not words_about("grass")
    assert "person" in words_about("shirt") & words_about("men")
    assert words_about("dog") == {"dog", "dogs", "puppy"}
    trial_maker = TrialMaker([("A red towel and a dog.",), ("A blue towel.",)])
    assert "color" not in trial_maker._known


def test_captions_that_answer_nothing_two_ways_are_refused():
    with pytest.raises(DatasetError, match="three ways"):
        TrialMaker([("A wall.",), ("A wall.",)])
