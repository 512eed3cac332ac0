from types import SimpleNamespace

import numpy as np
import pytest

from streammem.errors import ConfigError
from streammem.memory import retrieval
from streammem.memory.entry import Now
from streammem.memory.memory import MemoryCache
from streammem.memory.retrieval import (
    _IRREGULAR,
    DEFAULT_NULL,
    DEFAULT_RANKERS,
    MARGINS,
    RANKERS,
    SEEN,
    GumbelNull,
    NameReadout,
    Query,
    Window,
    _spelling,
    check_rankers,
    clipped,
    content_words,
    counted,
    fit_null,
    names,
    normalise,
    rate,
    retrieve,
    scale_of,
    threshold,
)
from streammem.types import Note, TimeSpan
from tests.memory.entries import config, filled, make, near, search, unit

DIM, QUERIES = 64, 200
# Words of all endings that are brought to one form.
_SAID = """sky skies carry carries carried carrying ride rides riding running runs stopped falling
fallen boxes churches dishes glasses gas bus dog's taxi ties tie dying dye eyes a the 2 pass passed
Maße İstanbul naïve"""
FORMS = (*_IRREGULAR, *_IRREGULAR.values(), *_SAID.split())
SIZES = (100, 1_000, 10_000, 100_000)
NO_CLASSES = np.empty(0), np.empty(0, np.intp)
ALL = {0, 1, 2, 3}


# -- which rows, in which order --


def test_search_finds_what_only_the_caption_tells():
    question = unit(1, seed=1234)[0]
    cache = MemoryCache(config())
    for segment, cosine in enumerate(np.linspace(-0.3, 0.3, 40)):  # as of sentences and pictures
        cache.append(make(segment, near(question, cosine, segment)[None]))
    row = cache.set_caption(17, "a dog", near(question, 0.99))
    assert row.caption == "a dog"
    hit = search(cache, question, 3)[0]
    assert hit.entry.segment == 17 and hit.text == pytest.approx(0.99, abs=1e-3)
    assert hit.visual < hit.text == hit.cosine


@pytest.mark.parametrize("kind", ["caption_keys", "note_keys"])
def test_search_goes_by_the_best_key_and_words_must_exceed_pictures_by_a_margin(kind):
    question, margin = unit(1, seed=1234)[0], MARGINS[kind]
    cache = MemoryCache(config())
    for segment, (visual, text) in enumerate([(0.3, 0.1), (0.2, margin + 0.25), (0.1, 0.98)]):
        keys, told = near(question, visual, segment), near(question, text, segment + 9)
        cache.append(make(segment, keys[None], **{kind: told[None]}))
    hits = search(cache, question, 3)
    assert [hit.entry.segment for hit in hits] == [2, 0, 1]
    assert [hit.ranked for hit in hits] == pytest.approx([0.98 - margin, 0.3, 0.25], abs=2e-3)
    assert [hit.cosine for hit in hits] == pytest.approx([0.98, 0.3, margin + 0.25], abs=2e-3)
    assert [hit.text for hit in hits] == pytest.approx([0.98, 0.1, margin + 0.25], abs=2e-3)


def test_of_a_caption_and_a_note_the_nearer_one_is_told():
    question = unit(1, seed=1234)[0]
    cache = filled(2)
    cache.set_caption(1, "a dog", near(question, 0.7))
    cache.add_notes(1, (Note(1, 2, "a cat"),), near(question, 0.9))
    assert search(cache, question, 1)[0].text == pytest.approx(0.9, abs=1e-3)


def test_what_was_heard_counts_more_than_the_same_words_in_a_caption():
    question = unit(1, seed=1234)[0]
    cache = filled(4)
    cache.set_caption(1, "a dog", near(question, 0.9))
    cache.add_notes(2, (Note(2, 3, "a dog"),), near(question, 0.9))
    assert search(cache, question, 1)[0].entry.segment == 2


