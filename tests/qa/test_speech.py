"""Questions of what was said: read, answered by quotes, apart from what was seen."""

import json
import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from streammem.memory.entry import Entry, Sureness
from streammem.memory.retrieval import Clip
from streammem.models.protocols import EvidenceItem
from streammem.models.vlm.prompts import answer_parts, caption_parts
from streammem.output.render import to_line
from streammem.qa import speech
from streammem.qa.question import read_said, read_said_description
from streammem.qa.speech import (
    SAID,
    Meanings,
    excerpt,
    ranked,
    sentence_of,
    sentences,
    text_of,
    typical,
)
from streammem.types import Note, clock
from tests.qa.said_questions import HELD, OTHERS, SEEN, TOPICS, WORDINGS
from tests.qa.test_answerer import Reader
from tests.sessions import as_kind, session_of
from tests.tiny import film, tiny_model

SPOKEN = (
    ("When did they mention the harbour?", "when", "the harbour"),
    ("When did she say that it rains?", "when", "it rains"),
    ("When is Bergen first mentioned?", "when", "Bergen"),
    ("What did they say about the ship?", "what", "the ship"),
    ("What was said about money", "what", "money"),
    ("What did they say?", "what", ""),
    ("Who said 'we sail at dawn'?", "who", "we sail at dawn"),
    ("Who talked about the cat?", "who", "the cat"),
    ("Did anyone mention a dog?", "whether", "a dog"),
    ("How often did they say hello?", "count", "hello"),
)


@pytest.mark.parametrize(("question", "kind", "topic"), SPOKEN)
def test_questions_of_what_was_said_are_known(question, kind, topic):
    asked = read_said(question)
    assert (asked.kind, asked.topic) == (kind, topic)


@pytest.mark.parametrize("topic", TOPICS)
def test_what_was_said_is_asked_for_in_many_ways(topic):
    wanted = {wording.format(t=topic): (kind, topic) for wording, kind in WORDINGS}
    wanted |= {question: (kind, about) for question, kind, about in (*OTHERS, *HELD)}
    read = {question: read_said(question) for question in wanted}
    assert {q: asked and (asked.kind, asked.topic) for q, asked in read.items()} == wanted


def test_a_question_names_who_is_meant():
    spoken = {
        "What did Ann say about money?": "ann",
        "Did the old man mention it?": "old man",
        "Did anyone say something about it?": "",
    }
    assert {question: read_said(question).speaker for question in spoken} == spoken


def test_descriptions_of_what_was_said_are_told_from_those_of_what_is_seen():
    for text in ("they say {}", "said {}", "mentions {}", "{} is mentioned", "talking about {}"):
        assert read_said_description(text.format("the harbour")).topic == "the harbour"
    seen = ("a man talks to a woman", "a dog", "a woman tells a child a story", "two men speak",
            "a sign that says stop")  # fmt: skip
    assert not any(map(read_said_description, seen))


@pytest.mark.parametrize("question", SEEN)
def test_questions_of_what_was_seen_are_left_alone(question):
    assert read_said(question) is None


def test_a_question_as_long_as_a_book_is_read_at_once():
    began = time.process_time()
    for words in ("did " + "a " * 20_000, "is " + "mentioned " * 5000, "did the " + "say " * 8000):
        read_said(words)
    assert time.process_time() - began < 5


def entry_of(notes, segment=0, start=0.0, end=100.0):
    key, none = np.eye(4, dtype=np.float32)[:1], np.zeros((0, 4), np.float32)
    return Entry(
        segment=segment, start=start, end=end, frames=1, visual_keys=key, caption_keys=none,
        note_keys=none, tokens=np.zeros((0, 0), np.float16), notes=tuple(notes), source="film.mp4",
        keyframe=None, wall_start=None,
    )  # fmt: skip


def test_a_sentence_over_cues_is_one_and_keeps_the_time_of_its_words():
    notes = [Note(1, 2, "We sail to the"), Note(2.1, 3, "old harbour."), Note(9, 10, "Fine.")]
    clip = Clip(entry_of(notes), 0.0, 100.0)
    assert [q.text for q in sentences([clip])] == ["We sail to the old harbour.", "Fine."]
    (best,) = ranked(sentences([clip]), "the harbour")
    assert (best.start, best.end, best.at) == (1, 3, 2.1)
    assert [q.text for q in sentences([clip._replace(start=8.0)])] == ["Fine."]


