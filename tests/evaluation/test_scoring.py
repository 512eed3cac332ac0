"""Strict scores take a plain reply alone; official ones are as lax as the benchmarks publish."""

import numpy as np
import pytest

from streammem.evaluation.questions import SUITES, SuiteQuestion
from streammem.evaluation.scoring import (
    LETTERS,
    Reply,
    before_bracket,
    first_letter,
    fisher,
    letter_anywhere,
    mcnemar,
    mean_relative_accuracy,
    named_options,
    number_in,
    option_text,
    paired_bootstrap,
    risk_coverage,
    said_in,
    score,
    share,
    token_f1,
)
from streammem.types import TimeSpan

OPTIONS = ("a man", "two dogs", "nothing")


def asking(**changes):
    fields = {"id": "1", "video": "v", "text": "?", "options": OPTIONS, "answer": (1,)}
    return SuiteQuestion(**{**fields, **changes})


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("B", (1,)), ("(B)", (1,)), ("B.", (1,)), ("(B", (1,)), ("**B**", (1,)),
        ("B) two dogs", (1,)),
        ("B. two dogs.", (1,)), ("Two dogs.", (1,)), ("The answer is B.", (1,)),
        ("Answer: (C)", (2,)), ("The best option is B: two dogs", (1,)), ("Answer: A", (0,)),
        ("A man", (0,)), ("A man with two dogs", ()), ("A dog runs", ()), ("A, C", (0, 2)),
        ("A and B", (0, 1)), ("B or C", ()), ("B, but perhaps C.", ()), ("D", ()), ("", ()),
        ("I do not know", ()), ("I think it is B.", ()), ("Room B", ()), ("B. nothing", ()),
        ("b", ()), ("A or B, two dogs", ()),
        ("C. There is nothing to be seen, so I choose C", (2,)),
    ],
)  # fmt: skip
def test_strictly_a_reply_names_what_it_plainly_names(reply, named):
    assert named_options(reply, OPTIONS) == named


def test_the_official_rules_take_more_than_the_strict_one():
    question = asking()
    lax = Reply("Answer: A, Because of B")
    assert score(question, lax, letter_anywhere)[:2] == (0.0, 1.0)
    assert letter_anywhere("Bananas", question) == 1.0
    assert first_letter("The best answer is B", question) == 1.0
    assert first_letter("Answer: B", question) == 0.0, "the A of Answer comes first"
    assert before_bracket("B) two dogs", question) == 1.0
    assert before_bracket("The answer is B)", question) == 0.0
    assert option_text("two dogs.", question) == 1.0 and option_text("dogs", question) == 0.0


@pytest.mark.parametrize("suite", SUITES)
def test_an_oracle_is_right_by_every_rule(suite):
    for number in range(5):
        options = tuple(f"thing {n}" for n in range(5))
        question = asking(options=options, answer=(number,))
        official = SUITES[suite].official
        for reply in (Reply(LETTERS[number]), Reply(options[number], choice=number)):
            assert score(question, reply, official)[:2] == (1.0, 1.0)
        wrong = Reply(options[number - 1], choice=number - 1)
        assert score(question, wrong, official)[:2] == (0.0, 0.0)


def test_several_right_options_must_all_be_named_and_no_other():
    question = asking(answer=(0, 2))
    scores = [score(question, Reply(text), first_letter).strict
              for text in ("A, C", "C and A", "A", "A, B, C", "C")]  # fmt: skip
    assert scores == [1, 1, 0, 0, 0]


def test_yes_and_no_count_once_and_at_the_beginning():
    options = ("No", "Yes")
    said = ("Yes.", "no, it was not", "Yes or no", "Well, yes", "Nothing", "")
    assert [said_in(text, options) for text in said] == [1, 0, None, None, None, None]
    question = asking(options=options, answer=(1,), check="said")
    assert score(question, Reply("Yes or No"), letter_anywhere)[:2] == (0.0, 1.0)
    assert score(question, Reply("Y"), letter_anywhere)[:2] == (0.0, 1.0)


def test_numbers_are_one_number():
    assert [number_in(t) for t in ("3", "three times", "3 or 4", "twice", "none", "2 (two)")] == [
        3, 3, None, 2, None, 2,
    ]  # fmt: skip
    question = asking(options=(), answer=(), references=("4",), check="number")
    assert score(question, Reply("4 times"), first_letter).strict == 1
    assert score(question, Reply("4 or 5"), first_letter).strict == 0
    assert mean_relative_accuracy("10", "10") == 1.0
    assert mean_relative_accuracy("11", "10") == pytest.approx(0.9)
    assert mean_relative_accuracy("no idea", "10") == 0.0


def test_open_answers_have_exact_match_and_overlap():
    question = asking(options=(), answer=(), references=("a red car", "the car"), check="text")
    assert score(question, Reply("The red car."), first_letter)[:2] == (1.0, 1.0)
    half = score(question, Reply("red bicycle"), first_letter)
    assert half.strict == 0 and half.f1 == pytest.approx(0.5)
    assert token_f1("", "") == 1.0 and token_f1("", "car") == 0.0


def test_evidence_hits_where_it_shares_time_with_the_truth():
    question = asking(evidence=(TimeSpan(10, 20),))
    hits = [score(question, Reply("B", cited=(TimeSpan(*span),)), first_letter).hit
            for span in ((0, 10), (0, 10.5), (12, 13), (20, 30))]  # fmt: skip
    assert hits == [False, True, True, False]
    assert score(question, Reply("B"), first_letter).hit is None


# -- intervals and tests --


def test_shares_have_an_interval_that_holds_them_and_widens_with_clusters():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        rights = (rng.random(60) < 0.3).tolist()
        found = share(rights, range(60))
        inside += found.low <= 0.3 <= found.high
    assert 0.92 <= inside / 300 <= 0.98
    alone = share([1, 1, 1, 0, 0, 0] * 5, range(30))
    together = share([1] * 15 + [0] * 15, [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 + [5] * 5)
    assert together.low < alone.low and together.high > alone.high
    assert share([1.0] * 9, range(9)).low < 0.75, "nine of nine are not certainty"
    assert share([], []) is None


def test_tests_know_their_textbook_values():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 9) == pytest.approx(0.0215, abs=1e-4)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert fisher(3, 4, 1, 4) == pytest.approx(0.2429, abs=1e-4), "the lady tasting tea"
    assert fisher(0, 5, 5, 5) == pytest.approx(1.0) and fisher(1, 0, 1, 2) == 1.0


def test_the_bootstrap_resamples_videos_as_a_whole():
    changes = [1.0] * 10 + [-1.0] * 10
    each = paired_bootstrap(changes, range(20))
    halves = paired_bootstrap(changes, [0] * 10 + [1] * 10)
    assert each[0] < 0 < each[1] and halves == (-1.0, 1.0)


def test_the_surest_answers_come_first_in_the_curve():
    curve = risk_coverage([0.9, 0.4, 0.55, 0.8], [True, False, False, True])
    assert curve == [(0.25, 0.0), (0.5, 0.0), (0.75, 1 / 3), (1.0, 0.5)]