def test_search_keeps_to_its_windows():
    cache = MemoryCache(config())
    for segment in range(30):
        at = {"source": f"camera {segment // 10}", "wall_start": 1_000.0 + segment}
        cache.append(make(segment, **at if segment % 10 else {"source": at["source"]}))
    key = unit(1, seed=3)[0]

    def found(**window):
        return sorted(hit.entry.segment for hit in search(cache, key, 50, **window))

    assert found(stream=TimeSpan(4, 7)) == [4, 5, 6], "half-open"
    assert found(stream=TimeSpan(4.5, 4.6)) == [4]
    assert found(source="camera 1") == list(range(10, 20))
    assert found(wall=TimeSpan(1_008.5, 1_011.5)) == [8, 9, 11], "10 does not know its wall clock"
    assert found(stream=TimeSpan(9, 12), source="camera 1", wall=TimeSpan(0, 1_012)) == [11]
    assert found(stream=TimeSpan(90, 99)) == []
    assert len(found()) == 30


def test_search_is_exact_against_brute_force():
    cache = filled(50)
    key = unit(1, seed=77)[0]
    scores = {row.segment: float((row.visual_keys @ key).max()) for row in cache.entries()}
    best = sorted(scores, key=scores.get, reverse=True)[:10]
    assert [hit.entry.segment for hit in search(cache, key, 10)] == best
    assert [hit.entry.segment for hit in cache.related(key, 10)] == best


def test_rows_of_many_keys_do_not_crowd_out_the_others():
    question = unit(1, seed=1234)[0]
    cache = MemoryCache(config())
    for segment, cosine in enumerate([0.9, 0.8, 0.7]):
        keys = np.stack([near(question, cosine, 9 * segment + n) for n in range(4)])
        cache.append(make(segment, keys))
    assert [hit.entry.segment for hit in search(cache, question, 3)] == [0, 1, 2]


def test_the_index_and_a_comparison_of_every_row_give_the_same_hits():
    cache = filled(50)
    for segment in range(0, 50, 3):
        cache.set_caption(segment, "a dog", unit(1, seed=segment + 500)[0])
    for window in (Window(), Window(stream=TimeSpan(10, 30))):
        for seed in range(5):
            query = Query(unit(1, seed=seed + 900)[0])
            everything = retrieve(cache, query, window)
            few = retrieve(cache, query, window, 7)
            assert [(h.entry.segment, h.cosine, h.ranked) for h in few] == [
                (h.entry.segment, h.cosine, h.ranked) for h in everything[:7]
            ]
    assert len(everything) == 20


def test_the_score_of_a_row_does_not_depend_on_the_rows_it_is_compared_with():
    rows = filled(40).entries()
    query = Query(unit(1, seed=900)[0])
    query = query._replace(background=np.random.default_rng(0).normal(0, 0.1, 500))
    for name in ("score", "cosine", "ranked"):
        alone = [getattr(rate([row], query)[0], name) for row in rows]
        assert alone == [getattr(hit, name) for hit in rate(rows, query)]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("A man is riding a motorcycle on a street.", True),
        ("Men ride motorcycles.", True),
        ("A man rides a horse.\nA woman rides a motorcycle.", False),  # no line names it all
        ("A motorcycle stands on a street.", False),
        (None, False),
    ],
)
@pytest.mark.parametrize(("kind", "matched"), [("caption", "caption"), ("notes", "speech")])
def test_a_text_that_names_what_is_looked_for_is_seen_whatever_the_keys_say(
    text, seen, kind, matched
):
    question = unit(1, seed=1234)[0]
    background = np.random.default_rng(0).normal(0, 0.1, 500)
    words = content_words("a man riding a motorcycle")
    query = Query(question, background=background, words=words, num_keys=3)
    cache = MemoryCache(config())
    lines = (text or "").splitlines()
    said = {"caption": text, "notes": tuple(Note(0, 1, line) for line in lines)}[kind]
    for segment, cosine in enumerate((-0.2, -0.1, 0.0)):  # the text's row is the farthest
        text_of = {kind: said} if not segment else {}
        cache.append(make(segment, near(question, cosine)[None], **text_of))
    for k in (None, 1):  # by the index too, which knows keys alone
        first = retrieve(cache, query, k=k)[0]
        assert (first.entry.segment == 0) == (first.score >= SEEN) == first.seen == seen
        assert first.matched == (matched if seen else "picture")


