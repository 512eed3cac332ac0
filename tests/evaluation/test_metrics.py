"""Each metric against a slow one written here from its definition, and against sums by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammem.evaluation.metrics import (
    CiderD,
    bleu,
    bleu_counts,
    rouge_l,
    score_captions,
    tokenise,
)

WORDS = st.lists(st.sampled_from("abcd"), max_size=7)
REFERENCES = st.lists(WORDS.filter(len), min_size=1, max_size=3)
CORPUS = st.lists(st.tuples(WORDS, REFERENCES), min_size=1, max_size=4)


def grams(words, order):
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def slow_bleu(corpus, max_order):
    length = sum(len(candidate) for candidate, _ in corpus)
    closest = sum(
        sorted((len(r) for r in references), key=lambda n: (abs(n - len(candidate)), n))[0]
        for candidate, references in corpus
    )
    product = 1.0
    for order in range(1, max_order + 1):
        right = total = 0
        for candidate, references in corpus:
            ours = grams(candidate, order)
            total += len(ours)
            for gram in set(ours):
                right += min(ours.count(gram), max(grams(r, order).count(gram) for r in references))
        if right == 0:
            return 0.0
        product *= right / total
    penalty = 1.0 if length >= closest else math.exp(1 - closest / length)
    return penalty * product ** (1 / max_order)


def slow_rouge(candidate, references):
    def common(reference):
        for size in range(len(candidate), 0, -1):
            for kept in itertools.combinations(candidate, size):
                rest = iter(reference)
                if all(word in rest for word in kept):
                    return size
        return 0

    if not candidate:
        return 0.0
    p = max(common(r) / len(candidate) for r in references)
    r = max(common(r) / len(r) for r in references)
    return (1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0


def slow_cider(candidate, references, all_references):
    def weight(gram, words):
        photos = sum(any(gram in grams(r, len(gram)) for r in photo) for photo in all_references)
        idf = math.log(len(all_references)) - math.log(max(photos, 1))
        return grams(words, len(gram)).count(gram) * idf

    total = 0.0
    for reference in references:
        for order in range(1, 5):
            vocabulary = sorted({*grams(candidate, order), *grams(reference, order)})
            ours = np.array([weight(gram, candidate) for gram in vocabulary])
            theirs = np.array([weight(gram, reference) for gram in vocabulary])
            norm = np.sqrt((ours**2).sum() * (theirs**2).sum())
            if norm > 0:
                gap = len(candidate) - len(reference)
                cosine = (np.minimum(ours, theirs) * theirs).sum() / norm
                total += cosine * math.exp(-(gap**2) / (2 * 6**2)) / 4
    return 10 * total / len(references)


@given(CORPUS)
def test_bleu_equals_its_definition(corpus):
    counts = sum(bleu_counts(candidate, references) for candidate, references in corpus)
    expected = [slow_bleu(corpus, order) for order in (1, 2, 3, 4)]
    assert bleu(counts) == pytest.approx(expected, abs=1e-12)


@given(WORDS, REFERENCES)
def test_rouge_l_equals_its_definition(candidate, references):
    assert rouge_l(candidate, references) == pytest.approx(slow_rouge(candidate, references))


@given(CORPUS)
def test_cider_d_equals_its_definition(corpus):
    split = [references for _, references in corpus]
    cider = CiderD(split)
    for candidate, references in corpus:
        expected = slow_cider(candidate, references, split)
        assert cider.score(candidate, references) == pytest.approx(expected, abs=1e-9)


def test_bleu_by_hand():
    # Papineni et al., example 2: "the" seven times has a clipped precision of 2/7.
    references = [
        ["the", "cat", "is", "on", "the", "mat"],
        ["there", "is", "a", "cat", "on", "the", "mat"],
    ]
    assert bleu(bleu_counts(["the"] * 7, references))[0] == pytest.approx(2 / 7)
    # Two words of a three-word reference: precision 1, brevity exp(1 - 3/2); no third-order gram.
    short = bleu(bleu_counts(["a", "b"], [["a", "b", "c"]]))
    assert short == pytest.approx([math.exp(-0.5), math.exp(-0.5), 0, 0])


def test_of_two_reference_lengths_equally_near_the_shorter_counts():
    counts = bleu_counts(["a", "b", "c"], [["a", "b"], ["a", "b", "c", "d"]])
    assert counts[-1] == 2


def test_rouge_l_by_hand():
    # "a c" is common: precision 2/3, recall 2/4.
    expected = (1 + 1.44) * (2 / 3) * (1 / 2) / (1 / 2 + 1.44 * 2 / 3)
    assert rouge_l(["a", "x", "c"], [["a", "b", "c", "d"]]) == pytest.approx(expected)


def test_cider_d_by_hand():
    # Two photos without a common word: every n-gram has idf log 2. The caption equals its
    # reference of two words: orders 1 and 2 have cosine 1, orders 3 and 4 have no n-grams.
    split = [[["a", "b"]], [["c", "d"]]]
    assert CiderD(split).score(["a", "b"], split[0]) == pytest.approx(10 * 2 / 4)
    # One word of the two: order 1 has cosine 1/sqrt(2), one word too few costs exp(-1/72).
    expected = 10 / 4 / math.sqrt(2) * math.exp(-1 / 72)
    assert CiderD(split).score(["a"], split[0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's tri-colored dog , runs !", ["a", "mans", "tricolored", "dog", "runs"]),
        ("Über_all “Straße”.", ["überall", "straße"]),
        (" . ", []),
    ],
)
def test_tokens_are_lower_cased_and_without_punctuation(text, tokens):
    assert tokenise(text) == tokens


def test_perfect_captions_score_one_and_empty_captions_score_zero():
    references = [["A dog runs over the grass."], ["Two cats sleep on a bed."]]
    cider = CiderD([[tokenise(text) for text in texts] for texts in references])
    best, _ = score_captions([texts[0] for texts in references], references, cider)
    assert [best.bleu1, best.bleu4, best.rouge_l] == pytest.approx([1, 1, 1])
    assert best.cider == pytest.approx(10)
    worst, _ = score_captions(["", "."], references, cider)
    assert worst.bleu1 == worst.bleu4 == worst.rouge_l == worst.cider == 0


def test_standard_errors_are_those_of_a_mean_and_repeat_under_a_seed():
    rng = np.random.default_rng(0)
    references = [[" ".join(rng.choice(list("abcdefgh"), 6))] for _ in range(60)]
    captions = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in references]
    cider = CiderD([[tokenise(text) for text in texts] for texts in references])
    figures, errors = score_captions(captions, references, cider)
    rouges = [
        rouge_l(tokenise(caption), [tokenise(texts[0])])
        for caption, texts in zip(captions, references, strict=True)
    ]
    assert figures.rouge_l == pytest.approx(np.mean(rouges))
    # A thousand resamples give a standard error to about 1/sqrt(2000) = 2.2%; four times that.
    assert errors.rouge_l == pytest.approx(np.std(rouges) / math.sqrt(60), rel=0.09)
    # Every caption has as many words as its reference, so BLEU-1 is a mean of photos too.
    hits = [
        bleu_counts(tokenise(c), [tokenise(r[0])])[0] / 6
        for c, r in zip(captions, references, strict=True)
    ]
    assert errors.bleu1 == pytest.approx(np.std(hits) / math.sqrt(60), rel=0.09)
    assert score_captions(captions, references, cider) == (figures, errors)