def test_a_quote_has_the_time_of_its_word_where_words_have_times():
    timed = Note(1.0, 4.0, "Now we sail to the harbour.", (1.0, 1.2, 1.5, 2.0, 2.2, 2.75))
    for note, at in ((timed, 2.75), (Note(1.0, 4.0, timed.text), 1.0)):
        (best,) = ranked(sentences([Clip(entry_of([note]), 0.0, 9.0)]), "the harbours")
        assert best.at == at
        answer = text_of(read_said("When did they mention the harbour?"), [best], named=False)
        assert answer.startswith(f"at {clock(at)}: “Now we")


def test_when_it_was_said_is_told_in_the_order_of_the_wall_clock():
    quotes = []
    for number, (source, wall) in enumerate((("wed", 200.0), ("tue", 100.0))):
        notes = [Note(1.0 + number, 3.0, f"The harbour, on {source}.")]
        row = replace(entry_of(notes, number), source=source, wall_start=wall)
        quotes += sentences([Clip(row, 0.0, 9.0)])
    answer = text_of(read_said("When did they mention the harbour?"), quotes, named=True)
    assert answer.index("in tue") < answer.index("in wed")


def test_of_equal_words_those_side_by_side_count_more():
    notes = [Note(1, 2, "The red piano needs a new roof."), Note(3, 4, "The new piano is ours.")]
    quotes = sentences([Clip(entry_of(notes), 0, 9)])
    assert ranked(quotes, "new pianos")[0].start == 3


def test_speakers_do_not_share_a_sentence():
    notes = [Note(1, 2, "ANN: Where are you"), Note(2, 3, "BOB: Here")]
    assert [q.speaker for q in sentences([Clip(entry_of(notes), 0, 9)])] == ["ANN", "BOB"]


def test_a_chapter_quotes_what_is_said_in_it_and_hardly_elsewhere():
    def part(*texts):
        notes = [Note(i, i + 1, text) for i, text in enumerate(texts)]
        return sentences([Clip(entry_of(notes), 0, 99)])

    idle = "Well, let us go now."
    parts = [
        part(idle, "The ship leaves the harbour.", idle, "The harbour is old.", idle),
        part("Boil the soup.", idle, "Well, boil the soup."),
        part(idle, idle),
        part(),
    ]
    found = [[quote.text for quote in quotes] for quotes in typical(parts, 2)]
    assert found[0] == ["The ship leaves the harbour.", "The harbour is old."]
    assert "soup" in typical(parts, 1)[1][0].text
    assert found[2] == [idle] and found[3] == []


def test_an_excerpt_holds_what_the_question_names_and_stays_short():
    notes = [Note(i, i + 1, f"Idle talk number {i}.") for i in range(50)]
    notes[40] = Note(40, 41, "The harbour is closed.")
    found = excerpt(notes, frozenset({"harbour"}), 200)
    assert notes[40] in found and sum(len(note.text) + 1 for note in found) <= 201
    assert list(found) == sorted(found, key=lambda note: note.start)
    (cut,) = excerpt([Note(1, 2, "word " * 99)], frozenset(), 200)
    assert len(cut.text) == 200


def test_prompts_of_pictures_show_speech_with_its_times_between_them_and_captions_do_not():
    picture = np.zeros((2, 2, 3), np.uint8)
    notes = (Note(61.5, 62, "Hello."), Note(63, 64, "x" * 700), Note(65, 66, "Gone."))
    items = [EvidenceItem(60.0, 70.0, None, "A dog.", (picture,), heard=notes),
             EvidenceItem(70.0, 80.0, keyframes=(picture,))]  # fmt: skip
    parts = answer_parts(items, "Who speaks?")
    shown = [part for part in parts if isinstance(part, str)]
    assert [isinstance(part, str) for part in parts] == [True, False, True, True, False, True]
    assert shown[1] == "A dog. Heard: [01:01.5] “Hello.”"
    assert "it need not be seen" in shown[-1]
    assert "heard" not in answer_parts(items[1:], "Who speaks?")[-1]
    assert caption_parts(items[0], None, 4) == caption_parts(items[0]._replace(heard=()), None, 4)


THINGS = "harbour bridge piano lantern doctor garden violin castle rocket island".split()  # noqa: SIM905
DEEDS = (
    "is closed until spring", "belongs to my brother", "was sold last year", "frightens the horses",
    "needs a new roof", "stands behind the church", "will be painted green", "costs too much",
    "smells of oranges", "reminds me of home",
)  # fmt: skip