@pytest.mark.parametrize("shown", [str, str.upper])
def test_a_text_holds_the_words_that_it_names_in_one_of_their_spellings(shown):
    for word in FORMS:
        entry = make(0, caption=f"It is {shown(word)}.")
        words = content_words(entry.caption)
        assert names(entry.caption, words) == bool(words)
        assert list(_spelling([entry], words)) == [entry] * bool(words), word


def test_rows_whose_words_are_none_of_those_looked_for_are_passed_over():
    entry = make(
        0, caption="A man rides a motorcycle.", notes=(Note(0.0, 0.5, "The sky is clear."),)
    )
    assert list(_spelling([entry], content_words("skies"))) == [entry]
    assert list(_spelling([entry], content_words("men riding"))) == [entry]
    assert list(_spelling([entry], content_words("a man on a horse"))) == []
    assert list(_spelling([entry], content_words("a person"))) == [entry], "a man is one"
    women = make(0, caption="Two women stand there.")
    assert list(_spelling([women], content_words("people"))) == [women]
    assert list(_spelling([entry], frozenset())) == []


def test_a_picture_that_shows_what_its_caption_names_counts_more_than_either():
    question = unit(1, seed=1234)[0]
    background = np.random.default_rng(0).normal(0, 0.05, 500)
    query = Query(question, background=background, words=content_words("dogs"), num_keys=3)
    rows = [
        make(0, near(question, 0.9)[None]),
        make(1, near(question, 0.0)[None], caption="A dog."),
        make(2, near(question, 0.9)[None], caption="A dog."),
    ]
    picture, caption, both = (hit.score for hit in rate(rows, query))
    assert both >= picture > SEEN and both > caption > SEEN


@pytest.mark.parametrize(
    ("words", "changes", "expected"),
    [
        ("a man riding a horse", {}, {0, 1, 3}),
        ("a brown horse", {}, {0, 1, 2}),
        ("a man riding a horse", {"name": NameReadout(None, np.empty((0, DIM)), *NO_CLASSES)}, ALL),
        (
            "a man riding a horse",
            {"things": (SimpleNamespace(excess=lambda entry: 1.0),)},
            ALL | {4},
        ),
        ("a man riding a horse", {"things": (SimpleNamespace(excess=lambda entry: -1.0),)}, set()),
        ("a man riding a horse", {"background": np.empty(0)}, {3}),
    ],
)
def test_a_description_counts_the_best_scene_its_likes_and_those_that_name_it(
    words, changes, expected
):
    question = unit(1, seed=1234)[0]
    background = np.random.default_rng(0).normal(0, 0.05, 500)
    query = Query(question, background=background, words=content_words(words), num_keys=5)
    best = near(question, 0.9)
    rows = [
        make(2, near(question, 0.85, 8)[None]),  # seen, and looks like another scene
        make(0, near(best, retrieval.ALIKE + 0.01, 5)[None]),
        make(1, np.stack([near(question, -0.5, 3), best])),
        make(
            3, near(question, 0.0, 9)[None], caption="A woman rides a horse.\nA man rides horses."
        ),
        make(4, near(question, 0.0, 11)[None]),
    ]
    hits = rate(rows, query._replace(**changes))
    found = counted(hits, query._replace(**changes))
    assert {hit.entry.segment for hit in found} == expected
    assert list(found) == [hit for hit in hits if hit in found], "in their order"
    assert counted((), query) == ()


def test_the_more_keys_are_compared_the_nearer_must_be_what_is_seen():
    background = np.random.default_rng(0).normal(0, 0.05, 500)
    few, more = (Query(unit(1)[0], background=background, num_keys=n) for n in (3, 300))
    assert scale_of(few).level < scale_of(more).level


