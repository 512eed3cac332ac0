"""Questions to a session whose model reads them as told and knows colours by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streammem.engine.session import Session
from streammem.memory.entry import Sureness
from streammem.memory.retrieval import RANKERS, SEEN, Window
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionReading
from streammem.models.tiny.words import NameMeaning, NamesOfKeys
from streammem.qa.answerer import MAX_TURNS, NOTHING_SEEN
from streammem.qa.question import Present, split_options
from streammem.types import Segment
from tests.sessions import as_kind, session_of, told
from tests.tiny import COLOURS, film, moving_square, tiny_model

FILM = (("red", 9), ("blue", 7), ("green", 12), ("red", 8), ("white", 6))
AT = {"red": [(0.0, 4.5), (14.0, 18.0)], "blue": [(4.5, 8.0)], "green": [(8.0, 14.0)]}


class Reader(VideoModel):
    """Reads ``operator: anchor/second``, and gives a colour's name that colour's key.

    A colour's name alone asks for a description.
    """

    def read_question(self, question: str) -> QuestionReading:
        if question in COLOURS:
            return QuestionReading("describe", question)
        operator, _, anchor = question.partition(": ")
        return QuestionReading(operator, *anchor.partition("/")[::2])

    def sentence_keys(self, sentences):
        return np.stack([self._key(sentence) for sentence in sentences])

    def _key(self, sentence):
        if sentence in COLOURS:
            return self.perceive(moving_square(sentence, 0)).key
        return VideoModel.sentence_keys(self, [sentence])[0]

    def answer_prompt(self, passages, question):
        self.__dict__.setdefault("asked", []).append((passages, question))
        return super().answer_prompt(passages, question)


@pytest.fixture(scope="module")
def reader():
    return as_kind(Reader, tiny_model())


@pytest.fixture
def asked_of(reader, monkeypatch):
    """A session that has seen the film; a colour is seen where the picture is nearly that."""
    key = {name: reader.perceive(moving_square(name, 0)).key for name in COLOURS}
    others = max(float(key[a] @ key[b]) for a in key for b in key if a < b)
    least = (1 + others) / 2
    seen = "streammem.memory.retrieval.Scale.probability"
    monkeypatch.setattr(seen, lambda scale, cosines: 1.0 * (np.asarray(cosines) > least))

    def make(**options):
        session = session_of(reader, **options)
        for frame in film(*FILM):
            session.push(frame)
        session.flush()
        return session

    return make


def spans(answer):
    return [(item.start, item.end) for item in answer.evidence]


@pytest.mark.parametrize(
    ("question", "text", "evidence"),
    [
        ("how often: red", "2 times: 00:00.0-00:04.5, 00:14.0-00:18.0", AT["red"]),
        ("exists: blue", "seen once: 00:04.5-00:08.0", AT["blue"]),
        ("when: green", "00:08.0-00:14.0", AT["green"]),
        ("first: red", "first of 2: 00:00.0-00:04.5", AT["red"][:1]),
        ("last: red", "last of 2: 00:14.0-00:18.0", AT["red"][1:]),
        ("how long: red", "8.5 s in 2 stretches: 00:00.0-00:04.5, 00:14.0-00:18.0", AT["red"]),
        ("how long: red in the first 2 seconds", "2 s: 00:00.0-00:02.0", AT["red"][:1]),
        ("how often: red after 0:10", "once: 00:14.0-00:18.0", AT["red"][1:]),
    ],
)
def test_a_value_is_computed_and_rests_on_exactly_its_evidence(asked_of, question, text, evidence):
    answer = asked_of().ask(question)
    assert (answer.text, answer.method, answer.seen) == (text, "computed", True)
    assert spans(answer) == evidence and answer.remark is None


def test_scenes_around_are_listed_with_captions_and_the_pivot_is_evidence(asked_of):
    session = asked_of(passages=1)
    answer = session.ask("after: blue")
    caption = session.memory.get(2).caption
    assert answer.text == f"after 00:04.5-00:08.0:\n[00:08.0-00:14.0] {caption}"
    assert [item.segment for item in answer.evidence] == [1, 2]
    answer = session.ask("between: blue/white")
    assert answer.text.startswith("between 00:04.5-00:08.0 and 00:18.0-00:21.0, 10 s:\n[00:08.0")
    assert [item.segment for item in answer.evidence] == [1, 2, 3, 4]


@pytest.mark.parametrize("renamed", [False, True])
def test_a_name_that_keys_show_is_counted_found_and_said_to_be_what_matched(
    reader, renamed, monkeypatch
):
    # Where the level lies is fitted to real keys; these are of random weights.
    monkeypatch.setattr("streammem.memory.retrieval.NAME_BIAS", 0.386)
    blue = reader.perceive(moving_square("blue", 0)).key
    key = {name: reader.perceive(moving_square(name, 0)).key for name in ("red", "green", "white")}
    others = np.mean(list(key.values()), axis=0)
    names = NamesOfKeys(16, ("lake",), 1, {"sea": NameMeaning("lake", ())})
    with torch.no_grad():
        names.words.weight.copy_(torch.from_numpy(400 * (blue - others))[None])
        names.words.bias.fill_(-400 * float((blue - others) @ (blue + others)) / 2)
    session = session_of(replace(reader, names=names))
    told(session, film(*FILM))
    thing = "a sea" if renamed else "a lake"
    answer = session.ask(f"how often: {thing}")
    assert (answer.text, spans(answer)) == ("once: 00:04.5-00:08.0", AT["blue"])
    assert answer.evidence[0].matched == "name" and answer.evidence[0].score >= SEEN
    first, second = session.find(thing, 2)
    assert (first.segment, first.matched) == (1, "name") and first.score >= SEEN > second.score
    assert all(item.matched != "name" for item in session.ask("when: a big lake").evidence)


def test_what_was_not_seen_has_no_value_and_the_nearest_evidence(asked_of):
    session = asked_of(remark=True)
    for question, text in (
        ("when: black", "not seen"),
        ("how often: black", "0 times"),
        ("how long: black", "0 s"),
        ("exists: red in the last 3 seconds", "not seen"),
    ):
        answer = session.ask(question)
        assert (answer.text, answer.seen, answer.method) == (text, False, "computed")
        assert answer.evidence and answer.remark is None


def test_an_empty_memory_has_seen_nothing(reader):
    for question in ("how often: red", "first: ", "describe: red", "now: ", "when: red yesterday"):
        answer = session_of(reader).ask(question)
        assert not answer.seen and answer.evidence == ()


def test_what_the_model_says_of_a_value_stands_apart_from_it(asked_of):
    session = asked_of(remark=True)
    pieces = []
    answer = session.ask("how often: red", pieces.append)
    assert answer.text.startswith("2 times: ") and answer.remark
    assert "".join(pieces).strip() == f"{answer.text}\n{answer.remark}"
    passages, prompted = session.model.__dict__["asked"][-1]
    assert prompted == f"({answer.text})\nhow often: red"
    assert [passage.start for passage in passages] == [0.0, 14.0]


def test_options_that_a_question_lists_are_shown_whole_and_the_question_alone_is_read(asked_of):
    session = asked_of()
    listed = "\n".join(f"{letter}. {'very ' * 35}{letter}" for letter in "ABCD")
    answer = session.ask(f"how often: red\n{listed}\nAnswer with the letter.")
    assert answer.method == "model" and spans(answer)[:2] in (AT["red"], AT["red"][::-1])
    _, prompted = session.model.__dict__["asked"][-1]
    assert prompted == f"how often: red\n{listed}\nAnswer with the letter."
    session.ask(f"describe: {'x' * 5000}\nA. red\nB. blue")
    _, prompted = session.model.__dict__["asked"][-1]
    assert prompted == f"describe: {'x' * 590}\nA. red\nB. blue"


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("Which?\nA. red\nB. blue", "Which?"),
        ("Which?\n(A) red\n(B) blue\nAnswer.", "Which?"),
        ("Which?\n A) red\n B) blue", "Which?"),
        ("Which?\nA: red\nB: blue", "Which?"),
        ("Which?\nA. red", None),  # one is no choice
        ("Which?\nB. red\nC. blue", None),
        ("A. red\nB. blue", None),  # no question
        ("When was A. Smith there, and B. Jones?", None),
        ("Which?\nA.\nB.", None),
    ],
)
def test_options_are_lettered_lines_behind_a_question(text, stem):
    found, options = split_options(text)
    assert found == (stem or text)
    assert options == (text[len(stem) :].strip() if stem else "")


def test_that_points_to_what_the_last_turn_was_about(asked_of):
    session = asked_of(passages=1)
    for question, evidence in (
        ("after: blue", [1, 2]),
        ("after: that", [2, 3]),
        ("after: ", [3, 4]),
        ("before: it", [3, 4]),  # told of the last, 4; before it is 3
    ):
        assert [item.segment for item in session.ask(question).evidence] == evidence
    assert session.ask("how often: it").text == session.ask("how often: blue").text
    assert asked_of().ask("after: that").seen is False  # nothing was said before


# -- ranking rules --


@pytest.fixture
def patient(monkeypatch):
    """Options with a rule by which nothing counts that ended less than five seconds ago."""

    def old(candidates, scores):
        return np.where(candidates.ages() >= 5, scores, -1.0)

    monkeypatch.setitem(RANKERS, "old", old)
    return {"rankers": ("nearest", "old")}


@pytest.mark.parametrize(
    ("question", "without", "with_rule"),
    [
        ("exists: red", [0, 3], [0]),
        ("exists: white", [4], None),
        ("when: red", [0, 3], [0]),
        ("first: red", [0], [0]),
        ("last: red", [3], [0]),
        ("how often: red", [0, 3], [0]),
        ("how long: red", [0, 3], [0]),
        ("before: red", [2, 3], [0]),
        ("after: red", [3, 4], [0, 1]),
        ("between: red/green", [2, 3], [0, 1, 2]),
    ],
)
def test_a_ranking_rule_holds_in_every_operator(asked_of, patient, question, without, with_rule):
    for options, segments in (({}, without), (patient, with_rule)):
        answer = asked_of(passages=1, **options).ask(question)
        assert (answer.method, answer.seen) == ("computed", segments is not None)
        if segments:
            assert [item.segment for item in answer.evidence] == segments


def test_a_ranking_rule_holds_in_find_and_in_words(asked_of, patient):
    for options, best in (({}, 3), (patient, 0)):
        session = asked_of(passages=1, **options)
        assert session.find("red", 1)[0].segment == best
        answer = session.ask("red")
        assert (answer.seen, answer.method) == (True, "model")
        assert [item.segment for item in answer.evidence] == [best]
    assert asked_of(passages=1).ask("white").seen
    assert not asked_of(passages=1, **patient).ask("white").seen


def test_few_turns_are_kept(asked_of):
    session = asked_of()
    for _ in range(MAX_TURNS + 3):
        session.ask("when: red")
    assert len(session.answerer.turns) == MAX_TURNS


def test_asking_changes_nothing_that_was_or_will_be_emitted(asked_of, reader):
    frames = film(*FILM)
    quiet, asked = session_of(reader), session_of(reader)
    events = []
    for frame in frames:
        events += quiet.push(frame)
    events += quiet.flush()
    others = []
    for number, frame in enumerate(frames):
        others += asked.push(frame)
        if number % 10 == 0:
            asked.ask(
                ("how often: red", "now: ", "after: that", "describe: blue")[number // 10 % 4]
            )
    others += asked.flush()
    assert others == events and all(isinstance(event, Segment) for event in events)
    for left, right in zip(quiet.memory.entries(), asked.memory.entries(), strict=True):
        assert np.array_equal(left.tokens, right.tokens)
        assert np.array_equal(left.visual_keys, right.visual_keys)
    assert np.array_equal(quiet.recurrent, asked.recurrent)


def test_wall_clock_words_find_what_was_there_then(asked_of, reader):
    session = session_of(reader, timezone="Europe/Berlin")
    session.answerer.wall_clock = lambda: 1_793_600_000.0  # 2 November 2026, 07:13 in Berlin
    session.wall_zero = 1_793_600_000.0 - 86_400
    told(session, film(*FILM))
    answer = session.ask("how often: red yesterday")
    assert answer.text == (
        "2 times: 00:00.0-00:04.5 (2026-11-01 07:13:20+01:00), "
        "00:14.0-00:18.0 (2026-11-01 07:13:34+01:00)"
    )
    assert not session.ask("how often: red today").seen
    assert session.ask("how often: red 24 hours ago").text.startswith("2 times: ")
    assert session.ask("when: red at 3 am").seen is False
    unknown = asked_of()
    assert unknown.ask("when: red yesterday").evidence == ()


def test_what_counts_back_counts_from_the_last_frame_of_the_newest_source(
    asked_of, reader, tmp_path
):
    session = session_of(reader)
    for frame in film(*FILM):
        session.push(frame)  # to 21 s; the last scene is still open
    assert session.ask("when: green 8 seconds ago").text == "00:12.5-00:13.5"
    present = session.present()._replace(source="another")  # which has no row yet
    ends = session.answerer._now(present).ends
    assert ends == {session.source: session.memory.entries()[-1].end, "another": 21.0}
    for source in "ab":
        with Session(reader, session.config, memory=tmp_path / "m", source=source) as session:
            told(session, film(*FILM[:2]))
            texts = [session.ask(f"how often: red{w}").text for w in ("", " in the last hour")]
    assert [text.partition(":")[0] for text in texts] == ["2 times", "once"]


@pytest.mark.parametrize(
    ("clocks", "order"),
    [
        ({"wed": 200_000.0, "tue": 100_000.0}, ["tue", "wed"]),
        ({"wed": 200_000.0, "tue": None}, ["wed", "tue"]),
        ({"wed": None, "tue": None}, ["wed", "tue"]),
    ],
)
def test_first_last_and_newest_go_by_the_wall_clock_where_both_films_know_it(
    asked_of, reader, tmp_path, clocks, order
):
    asked_of()  # which says what is seen
    for source, wall in clocks.items():
        config = session_of(reader, timezone="UTC").config
        with Session(reader, config, memory=tmp_path / "m", source=source) as session:
            session.wall_zero = wall
            told(session, film(("red", 4), ("blue", 4)))
    first, last = order
    with Session(reader, config, memory=tmp_path / "m") as session:

        def source_of(question):
            return [item.source for item in session.ask(question).evidence]

        assert source_of("first: red") == source_of("first: ") == [first]
        assert source_of("last: red") == source_of("last: ") == [last]
        assert source_of("when: red") == order
        assert session.ask("when: red").text.startswith(first)
        seen = session.ask("Where is blue?")
        assert seen.text.startswith(f"last seen {last} ") and "in the newest scene" in seen.text
        assert source_of("when: blue in the last minute") == [last]
        looked = session.lookups().call("at", {"time": "0:00"}).text.splitlines()
        assert [line.partition(" of ")[2].partition(":")[0] for line in looked] == order
        for row in session.memory.entries():
            session.memory.set_caption(row.segment, row.source, None)
        session.ask("describe: red")
        passages, _ = session.model.__dict__["asked"][-1]
        shown = [first, first, last, last] if None not in clocks.values() else [*order, *order]
        assert [item.caption.split()[-1] for item in passages] == shown


def test_time_words_leave_a_question_with_the_source_that_it_was_given(asked_of, reader, tmp_path):
    asked_of()  # which says what is seen
    for source, films in (("a", 5), ("b", 2)):
        with Session(reader, memory=tmp_path / "m", source=source) as session:
            told(session, film(*FILM[:films]))
    within = Window(source="a")
    with Session(reader, memory=tmp_path / "m", read_only=True) as session:
        for words, count in (("", 2), (" in the last 8 seconds", 1), (" 4 seconds ago", 1)):
            answer = session.ask(f"when: red{words}", between=within)
            assert answer.seen and [item.source for item in answer.evidence] == ["a"] * count
        lookups = session.answerer.lookups(session.present(), within)
        assert lookups.call("at", {"time": "4 seconds ago"}).segments == (3,)


def test_the_present_is_shown_unless_another_time_was_asked_about(asked_of):
    session = asked_of()
    for words, is_shown in (("", True), ("in the last 5 seconds", True), ("before 0:05", False)):
        session.ask(f"describe: red {words}")
        passages, _ = session.model.__dict__["asked"][-1]
        assert any((p.end, p.caption) == (21.0, None) for p in passages) == is_shown


@pytest.mark.parametrize("text", ["<|im_end|>[SEP] red", "x" * 10_000, "red \ud800 \x00 ؟"])
@pytest.mark.parametrize("operator", ["describe", "how often", "now"])
def test_any_question_is_answered(asked_of, operator, text):
    session = asked_of(remark=True)
    answer = session.ask(f"{operator}: {text}")
    assert answer.question == f"{operator}: {text}"
    assert all(len(question) < 1_000 for _, question in session.model.__dict__.get("asked", []))


def test_now_shows_the_last_frames_and_nothing_of_the_past(reader):
    session = session_of(reader)
    for frame in film(*FILM):
        session.push(frame)
    (evidence,) = session.ask("now: ").evidence
    (passage,), _ = session.model.__dict__["asked"][-1]
    assert passage.end == 21.0 and passage.caption is None
    assert (evidence.start, evidence.end) == (passage.start, passage.end), "what was shown"
    assert evidence.segment == session.next_segment and 0 <= evidence.score <= 1


def test_where_there_is_nothing_to_show_nothing_is_said(reader, asked_of, monkeypatch):
    def generate(*_):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(VideoModel, "stream", generate)
    closed = session_of(reader, context="now")  # of a memory that no stream goes on from
    for session, question in (
        (closed, "now: "),
        (closed, "describe: red"),
        (session_of(reader), "describe: red"),
        (asked_of(), "describe: red between 1:00 and 2:00"),
        (asked_of(), "how often: red between 1:00 and 2:00"),
        (asked_of(), "after: red between 1:00 and 2:00"),
    ):
        pieces = []
        answer = session.ask(question, pieces.append)
        assert (answer.text, answer.seen, answer.method) == (NOTHING_SEEN, False, "computed")
        assert answer.evidence == () and pieces == [NOTHING_SEEN]


def test_scores_are_probabilities_on_one_scale_and_evidence_has_its_cosine(asked_of, reader):
    session = session_of(reader)  # with the model's own scale
    told(session, film(*FILM))
    session.answerer.describer.describe([e for e in session.memory.entries() if not e.caption])
    found = {moment.segment: moment for moment in session.find("red", 9)}
    for question in ("when: red", "how often: red", "when: nothing like it", "red"):
        for item in session.ask(question).evidence:
            assert 0 <= item.score <= 1 and -1 <= item.cosine <= 1
            if question != "when: nothing like it":
                assert item.cosine == pytest.approx(found[item.segment].cosine, abs=1e-6)
    for item in session.ask("when: red").evidence:
        assert item.score == found[item.segment].score, "in computed answers as in find"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("when: red at 07:13", "wall clock 2026-11-01 07:13:00+01:00 to 07:14:00"),
        ("when: red at minute 0", "stream 00:00.0 to 01:00.0"),
        ("when: red after 0:05 of the video", "stream 00:05.0 to the end"),
        ("when: red", None),
    ],
)
def test_an_answer_says_which_time_it_looked_at_and_on_which_clock(reader, question, said):
    session = session_of(reader, timezone="Europe/Berlin")
    session.answerer.wall_clock = lambda: 1_793_600_000.0  # 2 November 2026, 07:13 in Berlin
    session.wall_zero = 1_793_600_000.0 - 86_400
    told(session, film(*FILM))
    answer = session.ask(question)
    assert answer.looked_at == said
    assert (said is None) or said in str(answer)


# -- what captions say --

READER = as_kind(Reader, tiny_model())
WORDS = ("dog", "man", "horse", "bicycle", "woman", "car", "snow", "ball")
KINDS = {"person": {"man", "woman"}, "animal": {"dog", "horse"}, "vehicle": {"bicycle", "car"}}
FORMS = {"man": "men", "woman": "women", "bicycle": "bicycles", "snow": "snow"}
captions = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True), min_size=5, max_size=5
)


def captioned(said, cut=(False,) * 5):
    """A session whose five scenes have captions of these words, some of them cut as unsure."""
    session = session_of(READER)
    told(session, film(*FILM))
    for entry, words, unsure in zip(session.memory.entries(), said, cut, strict=True):
        text = "Some " + " and ".join(FORMS.get(each, f"{each}s") for each in words) + " are there."
        key = session.model.sentence_keys([text])[0]
        session.memory.set_caption(entry.segment, text, key, Sureness(0.5, unsure))
    return session


@settings(max_examples=40, deadline=None)
@given(
    captions,
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.lists(st.sampled_from((*WORDS, *KINDS)), min_size=1, max_size=3, unique=True),
    st.sampled_from(("when", "how often", "exists", "last")),
)
@example([["man"], ["ball"], ["ball"], ["ball"], ["ball"]], [False] * 5, ["person"], "when")
@example(
    [["man", "dog", "snow"], ["ball"], ["woman", "dog", "snow"], ["ball"], ["ball"]],
    [False] * 5,
    ["person", "dog", "snow"],
    "how often",
)
def test_an_answer_never_contradicts_a_caption_that_it_prints(said, cut, asked, operator):
    answer = captioned(said, cut).ask(f"{operator}: a {' and a '.join(asked)}")
    kinds = [KINDS.get(word, {word}) for word in asked]
    named = [
        i for i, words in enumerate(said) if all(kind & set(words) for kind in kinds) and not cut[i]
    ]
    if named:
        assert answer.seen and answer.text not in ("not seen", "0 times")
    shown = {item.segment: item for item in answer.evidence}
    if operator in ("when", "how often", "exists"):
        assert set(named) <= set(shown), "every scene whose caption names it counts"
    for item in answer.evidence:
        if item.segment in named:
            assert item.score >= SEEN
            assert item.matched in ("caption", "picture")
        if cut[item.segment]:
            by_caption = item.matched == "caption"
            assert not (by_caption and item.score >= SEEN), "what was cut as unsure names nothing"
            assert item.reason == "unsure" and str(item).endswith(" … (unsure)"), "and says so"


@pytest.mark.parametrize("cut", [False, True])
def test_a_caption_that_was_cut_as_unsure_names_nothing(cut):
    said = (("dog",), ("man",), ("man",), ("man",), ("man",))
    answer = captioned(said, (cut,) * 5).ask("when: a dog")
    assert answer.seen == (not cut)


@settings(max_examples=40, deadline=None)
@given(captions, st.sampled_from(WORDS), st.sampled_from(WORDS))
def test_between_says_which_of_two_things_was_not_seen(said, first, second):
    answer = captioned(said).ask(f"between: a {first}/a {second}")
    with_first, with_second = ({i for i, w in enumerate(said) if x in w} for x in (first, second))
    assert answer.seen == bool(with_first and with_second)
    if not answer.seen:
        unseen = [f"a {x}" for x, w in ((first, with_first), (second, with_second)) if not w]
        assert answer.text == f"not seen: {' and '.join(unseen)}"
        assert not any(item.score >= SEEN for item in answer.evidence), "nothing shows it"
    elif "nothing between" in answer.text:
        assert {item.segment for item in answer.evidence} & with_first & with_second
    else:
        ids = sorted(item.segment for item in answer.evidence)
        assert (ids[0] in with_first and ids[-1] in with_second) or (
            ids[0] in with_second and ids[-1] in with_first
        )


def test_a_description_counts_the_best_scene_and_its_likes_in_answers_and_lookups(
    reader, monkeypatch
):
    monkeypatch.setattr("streammem.memory.retrieval.ALIKE", 0.999)
    seen = "streammem.memory.retrieval.Scale.probability"
    monkeypatch.setattr(seen, lambda scale, cosines: np.ones(len(cosines)))
    session = session_of(reader)
    told(session, film(*FILM))
    text = "a red square on grass"
    keys = np.concatenate([entry.visual_keys for entry in session.memory.entries()])
    answer = session.ask(f"when: {text}")
    best = keys[session.find(text, 1)[0].segment]
    alike = np.flatnonzero(keys @ best >= 0.999).tolist()
    assert len(keys) == 5 > len(alike)
    assert [item.segment for item in answer.evidence] == alike
    assert len(session.ask("when: a square").evidence) == 5, "of a thing all that are seen"
    lookups = session.answerer.lookups(Present((), 5, torch.zeros(0)))
    assert lookups.count(text).segments == tuple(alike)


def test_between_of_one_thing_asks_when_it_was():
    said = (("dog",), ("man",), ("dog",), ("man",), ("man",))
    session = captioned(said)
    assert session.ask("between: a dog").text == session.ask("when: a dog").text


@pytest.mark.parametrize("context", ["now", "uniform"])
def test_a_control_computes_nothing(asked_of, context):
    assert asked_of(context=context).ask("how often: red").method == "model"


def test_a_model_without_a_question_head_answers_freely(reader):
    plain = replace(tiny_model(), questions=None)
    session = session_of(plain)
    told(session, film(*FILM))
    assert session.ask("How often was it red?").method == "model"


def test_chapters_cover_what_was_seen_and_describe_only_their_centres(asked_of):
    session = asked_of()
    chapters = session.chapters(2)
    assert [c.start for c in chapters] == [0.0, chapters[0].end] and chapters[-1].end == 21.0
    assert sum(chapter.segments for chapter in chapters) == 5
    assert all(chapter.captions for chapter in chapters)
    (only,) = session.chapters(between=(4.5, 8.0))
    assert (only.start, only.end, only.segments) == (4.5, 8.0, 1)
    assert session.chapters(between=(21.0, 30.0)) == ()