def hour_of_talk():
    """100 sentences among 900 idle ones over an hour: thing, deed, second."""
    rng = random.Random(7)
    facts = [(thing, deed) for thing in THINGS for deed in DEEDS]
    places = sorted(rng.sample(range(1000), 100))
    rng.shuffle(facts)
    idle = ("Well, that is how it goes.", "I do not know what you mean.", "Come on, let us go now.")
    notes, wanted = [], []
    for number in range(1000):
        at = number * 3.6
        text = rng.choice(idle)
        if number in places:
            thing, deed = facts[places.index(number)]
            text = f"The {thing} {deed}."
            wanted.append((thing, deed, at))
        notes.append(Note(at, at + 3.0, text))
    return notes, wanted


def test_the_right_sentence_of_an_hour_comes_first_and_within_a_second():
    notes, wanted = hour_of_talk()
    quotes = sentences([Clip(entry_of(notes, end=3600.0), 0.0, 3600.0)])
    for thing, deed, at in wanted:
        asked = read_said(f"When did they say that the {thing} {deed}?")
        best = ranked(quotes, asked.topic)[0]
        assert best.text == f"The {thing} {deed}." and abs(best.at - at) < 1


class Meant:
    """A text encoder for which words of one kind mean the same."""

    kinds = ({"harbour", "port"}, {"closed", "shut"}, {"dog"}, {"sings"})

    def __init__(self):
        self.encoded = []

    def sentence_keys(self, sentences):
        return np.ones((len(sentences), 4), np.float32) / 2

    def sentence_meanings(self, sentences):
        self.encoded += sentences
        rows = np.array(
            [[bool(kind & set(re.findall(r"\w+", s))) for kind in self.kinds] for s in sentences]
        )
        return rows / np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True))


def test_a_sentence_without_a_common_word_is_found_by_its_meaning_and_meanings_are_made_once():
    texts = ("The dog sings.", "The harbour sings.", "The harbour is closed.", "It sings.")
    notes = [Note(i, i + 1, text) for i, text in enumerate(texts)]
    quotes, encoder = sentences([Clip(entry_of(notes), 0, 9)]), Meant()
    meanings = Meanings(encoder)
    found = meanings.ranked(quotes, "the port being shut", "about the port being shut?")
    assert found[0].text == "The harbour is closed."
    assert found[0].score == pytest.approx(1, abs=0.01)
    assert found[1].text == "The harbour sings." and SAID < found[1].score < 1
    assert [quote.score for quote in found[2:]] == [0, 0]
    before = len(encoder.encoded)
    meanings.ranked(quotes, "the dog", "about the dog?")
    assert len(encoder.encoded) == before + 2, "the question alone is new"


def test_of_too_many_sentences_the_rows_with_the_nearest_keys_are_compared(monkeypatch):
    monkeypatch.setattr(speech, "MOST_COMPARED", 3)
    key = np.ones((1, 4), np.float32) / 2
    rows = [entry_of([Note(i, i + 1, f"Number {i}.") for i in range(4 * n, 4 * n + 4)], segment=n)
            for n in range(2)]  # fmt: skip
    rows[1] = replace(rows[1], note_keys=key)
    quotes, encoder = sentences([Clip(row, 0, 99) for row in rows]), Meant()
    meanings = Meanings(encoder)
    found = meanings.ranked(quotes, "the port", "?")
    assert {quote.text for quote in found} == {"Number 4.", "Number 5.", "Number 6."}
    for number in range(20):  # bounded, whatever is asked
        more = sentences([Clip(entry_of([Note(1, 2, f"Other {number}.")]), 0, 9)])
        meanings.ranked(more, "the port", "?")
    assert len(meanings._rows) <= 6


@pytest.fixture(scope="module")
def heard():
    return heard_by(tiny_model())


def heard_by(model):
    """A session that saw two scenes and heard of a dog in the second one."""
    from streammem.audio.track import SpeechTrack

    session = session_of(model)
    session.speech = SpeechTrack("f", (Note(4.0, 5.0, "ANN: A dog swims in the river."),))
    for frame in film(("red", 5), ("blue", 6)):
        session.push(frame)
    session.flush()
    return session


def test_quotes_are_computed_evidence_with_their_times(heard):
    answer = heard.ask("What did they say about the dog?")
    assert (answer.method, answer.seen) == ("computed", True)
    assert answer.text == "“ANN: A dog swims in the river.” (said at 00:04.0)"
    (evidence,) = answer.evidence
    assert (evidence.matched, evidence.said_at, evidence.start) == ("speech", 4.0, 4.0)
    assert evidence.quote == evidence.speech == "ANN: A dog swims in the river."
    assert "ANN, at 00:04.0" in heard.ask("Who talked about a dog?").text
    assert heard.ask("How often did they mention the river?").text == "once: 00:04.0"
    assert heard.ask("Did they mention a cat?").text.startswith("no: not said")
    assert not heard.ask("Did they mention a cat?").seen