def test_chance_matches_begin_at_the_mean_of_the_best_hundredth():
    background = np.random.default_rng(0).normal(0, 0.05, 500)
    tail = np.sort(background)[-5:].mean()
    (score,) = normalise(np.array([tail]), background, 50, GumbelNull(0.0, 0.0, 1.0))
    assert score == pytest.approx(0.0, abs=1e-9)


def test_what_is_seen_comes_before_what_is_said_unless_that_is_looked_for():
    """At comparable certainty: a picture that hardly shows it comes after the words."""
    question = unit(1, seed=1234)[0]
    background = np.random.default_rng(0).normal(0, 0.05, 500)
    query = Query(question, background=background, words=content_words("dogs"), num_keys=3)
    scale, told = scale_of(query), near(question, 0.99, 9)[None]
    at = {p: near(question, scale.score_at(p))[None] for p in (0.62, 0.45, 0.05)}
    said = make(0, at[0.05], notes=(Note(2, 3, "A dog."),), note_keys=told)
    rows = [
        said,
        make(1, at[0.62]),
        make(2, at[0.05], caption="A dog."),
        make(3, at[0.45]),
        make(4, at[0.62], notes=(Note(2, 3, "A dog."),), note_keys=told),
    ]
    hits = {hit.entry.segment: hit for hit in rate(rows, query)}
    order = sorted(hits, key=lambda segment: -hits[segment].ranked)
    assert order == [4, 1, 2, 0, 3] and hits[0].seen and hits[0].matched == "speech"
    spoken = {hit.entry.segment: hit for hit in rate(rows, query._replace(spoken=True))}
    assert {segment for segment, hit in spoken.items() if hit.seen} == {0, 4}
    assert all(spoken[n].ranked < spoken[0].ranked for n in (1, 2, 3))
    # Among what was said, words that are merely near come before pictures.
    puppy = make(5, at[0.05], notes=(Note(2, 3, "Puppies!"),), note_keys=told)
    near_by, shown = rate([puppy, rows[1]], query._replace(spoken=True))
    assert near_by.ranked > shown.ranked and not near_by.seen and near_by.matched == "speech"


def test_a_text_that_is_merely_near_orders_rows_and_shows_nothing():
    question = unit(1, seed=1234)[0]
    background = np.random.default_rng(0).normal(0, 0.05, 500)
    query = Query(question, background=background, words=content_words("dogs"), num_keys=3)
    far, told = near(question, 0.0), near(question, 0.99, 9)[None]
    rows = [
        make(0, far[None]),
        make(1, far[None], caption="Wolves.", caption_keys=told),
        make(2, far[None], notes=(Note(2, 3, "Puppies!"),), note_keys=told),
    ]
    nothing, caption, speech = rate(rows, query)
    assert nothing.ranked < caption.ranked <= speech.ranked
    assert not caption.seen and not speech.seen
    assert (caption.matched, speech.matched) == ("caption", "speech")


# -- names read off keys --


def reading(key, strength=4.0, classes=0):
    """What reads a thing off one direction of keys: by its logit, or as one of so many classes."""
    if not classes:
        return NameReadout((strength * key, 0.0), np.zeros((0, 0)), np.zeros(0), np.arange(0))
    weights = np.zeros((classes, len(key)), np.float32)
    weights[0] = strength * key
    return NameReadout(None, weights, np.zeros(classes, np.float32), np.array([0]))


@pytest.mark.parametrize("classes", [0, 50])
def test_of_equally_near_rows_that_one_is_seen_whose_keys_show_the_name(classes):
    question, sign = unit(2, seed=1234)
    background = np.random.default_rng(0).normal(0, 0.1, 500)
    # A direction of its own: whatever the name reads, the cosine with the question is the same.
    sign = sign - (sign @ question) * question
    sign /= np.linalg.norm(sign)
    keys = [0.2 * question + part * sign for part in (0.9, -0.9)]
    rows = [make(i, (key / np.linalg.norm(key))[None]) for i, key in enumerate(keys)]
    query = Query(question, background=background, name=reading(sign, 20.0, classes), num_keys=9)
    shows, lacks = rate(rows, query)
    assert shows.cosine == pytest.approx(lacks.cosine, abs=2e-3)
    assert shows.seen and shows.matched == "name"
    assert not lacks.seen and lacks.ranked < shows.ranked
    plain = rate(rows, query._replace(name=None))
    assert [hit.matched for hit in plain] == ["picture"] * 2
    assert plain[0].score == pytest.approx(plain[1].score, abs=0.05), "nothing else told them apart"


def test_a_name_is_seen_in_one_key_of_four_by_its_logit_and_shares_are_means_over_keys():
    sign = unit(1, seed=5)[0]
    away = np.stack([near(sign, -0.9, seed) for seed in range(3)])
    keys = np.concatenate([away, sign[None]])
    assert reading(sign).odds(keys) == pytest.approx(reading(sign).odds(sign[None]))
    shares = reading(sign, 9.0, 20)
    assert shares.odds(away) < shares.odds(keys) < shares.odds(sign[None])
    assert np.isfinite([reading(1e4 * sign).odds(keys), shares.odds(1e4 * away)]).all()


def test_a_name_keeps_the_laws_of_scores():
    question, background = unit(1, seed=900)[0], np.random.default_rng(0).normal(0, 0.1, 500)
    name = reading(unit(1, seed=901)[0], 6.0, 30)
    query = Query(question, background=background, name=name, num_keys=40)
    cache = filled(40)
    for segment in range(0, 40, 3):
        cache.set_caption(segment, "a dog", unit(1, seed=segment + 500)[0])
    everything = retrieve(cache, query)
    assert [h.entry.segment for h in retrieve(cache, query, k=7)] == [
        h.entry.segment for h in everything[:7]
    ], "the index does not know names"
    for row in cache.entries()[:9]:
        (alone,) = rate([row], query)
        (same,) = (hit for hit in everything if hit.entry.segment == row.segment)
        assert (alone.score, alone.ranked) == (same.score, same.ranked)
    assert all(0 <= hit.score <= 1 for hit in everything)
    more = rate(cache.entries(), query._replace(num_keys=40_000))
    less = {hit.entry.segment: hit.score for hit in everything}
    pictures = [hit for hit in more if hit.matched in ("picture", "name")]
    assert pictures and all(hit.score <= less[hit.entry.segment] for hit in pictures)


def test_a_caption_that_names_counts_whatever_is_read_off_the_keys():
    question, sign = unit(2, seed=1234)
    background = np.random.default_rng(0).normal(0, 0.1, 500)
    query = Query(
        question, background=background, words=content_words("dogs"), name=reading(-sign, 20.0)
    )
    (hit,) = rate([make(0, sign[None], caption="A dog.")], query)
    assert hit.seen and hit.matched == "caption"


def test_scores_are_probabilities_whatever_the_cosines():
    query = Query(unit(1)[0], background=np.random.default_rng(0).normal(0, 0.1, 500))
    assert all(0 <= hit.score <= 1 for hit in rate(filled(40).entries(), query))
    scores = scale_of(query).probability(np.array([-1e9, -1.0, 0.0, 1.0, 1e9]))
    assert (np.diff(scores) >= 0).all() and np.isfinite(scores).all()


# -- ranking rules --


def doubled_if_young(candidates, scores):
    return np.where(candidates.ages() < 10, 2 * scores, scores)


@pytest.fixture
def rule(monkeypatch):
    """A ranking rule of its own, as a stranger adds one."""
    monkeypatch.setitem(RANKERS, "young", doubled_if_young)
    return (*DEFAULT_RANKERS, "young")