def test_without_words_it_says_so():
    session = session_of(tiny_model())
    for frame in film(("red", 5)):
        session.push(frame)
    session.flush()
    answer = session.ask("What did they say about the dog?")
    assert not answer.seen and "no subtitles or speech were read" in answer.text


def test_words_are_found_and_quoted_by_find(heard):
    best = heard.find("a dog swims in the river", 1)[0]
    assert best.matched == "speech" and best.said_at == 4.0
    assert "(said at 00:04.0)" in str(best)


@pytest.mark.parametrize(
    "question", ["Where is the dog?", "when: the dog swims", "describe: a dog"]
)
def test_evidence_by_speech_quotes_what_was_said_in_answers_of_what_was_seen_too(question):
    answer = heard_by(as_kind(Reader, tiny_model())).ask(question)
    said = next(item for item in answer.evidence if item.matched == "speech")
    assert (said.quote, said.said_at) == ("ANN: A dog swims in the river.", 4.0)
    assert "“ANN: A dog swims in the river.” (said at 00:04.0)" in str(said)


def test_of_a_row_the_sentence_that_shares_most_is_quoted_or_its_only_one():
    what, swims, cat = Note(1, 2, "So what?"), Note(3, 4, "The dog swims."), Note(5, 6, "A cat.")
    for notes, text in (
        ([what], "So what?"),
        ([what, swims, cat], "The dog swims."),
        ([what, cat], None),
        ([Note(3, 4, "dog", kind="sound")], None),
    ):
        quote = sentence_of(entry_of(notes), frozenset(["dog"]))
        assert (quote and quote.text) == text


def test_a_cut_caption_beside_a_quote_says_that_it_was_cut():
    session = heard_by(tiny_model())
    session.memory.set_caption(1, "A train", None, Sureness(0.1, unsure=True))
    (evidence,) = session.ask("What did they say about the dog?").evidence
    assert (evidence.reason, evidence.quote) == ("unsure", "ANN: A dog swims in the river.")


def test_what_was_said_does_not_show_what_was_seen(heard):
    query = heard.answerer._query("a dog in the river", heard.memory.now(0.0), heard_window())
    hits = {h.entry.segment: h for h in heard.memory.search(query)}
    deaf = {h.entry.segment: h for h in heard.memory.search(query._replace(heard=False))}
    said = next(s for s, h in hits.items() if h.entry.notes)
    assert hits[said].seen and hits[said].matched == "speech"
    assert deaf[said].score < hits[said].score


def heard_window():
    from streammem.memory.retrieval import EVERYTHING

    return EVERYTHING


def test_a_time_within_what_was_said_is_no_time_to_look_at(heard):
    answer = heard.ask("What did they say about the dog that swims in the river on Monday?")
    assert answer.seen and answer.evidence[0].said_at == 4.0 and answer.looked_at is None
    assert "nothing was said then" in heard.ask("What did they say on Monday?").text


def test_other_words_of_the_same_meaning_answer_what_when_and_who_and_are_not_counted(heard):
    asked = (
        "What did they say about a puppy?",
        "When did they mention a puppy?",
        "Who talked about a puppy?",
    )
    answerer = heard.answerer
    meanings = Meanings(Meant())
    Meant.kinds, kinds = ({"dog", "puppy"},), Meant.kinds
    try:
        answerer._meanings, before = meanings, answerer._meanings
        for question in asked:
            answer = heard.ask(question)
            assert answer.seen and answer.evidence[0].quote == "ANN: A dog swims in the river."
        for question in ("Did they mention a puppy?", "How often did they mention a puppy?"):
            assert not heard.ask(question).seen
        assert not heard.ask("What did they say about the weather?").seen
    finally:
        Meant.kinds, answerer._meanings = kinds, before


def test_a_summary_quotes_what_was_said_in_time_order_among_captions(heard):
    (chapter,) = heard.chapters(1)
    assert [quote.text for quote in chapter.quotes] == ["ANN: A dog swims in the river."]
    assert "  [00:04.0-00:05.0] “ANN: A dog swims in the river.”" in str(chapter)
    quotes = json.loads(to_line(chapter))["quotes"]
    assert quotes == [{"start": 4.0, "end": 5.0, "text": "ANN: A dog swims in the river."}]
    assert "quotes" not in json.loads(to_line(replace(chapter, quotes=())))