def test_a_ranking_rule_reorders_hits_and_moves_what_counts_as_seen(rule):
    question = unit(1, seed=1234)[0]
    cache = MemoryCache(config())
    for segment, cosine in ((0, 0.6), (1, 0.1), (50, 0.4)):
        cache.append(make(segment, near(question, cosine, segment)[None]))
    query = Query(question, Now(ends={"": 55.0}))
    for k in (None, 2):  # without the index, which does not know the rule
        assert [h.entry.segment for h in retrieve(cache, query, k=k)][:2] == [0, 50]
        hits = retrieve(cache, query, k=k, rankers=rule)
        assert [h.entry.segment for h in hits][:2] == [50, 0]
        assert [h.ranked for h in hits][:2] == pytest.approx([0.8, 0.6], abs=2e-3)
        assert [h.cosine for h in hits][:2] == pytest.approx([0.4, 0.6], abs=2e-3)
        assert hits[0].score > hits[1].score


def test_without_a_rule_the_best_cosine_of_any_kind_decides():
    question = unit(1, seed=1234)[0]
    cache = MemoryCache(config())
    cache.append(make(0, near(question, 0.4)[None]))
    cache.append(make(1, near(question, 0.1)[None], caption_keys=near(question, 0.5)[None]))
    for rankers, first in (((), 1), (DEFAULT_RANKERS, 0)):
        assert retrieve(cache, Query(question), k=1, rankers=rankers)[0].entry.segment == first


def test_a_rule_that_is_not_registered_is_refused():
    check_rankers(tuple(RANKERS))
    with pytest.raises(ConfigError, match="'newest' is not known; give some of nearest"):
        check_rankers(("nearest", "newest"))


def test_the_nearest_key_is_the_first_rule_and_the_default():
    assert next(iter(RANKERS)) == "nearest" and DEFAULT_RANKERS == ("nearest",)


@pytest.mark.parametrize(
    ("changes", "age"),
    [
        ({"source": "door"}, 55.0),  # it ended at 5 s of the source's own clock
        ({"source": "door", "wall_start": 1_000.0}, 199.0),
        ({"source": "garden"}, 0.0),  # of which no present is known
        ({"source": "door", "wall_start": 5_000.0}, 0.0),  # a clock that was set back
    ],
)
def test_the_age_of_a_row_is_by_the_wall_clock_where_it_knows_it(changes, age):
    now = Now(wall=1_200.0, ends={"door": 60.0})
    assert make(4, **changes).age(now) == age
    assert make(4, **changes).age(Now()) == 0.0


# -- windows --


def test_a_row_of_one_instant_lies_where_it_is():
    row = make(0, start=1.0, end=1.0)
    assert [
        len(clipped([row], Window(span))) for span in (None, TimeSpan(1.0, 2.0), TimeSpan(0.0, 0.5))
    ] == [1, 1, 0]


def test_windows_are_half_open_on_both_clocks():
    rows = [make(i, wall_start=5000.0 + i) for i in range(4)] + [make(9, start=9.0, end=10.0)]
    for stream, wall in ((TimeSpan(1.0, 3.0), None), (None, TimeSpan(5001.0, 5003.0))):
        found = clipped(rows, Window(stream, wall))
        assert [(s.entry.segment, s.start, s.end) for s in found] == [(1, 1.0, 2.0), (2, 2.0, 3.0)]
    assert [s.start for s in clipped(rows, Window(wall=TimeSpan(5001.5, 5001.75)))] == [1.5]
    assert clipped(rows, Window(TimeSpan(4.0, 9.0))) == ()


def test_a_row_without_wall_clock_is_never_in_a_wall_clock_span():
    assert clipped([make(0)], Window(wall=TimeSpan(-np.inf, np.inf))) == ()


# -- not seen --


def test_seen_is_what_exceeds_the_null_of_so_many_keys():
    background = np.random.default_rng(0).normal(size=1_000)
    query = Query(unit(1)[0], background=background, null=GumbelNull(0.0, 0.0, 1.0))
    scores = normalise(np.array([0.0, 1.0]), background, 50, query.null)
    scores += retrieval.RAW * np.array([0.0, 1.0])
    at_limit = (retrieval.LEVEL - scores[0]) / (scores[1] - scores[0])  # the scores are linear
    found = scale_of(query._replace(num_keys=50)).probability([at_limit - 1e-6, at_limit + 1e-6])
    assert (found >= SEEN).tolist() == [False, True]
    one = scale_of(query._replace(null=DEFAULT_NULL, num_keys=1))
    assert one.probability([9.0]) >= SEEN, "one key counts as two"


def best_scores(seed=0):
    """Best cosine of queries with n random keys, for each n; and the queries' background."""
    keys = unit(SIZES[-1], seed=3 * seed + 1, dim=DIM)
    queries, bank = unit(QUERIES, seed=3 * seed + 2, dim=DIM), unit(1_000, seed=9, dim=DIM)
    cosines = queries @ keys.T  # [Q, N]
    return {n: cosines[:, :n].max(axis=1) for n in SIZES}, queries @ bank.T


@pytest.fixture
def fitted():
    """The constants of random keys, which are not those of pictures."""
    best, background = best_scores(seed=1)
    return fit_null([(n, best[n], background) for n in SIZES])


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_after_a_fit_false_sightings_come_at_the_rate_in_a_memory_of_any_size(fitted, rate):
    best, background = best_scores()
    fixed = np.quantile(best[100], 1 - rate)
    scores = [normalise(best[n][:, None], background, n, fitted) for n in SIZES]
    ours = [(each > threshold(rate)).mean() for each in scores]
    control = [(best[n] > fixed).mean() for n in SIZES]
    # 200 questions at a rate of 0.1 or 0.3: deviation 0.02 or 0.03; growth is not quite linear.
    assert ours == pytest.approx([rate] * 4, abs=0.11)
    assert control[-1] >= 0.9


def test_what_is_there_is_seen_in_a_memory_of_any_size(fitted):
    _, background = best_scores()
    for n in SIZES:
        scores = normalise(np.full((QUERIES, 1), 0.9), background, n, fitted)
        assert (scores > threshold(0.01)).all()


def test_the_score_that_is_needed_grows_with_the_root_of_the_logarithm_of_the_size():
    background = np.random.default_rng(0).normal(size=1_000)
    at_0 = [normalise(np.zeros(1), background, n)[0] for n in SIZES]
    steps = np.diff(at_0) / np.diff(np.sqrt(np.log(SIZES)))
    assert (steps < 0).all() and np.ptp(steps) < 1e-9


def test_a_fit_finds_the_constants_that_its_questions_came_from():
    rng, background = np.random.default_rng(0), np.tile(np.linspace(-2, 2, 500), (4_000, 1))
    tail, deviation = background[0, -5:].mean(), background[0].std()
    told = []
    for n in SIZES:
        z = rng.gumbel(-2.0 + 0.4 * np.sqrt(2 * np.log(n)), 0.3, 4_000)
        told.append((n, tail + deviation * z, background))
    location, growth, scale = fit_null(told)
    # 4,000 draws a size: a quantile is good to 0.01; the location lies far outside the sizes.
    assert (growth, scale) == pytest.approx((0.4, 0.3), abs=0.03)
    assert location == pytest.approx(-2.0, abs=0.1)


def test_the_constants_shipped_ask_for_more_in_a_larger_memory():
    assert DEFAULT_NULL.growth > 0 and DEFAULT_NULL.scale > 0


def test_shifting_and_scaling_all_scores_of_a_query_changes_nothing():
    rng = np.random.default_rng(0)
    scores, background = rng.normal(size=5), rng.normal(size=300)
    np.testing.assert_allclose(
        normalise(3 * scores + 1, 3 * background + 1, 50), normalise(scores, background, 50)
    )


def test_a_background_without_spread_gives_finite_scores():
    assert np.isfinite(normalise(np.array([0.5]), np.ones(10), 10)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: normalise(np.ones(1), np.ones(1), 5),
        lambda: normalise(np.ones(1), np.ones(5), 1),
        lambda: threshold(0.0),
        lambda: fit_null([(10, np.ones(4), np.ones((4, 9)))]),
    ],
)
def test_too_little_to_judge_by_is_refused(call):
    with pytest.raises(ValueError):
        call()
